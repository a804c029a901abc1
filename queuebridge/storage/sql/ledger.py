"""The ledger in a SQL database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import select

from queuebridge.ledger import (
    Claim,
    ClaimRequest,
    Due,
    Ledger,
    NewDispatch,
    Recorded,
    Settlement,
    ShadowNote,
    WriteMark,
)
from queuebridge.storage.sql import claims, records, upkeep
from queuebridge.storage.sql.engine import NOW_MS, Database, describe, mapped_errors, parse_url
from queuebridge.storage.sql.executions import SqlExecutions
from queuebridge.storage.sql.stages import SqlStages
from queuebridge.storage.sql.tables import SCHEMA_REVISION
from queuebridge.storage.sql.transactions import Target, connection_of, on_commit
from queuebridge.storage.sql.upgrade import schema_problem


def _no_offset() -> int:
    return 0


class SqlLedger(Ledger):
    """A ledger in SQLite, for one machine, or PostgreSQL.

    On the happy path, `record` of one dispatch, `mark` of one, `claim`, `renew`, `settle` and `release` are one
    statement each, which is its own transaction: one round trip.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.executions = SqlExecutions(database)
        self.stages = SqlStages(database)

    @classmethod
    def from_url(cls, url: str, *, clock_offset_ms: Callable[[], int] = _no_offset) -> SqlLedger:
        """Return the ledger at `sqlite:///path` or `postgresql://...`. Nothing is opened yet.

        Args:
            url: The address. PostgreSQL is reached through psycopg 3.
            clock_offset_ms: Returns what is added to the store's clock; for tests.

        Raises:
            ConfigurationError: The address is none of these.
        """
        return cls(Database(parse_url(url), check=schema_problem, clock_offset_ms=clock_offset_ms))

    def record(self, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        scope = self._database.connection if len(dispatches) == 1 else self._database.transaction
        with scope() as connection:
            return records.record(connection, self._database, dispatches)

    def record_on(self, target: Target, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        """Record dispatches in the caller's own transaction: they exist exactly if it commits.

        Args:
            target: A connection to, or a session of, the database that the ledger is in. It is not committed here.
            dispatches: As for `record`.

        Raises:
            ConfigurationError: The database has no ledger's schema.
            LedgerUnavailable: It fails; the caller's transaction has to be rolled back.
        """
        with mapped_errors():
            return records.record(connection_of(target), self._database, dispatches)

    def on_commit(self, target: Target, act: Callable[[], bool]) -> bool:
        """Have `act` called after the caller's transaction; see `transactions.on_commit`."""
        return on_commit(target, act)

    def mark(self, marks: Sequence[WriteMark], *, check_in_ms: int | None = None) -> None:
        steps = records.mark_steps(self._database, marks, check_in_ms)
        scope = self._database.connection if len(steps) == 1 else self._database.transaction
        with scope() as connection:
            records.mark(connection, steps)

    def claim(self, request: ClaimRequest, *, grace_ms: int) -> Claim:
        return claims.claim(self._database, request, grace_ms)

    def renew(self, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
        return claims.renew(self._database, dispatch_id, token, lease_ms=lease_ms, grace_ms=grace_ms)

    def settle(self, dispatch_id: str, token: int, settlement: Settlement) -> bool:
        return claims.settle(self._database, dispatch_id, token, settlement)

    def release(
        self, dispatch_id: str, token: int, *, retry_in_ms: int, grace_ms: int, error: str, traceback: str | None
    ) -> bool:
        return claims.release(
            self._database,
            dispatch_id,
            token,
            retry_in_ms=retry_in_ms,
            grace_ms=grace_ms,
            error=error,
            traceback=traceback,
        )

    def note_shadow(self, note: ShadowNote) -> None:
        with self._database.transaction() as connection:
            records.note_shadow(connection, self._database, note)

    def cancel(self, job_id: str) -> tuple[int, int]:
        return upkeep.cancel(self._database, job_id)

    def withdraw(self, dispatch_id: str) -> bool:
        return upkeep.withdraw(self._database, dispatch_id)

    def take_due(self, limit: int, *, lease_ms: int) -> list[Due]:
        return upkeep.take_due(self._database, limit, lease_ms)

    def check_in(self, dispatch_id: str, delay_ms: int | None) -> None:
        upkeep.check_in(self._database, dispatch_id, delay_ms)

    def release_held(self) -> int:
        return upkeep.release_held(self._database)

    def put_payload(self, key: str, body: bytes, *, keep_ms: int) -> None:
        upkeep.put_payload(self._database, key, body, keep_ms)

    def get_payload(self, key: str) -> bytes | None:
        return upkeep.get_payload(self._database, key)

    def purge(self, *, settled_before_ms: int, limit: int) -> int:
        return upkeep.purge(self._database, settled_before_ms, limit)

    def now_ms(self) -> int:
        with self._database.connection() as connection:
            return connection.execute(select(NOW_MS), {"offset_ms": self._database.clock_offset_ms()}).scalar_one()

    def ping(self) -> str:
        with self._database.connection() as connection:
            connection.execute(select(NOW_MS), {"offset_ms": 0})
        return f"{describe(self._database.url)}, schema {SCHEMA_REVISION}"

    def close(self) -> None:
        self._database.close()
