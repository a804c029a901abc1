"""Queries over executions in SQL."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, select, tuple_, union_all

from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, ExecutionLog, State
from queuebridge.storage.sql.engine import Database
from queuebridge.storage.sql.rows import EXECUTION_COLUMNS, AnyRow, delivery, execution
from queuebridge.storage.sql.tables import NOT_DONE, deliveries, dispatches

# What fits into one list of parameters on every database.
_IDS_AT_ONCE = 500

_columns = dispatches.c
_EXECUTIONS = select(*EXECUTION_COLUMNS)


class SqlExecutions(ExecutionLog):
    """What a SQL ledger knows of executions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, dispatch_id: str) -> Execution | None:
        with self._database.connection() as connection:
            row = connection.execute(_EXECUTIONS.where(_columns.dispatch_id == dispatch_id)).one_or_none()
            return None if row is None else execution(row)

    def of_job(self, job_id: str) -> list[Execution]:
        wanted = _EXECUTIONS.where(_columns.job_id == job_id).order_by(_columns.accepted_at_ms, _columns.seq)
        return self._read(wanted)

    def recent(self, wanted: ExecutionFilter, *, limit: int) -> list[Execution]:
        newest_first = (_columns.accepted_at_ms.desc(), _columns.seq.desc())
        if not wanted.states:
            return self._read(_where(_EXECUTIONS, wanted).order_by(*newest_first).limit(limit))
        # Each state has a range of its own in the index; in one query with IN, all of them would have to be sorted.
        parts = [
            select(_of_state(state, wanted).order_by(*newest_first).limit(limit).subquery())
            for state in dict.fromkeys(wanted.states)
        ]
        found = union_all(*parts).subquery()
        return self._read(select(found).order_by(found.c.accepted_at_ms.desc(), found.c.seq.desc()).limit(limit))

    def deliveries(self, dispatch_ids: Sequence[str]) -> dict[str, list[DeliveryRecord]]:
        found: dict[str, list[DeliveryRecord]] = {dispatch_id: [] for dispatch_id in dispatch_ids}
        ids = list(found)
        with self._database.connection() as connection:
            for start in range(0, len(ids), _IDS_AT_ONCE):
                wanted = (
                    select(deliveries)
                    .where(deliveries.c.dispatch_id.in_(ids[start : start + _IDS_AT_ONCE]))
                    .order_by(deliveries.c.dispatch_id, deliveries.c.id)
                )
                for row in connection.execute(wanted):
                    found[row.dispatch_id].append(delivery(row))
        return found

    def scan(self, wanted: ExecutionFilter, *, page: int = 1000) -> Iterator[Execution]:
        if wanted.states:
            # As in `recent`: each state in the order of its own range in the index.
            queries = [_of_state(state, wanted) for state in dict.fromkeys(wanted.states)]
        else:
            queries = [_where(_EXECUTIONS, wanted)]
        pages = [self._pages(query, page) for query in queries]
        return map(execution, heapq.merge(*pages, key=lambda row: (row.accepted_at_ms, row.seq)))

    def _pages(self, query: Select[Any], page: int) -> Iterator[AnyRow]:
        """Yield the rows of a query in order of acceptance; between pages, nothing is held open."""
        place = (_columns.accepted_at_ms, _columns.seq)
        query = query.order_by(*place).limit(page)
        after = query
        while True:
            with self._database.connection() as connection:
                rows = connection.execute(after).all()
            yield from rows
            if len(rows) < page:
                return
            after = query.where(tuple_(*place) > (rows[-1].accepted_at_ms, rows[-1].seq))

    def _read(self, query: Any) -> list[Execution]:
        with self._database.connection() as connection:
            return [execution(row) for row in connection.execute(query)]


def _of_state(state: State, wanted: ExecutionFilter) -> Select[Any]:
    query = _where(_EXECUTIONS, wanted).where(_columns.state == state.value)
    return query if state is State.DONE else query.where(NOT_DONE)


def _where(query: Select[Any], wanted: ExecutionFilter) -> Select[Any]:
    """Add the conditions of a filter, but for the states."""
    if wanted.task is not None:
        query = query.where(_columns.task == wanted.task)
    if wanted.stage is not None:
        query = query.where(_columns.stage == wanted.stage)
    if wanted.since_ms is not None:
        query = query.where(_columns.accepted_at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        query = query.where(_columns.accepted_at_ms < wanted.until_ms)
    return query
