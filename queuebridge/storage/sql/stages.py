"""Stage settings in SQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, bindparam, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from queuebridge.errors import RevisionConflict
from queuebridge.ledger import ProcessSeen, Revision, StageStore
from queuebridge.storage.sql.engine import NOW_MS, Database
from queuebridge.storage.sql.rows import AnyRow
from queuebridge.storage.sql.tables import Words, processes, revisions

_NEWEST_FIRST = select(revisions).order_by(revisions.c.number.desc())
_LATEST_NUMBER = select(func.coalesce(func.max(revisions.c.number), 0)).scalar_subquery()


class SqlStages(StageStore):
    """The stage settings of a SQL ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def current(self) -> Revision | None:
        with self._database.connection() as connection:
            return _latest(connection)

    def add(self, settings: str, *, after: int, author: str, reason: str, forced: bool = False) -> Revision:
        columns = revisions.c
        values = select(
            literal(after + 1, Integer),
            literal(settings, Words),
            literal(author, Words),
            literal(reason, Words),
            literal(forced),
            NOW_MS,
        ).where(_LATEST_NUMBER == after)  # noqa: SIM300
        # Of two that both see `after` as the latest, the key lets only one in.
        adding = (
            self._insert(revisions)
            .from_select(
                [columns.number, columns.settings, columns.author, columns.reason, columns.forced, columns.at_ms],
                values,
            )
            .on_conflict_do_nothing(index_elements=[columns.number])
            .returning(*columns)
        )
        with self._database.connection() as connection:
            added = connection.execute(adding, self._clock()).one_or_none()
            if added is None:
                raise RevisionConflict(after, connection.scalar(select(_LATEST_NUMBER)) or 0)
            return _revision(added)

    def history(self, limit: int) -> list[Revision]:
        with self._database.connection() as connection:
            return [_revision(row) for row in connection.execute(_NEWEST_FIRST.limit(limit))]

    def report_process(self, process_id: str, kind: str, revision: int) -> Revision | None:
        adding = self._insert(processes).values(process_id=process_id, kind=kind, revision=revision, seen_at_ms=NOW_MS)
        report = adding.on_conflict_do_update(
            index_elements=[processes.c.process_id],
            set_={name: adding.excluded[name] for name in ("kind", "revision", "seen_at_ms")},
        )
        with self._database.connection() as connection:
            if self._database.is_postgresql:
                both = _NEWEST_FIRST.limit(1).add_cte(report.cte("report"))
                row = connection.execute(both, self._clock()).one_or_none()
                return None if row is None else _revision(row)
            connection.execute(report, self._clock())
            return _latest(connection)

    def forget_process(self, process_id: str) -> None:
        with self._database.connection() as connection:
            connection.execute(delete(processes).where(processes.c.process_id == process_id))

    def processes(self, *, within_ms: int) -> list[ProcessSeen]:
        oldest = NOW_MS - bindparam("within_ms", within_ms, type_=BigInteger)
        with self._database.transaction() as connection:
            connection.execute(delete(processes).where(processes.c.seen_at_ms < oldest), self._clock())
            rows = connection.execute(select(processes).order_by(processes.c.seen_at_ms.desc()))
            return [ProcessSeen(**row._mapping) for row in rows]

    def _insert(self, table: Any) -> Any:
        return (postgresql if self._database.is_postgresql else sqlite).insert(table)

    def _clock(self) -> dict[str, int]:
        return {"offset_ms": self._database.clock_offset_ms()}


def _latest(connection: Connection) -> Revision | None:
    row = connection.execute(_NEWEST_FIRST.limit(1)).one_or_none()
    return None if row is None else _revision(row)


def _revision(row: AnyRow) -> Revision:
    return Revision(**row._mapping)
