"""Whose fault a repeated effect is: that of the kill which the demo itself committed, or the product's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Effect = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Killed:
    """A process that the demo ended with SIGKILL.

    Attributes:
        pid: Its process id.
        since: Before it was started, in Unix seconds; an earlier effect of this pid was another process's.
        until: After it had ended; a later one too.
    """

    pid: int
    since: float
    until: float

    def left(self, effect: Effect) -> bool:
        """Return whether an effect is this process's."""
        return bool(effect["pid"] == self.pid and self.since <= effect["at"] <= self.until)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """The effects of a job beyond its first one.

    Attributes:
        rerun_after_kill: Those that had to be: each process that left an earlier effect was killed before it could
            settle the job.
        duplicated: The others. There must be none.
    """

    rerun_after_kill: int = 0
    duplicated: int = 0


def attribute(effects: Sequence[Effect], killed: Sequence[Killed], settled_by: frozenset[int]) -> Repeats:
    """Judge the repeated effects of one job.

    Args:
        effects: All its effects, in the order in which they were appended.
        killed: The processes that the demo killed.
        settled_by: The fencing tokens by which the ledger says the job was settled.
    """
    excused = 0
    for position in range(1, len(effects)):
        this = effects[position]
        if all(_was_cut_short(earlier, this, killed, settled_by) for earlier in effects[:position]):
            excused += 1
    return Repeats(rerun_after_kill=excused, duplicated=max(0, len(effects) - 1) - excused)


def _was_cut_short(earlier: Effect, later: Effect, killed: Sequence[Killed], settled_by: frozenset[int]) -> bool:
    """Return whether the execution that left an effect was killed before it settled, and `later` came after it."""
    token = earlier["fence"]
    return (
        token is not None
        and later["fence"] is not None
        and token < later["fence"]
        and token not in settled_by
        and any(process.left(earlier) for process in killed)
    )
