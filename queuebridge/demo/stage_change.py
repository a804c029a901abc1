"""Changes of the stage, made with the commands that a user would take."""

from __future__ import annotations

from dataclasses import dataclass

from queuebridge.ledger import Ledger
from queuebridge.processes import Child, ProcessFailed
from queuebridge.stages import Stage

# Processes that reported longer ago may be gone.
_ALIVE_MS = 10_000
_PRODUCER = "producer"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChange:
    """One change.

    Attributes:
        arguments: Of the command `queuebridge`.
    """

    arguments: tuple[str, ...]

    @classmethod
    def to(cls, stage: Stage) -> StageChange:
        """Return the change to a stage."""
        return cls(arguments=("stage", "set", stage.value, "--yes", "--author", "demo", "--reason", "the next step"))

    @classmethod
    def back_to(cls, stage: Stage) -> StageChange:
        """Return the rollback to a stage."""
        return cls(arguments=("rollback", "--to", stage.value, "--author", "demo", "--reason", "to show that it works"))

    def check(self, child: Child) -> None:
        """Raise if the command failed.

        Raises:
            ProcessFailed: It did.
        """
        if child.process.poll() != 0:
            raise ProcessFailed(f"`queuebridge {' '.join(self.arguments)}` failed:\n{child.tail()}")

    def is_in_force(self, ledger: Ledger) -> bool:
        """Return whether every producer goes by the latest revision."""
        latest = ledger.stages.current()
        producers = [one for one in ledger.stages.processes(within_ms=_ALIVE_MS) if one.kind == _PRODUCER]
        return latest is not None and bool(producers) and all(one.revision >= latest.number for one in producers)
