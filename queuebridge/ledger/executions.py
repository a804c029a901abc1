"""What the ledger knows of executions, for people: queries that change nothing."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from queuebridge.ledger.records import DeliveryRecord, Execution, State


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionFilter:
    """Which executions are wanted. What is None does not matter.

    Attributes:
        task: The name of the task.
        states: Any of these states; empty for all.
        stage: The stage by which it was written.
        since_ms, until_ms: Accepted in this time, in Unix milliseconds; `until_ms` is excluded.
    """

    task: str | None = None
    states: tuple[State, ...] = ()
    stage: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class ExecutionLog(abc.ABC):
    """Queries over dispatches. Each raises LedgerUnavailable if the store cannot be reached."""

    @abc.abstractmethod
    def get(self, dispatch_id: str) -> Execution | None:
        """Return one execution, None if the ledger does not know it."""

    @abc.abstractmethod
    def of_job(self, job_id: str) -> list[Execution]:
        """Return the executions of a job, the oldest first."""

    @abc.abstractmethod
    def recent(self, wanted: ExecutionFilter, *, limit: int) -> list[Execution]:
        """Return the executions that were accepted last, the newest first."""

    @abc.abstractmethod
    def deliveries(self, dispatch_ids: Sequence[str]) -> dict[str, list[DeliveryRecord]]:
        """Return the deliveries of dispatches, the oldest first; every id is a key."""

    @abc.abstractmethod
    def scan(self, wanted: ExecutionFilter, *, page: int = 1000) -> Iterator[Execution]:
        """Yield all executions in ascending order of acceptance, read in pages so that memory stays flat."""
