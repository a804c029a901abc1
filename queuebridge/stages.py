"""The stages of a migration, as one table; router, executors, command line and docs are derived from it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PUSH_BACKEND = "qstash"


class Side(enum.Enum):
    """The two ends of a migration."""

    LEGACY = "legacy"
    PUSH = "push"


class Role(enum.Enum):
    """What a copy of a dispatch is for.

    PREFERRED is expected to run, SAFETY runs only if the preferred one does not, SHADOW never runs.
    """

    PREFERRED = "preferred"
    SAFETY = "safety"
    SHADOW = "shadow"


class Stage(enum.Enum):
    """Where a task stands in its migration, in this order."""

    LEGACY = "legacy"
    SHADOW = "shadow"
    DUAL = "dual"
    LIVE = "live"
    RAMPDOWN = "rampdown"
    PUSH = "push"

    @property
    def plan(self) -> StagePlan:
        """Return what this stage does."""
        return STAGES[self]

    @property
    def before(self) -> Stage | None:
        """Return the stage that a rollback leads to; None for the first."""
        position = ORDER.index(self)
        return ORDER[position - 1] if position else None

    @property
    def after(self) -> Stage | None:
        """Return the stage that follows; None for the last."""
        position = ORDER.index(self)
        return ORDER[position + 1] if position + 1 < len(ORDER) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """What a stage does with a new job.

    Attributes:
        copies: Which sides are written to, and what each copy is for. The first one is the preferred copy.
        fallback: The side that is written to only when the preferred write fails.
        needs_ledger: Whether two copies may run, so that only claims keep them from both taking effect.
        runs: Who runs the job, in words.
        write_fails: What happens when a write fails, in words.
        rollback: What going back to the stage above means, in words.
    """

    copies: Mapping[Side, Role]
    fallback: Side | None = None
    needs_ledger: bool = False
    runs: str
    write_fails: str
    rollback: str

    @property
    def preferred(self) -> Side:
        """Return the side that is expected to run the job."""
        return next(side for side, role in self.copies.items() if role is Role.PREFERRED)

    @property
    def other(self) -> Side | None:
        """Return the side of the safety or shadow copy; None if there is none."""
        return next((side for side, role in self.copies.items() if role is not Role.PREFERRED), None)


ORDER = tuple(Stage)

STAGES: Mapping[Stage, StagePlan] = MappingProxyType(
    {
        Stage.LEGACY: StagePlan(
            copies={Side.LEGACY: Role.PREFERRED},
            runs="legacy",
            write_fails="raised to the caller",
            rollback="-",
        ),
        Stage.SHADOW: StagePlan(
            copies={Side.LEGACY: Role.PREFERRED, Side.PUSH: Role.SHADOW},
            runs="legacy only; the push copy is verified, decoded, validated, compared and recorded, never run",
            write_fails="a failed push write is recorded, the caller is unaffected",
            rollback="no more shadow copies are written",
        ),
        Stage.DUAL: StagePlan(
            copies={Side.LEGACY: Role.PREFERRED, Side.PUSH: Role.SAFETY},
            needs_ledger=True,
            runs="legacy preferred; push is the safety copy",
            write_fails="one: recorded, the job runs on the other; both: raised, or spooled",
            rollback="shadow copies never run; jobs in flight still have their legacy copy",
        ),
        Stage.LIVE: StagePlan(
            copies={Side.PUSH: Role.PREFERRED, Side.LEGACY: Role.SAFETY},
            needs_ledger=True,
            runs="push preferred; legacy is the safety copy",
            write_fails="one: recorded, the job runs on the other; both: raised, or spooled",
            rollback="jobs in flight still have both copies",
        ),
        Stage.RAMPDOWN: StagePlan(
            copies={Side.PUSH: Role.PREFERRED},
            fallback=Side.LEGACY,
            runs="whoever has it; legacy workers drain",
            write_fails="falls back to legacy",
            rollback="push jobs in flight still arrive and run; new jobs get both copies again",
        ),
        Stage.PUSH: StagePlan(
            copies={Side.PUSH: Role.PREFERRED},
            runs="push",
            write_fails="raised, or spooled",
            rollback="new jobs get a fallback again",
        ),
    }
)


def side_of(backend: str) -> Side:
    """Return on which side of a migration a backend is."""
    return Side.PUSH if backend == PUSH_BACKEND else Side.LEGACY


def render_table() -> str:
    """Return the stages as a Markdown table."""
    rows = [
        ("stage", "written to", "runs the job", "if a write fails", "going back to the row above means"),
        ("---",) * 5,
    ]
    rows += [
        (f"`{stage.value}`", _written_to(plan), plan.runs, plan.write_fails, plan.rollback)
        for stage, plan in STAGES.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _written_to(plan: StagePlan) -> str:
    names = [
        side.value if role is Role.PREFERRED else f"{side.value} ({role.value} copy)"
        for side, role in plan.copies.items()
    ]
    text = " and ".join(names)
    if plan.fallback is not None:
        text += f"; {plan.fallback.value} only when that write fails"
    return text
