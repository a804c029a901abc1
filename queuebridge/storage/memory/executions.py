"""Queries over the memory ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, ExecutionLog
from queuebridge.storage.memory.rows import Row, Tables


class MemoryExecutions(ExecutionLog):
    """What a memory ledger knows of executions."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(self, dispatch_id: str) -> Execution | None:
        with self._tables.lock:
            row = self._tables.rows.get(dispatch_id)
            return None if row is None else row.execution()

    def of_job(self, job_id: str) -> list[Execution]:
        with self._tables.lock:
            return [row.execution() for row in self._tables.jobs.get(job_id, {}).values()]

    def recent(self, wanted: ExecutionFilter, *, limit: int) -> list[Execution]:
        with self._tables.lock:
            found = (row for row in reversed(self._tables.rows.values()) if _fits(row, wanted))
            return [row.execution() for row in islice(found, limit)]

    def deliveries(self, dispatch_ids: Sequence[str]) -> dict[str, list[DeliveryRecord]]:
        with self._tables.lock:
            rows = {dispatch_id: self._tables.rows.get(dispatch_id) for dispatch_id in dispatch_ids}
            return {dispatch_id: list(row.deliveries) if row else [] for dispatch_id, row in rows.items()}

    def scan(self, wanted: ExecutionFilter, *, page: int = 1000) -> Iterator[Execution]:
        with self._tables.lock:
            dispatch_ids = list(self._tables.rows)
        # The lock is not held while the caller works on a page.
        for start in range(0, len(dispatch_ids), page):
            with self._tables.lock:
                rows = (self._tables.rows.get(dispatch_id) for dispatch_id in dispatch_ids[start : start + page])
                found = [row.execution() for row in rows if row is not None and _fits(row, wanted)]
            yield from found


def _fits(row: Row, wanted: ExecutionFilter) -> bool:
    return (
        (wanted.task is None or row.task == wanted.task)
        and (not wanted.states or row.state in wanted.states)
        and (wanted.stage is None or row.stage == wanted.stage)
        and (wanted.since_ms is None or row.accepted_at_ms >= wanted.since_ms)
        and (wanted.until_ms is None or row.accepted_at_ms < wanted.until_ms)
    )
