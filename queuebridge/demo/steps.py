"""The way of the demo through the stages, and how the files are divided over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from queuebridge.stages import Stage

# What chaos hits.
RECEIVER, WORKER, SERVER = "receiver", "worker", "server"
_FEWEST = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One part of the migration.

    Attributes:
        name: What it is called; the way leads twice through two of the stages.
        stage: The stage.
        in_flight: Whether the change to it happens while jobs are being enqueued.
        chaos: What may be killed meanwhile. Not the worker while only the old backend has the jobs: what a library
            loses with its worker, nobody else can bring again. Not the server in stage `push`, which knows no other
            way and has to refuse jobs then.
    """

    name: str
    stage: Stage
    in_flight: bool = False
    chaos: tuple[str, ...] = ()


STEPS: tuple[Step, ...] = (
    Step(name="legacy", stage=Stage.LEGACY),
    Step(name="shadow", stage=Stage.SHADOW, chaos=(RECEIVER, SERVER)),
    Step(name="dual", stage=Stage.DUAL, chaos=(RECEIVER, WORKER, SERVER)),
    Step(name="live", stage=Stage.LIVE, chaos=(RECEIVER, WORKER, SERVER)),
    Step(name="rollback", stage=Stage.LEGACY, in_flight=True, chaos=(RECEIVER,)),
    Step(name="live again", stage=Stage.LIVE, chaos=(RECEIVER, WORKER, SERVER)),
    Step(name="rampdown", stage=Stage.RAMPDOWN, chaos=(RECEIVER, WORKER, SERVER)),
    Step(name="push", stage=Stage.PUSH, chaos=(RECEIVER,)),
)


def divide(files: Sequence[Path]) -> list[list[Path]]:
    """Return the files of each step: all of them once, or several times if there are too few."""
    enough = list(files)
    while len(enough) < _FEWEST * len(STEPS):
        enough += files
    return [enough[position :: len(STEPS)] for position in range(len(STEPS))]


def step_of(current: int, stage: str | None) -> int:
    """Return the step that a job belongs to which was written by `stage` while the step `current` sends.

    Around a change in flight, this may be a neighbour.
    """
    for position in (current, current - 1, current + 1):
        if 0 <= position < len(STEPS) and STEPS[position].stage.value == stage:
            return position
    return current
