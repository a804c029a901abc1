"""What reconcile and housekeeping do: due checks, held copies, cancelling, kept bodies, purging."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, case, delete, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ColumnElement

from queuebridge.ledger import Due, State, WriteState
from queuebridge.storage.sql.claims import ENDED
from queuebridge.storage.sql.engine import NOW_MS, Database
from queuebridge.storage.sql.rows import SIDES, execution
from queuebridge.storage.sql.tables import CHECKED, FINISHED, NOT_DONE, deliveries, dispatches, payloads

_columns = dispatches.c
_UNSETTLED_STATES = [state.value for state in State if not state.settled]
# As a subquery, it is evaluated once; PostgreSQL could not look up a clock that ticks in an index.
_now_once = select(NOW_MS).scalar_subquery()

_DUE = (
    select(dispatches)
    .where(CHECKED, _columns.next_check_at_ms <= _now_once)
    .order_by(_columns.next_check_at_ms)
    # What another caller is just taking is passed over.
    .with_for_update(skip_locked=True)
)


def _clock(database: Database) -> dict[str, Any]:
    return {"offset_ms": database.clock_offset_ms()}


def take_due(database: Database, limit: int, lease_ms: int) -> list[Due]:
    """Give out unsettled dispatches whose check time has come; see `Ledger.take_due`."""
    with database.transaction() as connection:
        now_ms = connection.scalar(select(NOW_MS), _clock(database)) or 0
        rows = connection.execute(_DUE.limit(limit), _clock(database)).all()
        if not rows:
            return []
        next_check_at_ms = now_ms + lease_ms
        connection.execute(
            update(dispatches)
            .where(_columns.seq.in_([row.seq for row in rows]))
            .values(epoch=_columns.epoch + 1, next_check_at_ms=next_check_at_ms)
        )
    return [
        Due(
            execution=execution(row, epoch=row.epoch + 1, next_check_at_ms=next_check_at_ms),
            body=row.body or b"",
            epoch=row.epoch + 1,
            now_ms=now_ms,
        )
        for row in rows
    ]


def check_in(database: Database, dispatch_id: str, delay_ms: int | None) -> None:
    """Set the next check of an unsettled dispatch; see `Ledger.check_in`."""
    at = NOW_MS + bindparam("delay_ms", delay_ms, type_=BigInteger)
    change = (
        update(dispatches)
        .where(_columns.dispatch_id == dispatch_id, _columns.finished_at_ms.is_(None))
        .values(next_check_at_ms=at)
    )
    with database.connection() as connection:
        connection.execute(change, _clock(database))


def release_held(database: Database) -> int:
    """Make every held copy due now; see `Ledger.release_held`."""
    held = {side: _columns[f"{side}_state"] == WriteState.HELD.value for side in SIDES}
    values: dict[str, ColumnElement[Any]] = {
        f"{side}_due_at_ms": case((is_held, NOW_MS), else_=_columns[f"{side}_due_at_ms"])
        for side, is_held in held.items()
    }
    values["next_check_at_ms"] = case((_columns.state == State.ACCEPTED.value, NOW_MS), else_=_columns.next_check_at_ms)
    change = (
        update(dispatches)
        .where(_columns.state.in_(_UNSETTLED_STATES), NOT_DONE, or_(*held.values()))
        .values(values)
        .returning(sum((case((is_held, 1), else_=0) for is_held in held.values()), start=literal(0)))
    )
    with database.connection() as connection:
        return sum(connection.scalars(change, _clock(database)))


def cancel(database: Database, job_id: str) -> tuple[int, int]:
    """Settle as cancelled what of a job does not run; see `Ledger.cancel`."""
    of_job = (_columns.job_id == job_id, _columns.finished_at_ms.is_(None))
    # Only a dispatch that runs has a lease.
    idle = or_(_columns.lease_until_ms.is_(None), _columns.lease_until_ms <= NOW_MS)
    change = update(dispatches).where(*of_job, idle).values({**ENDED, "state": State.CANCELLED.value})
    with database.transaction() as connection:
        cancelled = connection.execute(change, _clock(database)).rowcount
        running = connection.scalar(select(func.count()).select_from(dispatches).where(*of_job)) or 0
        return cancelled, running


def withdraw(database: Database, dispatch_id: str) -> bool:
    """Forget a dispatch that was never written; see `Ledger.withdraw`."""
    this = _columns.dispatch_id == dispatch_id
    # With an epoch given out it is with reconcile, or was delivered.
    never_out = (_columns.state == State.ACCEPTED.value, _columns.epoch == 0)
    with database.transaction() as connection:
        if connection.execute(delete(dispatches).where(this, *never_out)).rowcount:
            connection.execute(delete(deliveries).where(deliveries.c.dispatch_id == dispatch_id))
            return True
        return connection.scalar(select(_columns.dispatch_id).where(this)) is None


def put_payload(database: Database, key: str, body: bytes, keep_ms: int) -> None:
    """Keep a body; see `Ledger.put_payload`."""
    kept_until = NOW_MS + bindparam("keep_ms", keep_ms, type_=BigInteger)
    adding: Any = (postgresql if database.is_postgresql else sqlite).insert(payloads)
    adding = adding.values(key=key, body=body, keep_until_ms=kept_until)
    longer = adding.excluded.keep_until_ms
    kept = payloads.c.keep_until_ms
    keep = adding.on_conflict_do_update(
        index_elements=[payloads.c.key], set_={"keep_until_ms": case((kept > longer, kept), else_=longer)}
    )
    with database.connection() as connection:
        connection.execute(keep, _clock(database))


def get_payload(database: Database, key: str) -> bytes | None:
    """Return a kept body; see `Ledger.get_payload`."""
    with database.connection() as connection:
        body = connection.scalar(select(payloads.c.body).where(payloads.c.key == key))
        return None if body is None else bytes(body)


def purge(database: Database, settled_before_ms: int, limit: int) -> int:
    """Forget what was settled before a time; see `Ledger.purge`."""
    with database.transaction() as connection:
        rows = connection.execute(
            select(_columns.seq, _columns.dispatch_id)
            .where(FINISHED, _columns.finished_at_ms < settled_before_ms)
            .order_by(_columns.finished_at_ms)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if rows:
            connection.execute(
                delete(deliveries).where(deliveries.c.dispatch_id.in_([row.dispatch_id for row in rows]))
            )
            connection.execute(delete(dispatches).where(_columns.seq.in_([row.seq for row in rows])))
        _purge_payloads(connection, database, limit)
    return len(rows)


def _purge_payloads(connection: Connection, database: Database, limit: int) -> None:
    outdated = select(payloads.c.key).where(payloads.c.keep_until_ms < _now_once).limit(limit)
    connection.execute(delete(payloads).where(payloads.c.key.in_(outdated)), _clock(database))
