"""What an inventory says: findings with their severity, and a verdict on each task."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.Enum):
    """How much a finding stands in the way of a move, from least to most."""

    NOTE = "note"
    EDIT = "edit"
    DECISION = "decision"
    BLOCKER = "blocker"

    @property
    def rank(self) -> int:
        """Return the position from least to most."""
        return list(Severity).index(self)


class Verdict(enum.Enum):
    """Whether a task can move to push delivery."""

    READY = "ready"
    EDITS = "ready, with edits"
    DECISION = "needs a decision"
    BLOCKED = "cannot move yet"


_VERDICTS = {
    Severity.NOTE: Verdict.READY,
    Severity.EDIT: Verdict.EDITS,
    Severity.DECISION: Verdict.DECISION,
    Severity.BLOCKER: Verdict.BLOCKED,
}


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """A line of a file; line 0 is the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that matters for a move.

    Attributes:
        rule: The name of the rule that found it.
        severity: How much it stands in the way.
        what: What was found.
        where: The places in the source; a setting of the app has none.
        why: Why it matters.
        do: What to do about it.
    """

    rule: str
    severity: Severity
    what: str
    where: tuple[Place, ...]
    why: str
    do: str


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Return the verdict that the worst of these findings makes; without any it is `ready`."""
    worst = max((finding.severity for finding in findings), key=lambda one: one.rank, default=Severity.NOTE)
    return _VERDICTS[worst]
