"""Claims: who may run a dispatch, and how it ends."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Integer,
    String,
    and_,
    bindparam,
    case,
    func,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql import ColumnElement

from queuebridge.ledger import (
    Busy,
    Claim,
    ClaimRequest,
    DeliveryOutcome,
    Granted,
    Settled,
    Settlement,
    State,
)
from queuebridge.storage.sql import records
from queuebridge.storage.sql.engine import NOW_MS, NOW_US, Database, transaction_on
from queuebridge.storage.sql.rows import AnyRow, startable_at_ms
from queuebridge.storage.sql.tables import Words, deliveries, dispatches

_OUTCOMES = {
    Granted: DeliveryOutcome.GRANTED,
    Busy: DeliveryOutcome.BUSY,
    Settled: DeliveryOutcome.SUPPRESSED,
}

_UNSETTLED = dispatches.c.finished_at_ms.is_(None)
_IS_IT = dispatches.c.dispatch_id == bindparam("wanted_id", type_=String)
_HOLDS_IT = dispatches.c.token == bindparam("held_token", type_=BigInteger)

# What every end of a dispatch sets.
ENDED: dict[str, Any] = {
    "finished_at_ms": NOW_MS,
    "lease_until_ms": None,
    "retry_at_ms": None,
    "next_check_at_ms": None,
    "body": None,
}


def claim(database: Database, request: ClaimRequest, grace_ms: int) -> Claim:
    """Ask for the right to run a dispatch; see `Ledger.claim`."""
    with database.connection() as connection:
        if database.is_postgresql:
            granted = connection.execute(_grant_at_once(), _values(database, request, grace_ms)).one_or_none()
            if granted is not None:
                return Granted(token=granted.token, attempt=granted.attempts, now_ms=granted.started_at_ms)
        with transaction_on(connection):
            return _claim(connection, database, request, grace_ms)


def _values(database: Database, request: ClaimRequest, grace_ms: int) -> dict[str, Any]:
    return {
        "wanted_id": request.dispatch_id,
        "new_owner": request.owner,
        "lease_ms": request.lease_ms,
        "grace_ms": grace_ms,
        "new_digest": request.digest,
        "by_backend": request.backend,
        "by_message_id": request.message_id,
        "by_side": request.side and request.side.value,
        "by_role": request.role and request.role.value,
        "startable_at_ms": startable_at_ms(request),
        "offset_ms": database.clock_offset_ms(),
    }


@cache
def _grant_at_once() -> Executable:
    """Return the one statement, for PostgreSQL, that grants a claim and records the delivery, if it may be granted.

    A concurrent claim of the same row makes it wait, and look at the row again as the other has left it.
    """
    columns = dispatches.c
    lease_until = NOW_MS + bindparam("lease_ms", type_=BigInteger)
    backend, role = bindparam("by_backend", type_=String), bindparam("by_role", type_=String)
    granted = (
        update(dispatches)
        .where(
            _IS_IT,
            _UNSETTLED,
            columns.attempts < columns.max_attempts,
            or_(columns.expires_at_ms.is_(None), columns.expires_at_ms >= NOW_MS),
            or_(columns.lease_until_ms.is_(None), columns.lease_until_ms <= NOW_MS),
            or_(columns.retry_at_ms.is_(None), columns.retry_at_ms <= NOW_MS),
        )
        .values(
            state=State.RUNNING.value,
            attempts=columns.attempts + 1,
            token=func.greatest(columns.token + 1, NOW_US),
            owner=bindparam("new_owner", type_=Words),
            lease_until_ms=lease_until,
            next_check_at_ms=lease_until + bindparam("grace_ms", type_=BigInteger),
            retry_at_ms=None,
            started_at_ms=NOW_MS,
            executed_by=backend,
            executed_role=role,
            digest=bindparam("new_digest", type_=String),
        )
        .returning(columns.dispatch_id, columns.token, columns.attempts, columns.started_at_ms)
        .cte("granted")
    )
    noted: dict[str, ColumnElement[Any]] = {
        "dispatch_id": granted.c.dispatch_id,
        "backend": backend,
        "message_id": bindparam("by_message_id", type_=String),
        "side": bindparam("by_side", type_=String),
        "role": role,
        "at_ms": granted.c.started_at_ms,
        "lag_ms": granted.c.started_at_ms - bindparam("startable_at_ms", type_=BigInteger),
        "outcome": bindparam("granted_outcome", DeliveryOutcome.GRANTED.value, type_=String),
        "attempt": granted.c.attempts,
    }
    delivery = insert(deliveries).from_select(list(noted), select(*noted.values())).cte("delivery")
    return select(granted.c.token, granted.c.attempts, granted.c.started_at_ms).add_cte(delivery)


_LOCKED = (
    select(
        *(dispatches.c[name] for name in ("seq", "state", "attempts", "max_attempts", "epoch", "token", "owner")),
        *(dispatches.c[name] for name in ("lease_until_ms", "retry_at_ms", "expires_at_ms")),
        NOW_US.label("now_us"),
    )
    .where(_IS_IT)
    .with_for_update()
)
_CHANGE = update(dispatches).where(dispatches.c.seq == bindparam("locked_seq", type_=BigInteger))


def _claim(connection: Connection, database: Database, request: ClaimRequest, grace_ms: int) -> Claim:
    """Decide about a claim while nobody else can."""
    row = _locked(connection, database, request.dispatch_id)
    if row is None:
        records.add(connection, database, request)
        # Somebody else may have added it at the same time: only what is in the table counts.
        row = _locked(connection, database, request.dispatch_id)
    if row is None:
        raise AssertionError("A dispatch that was added in this transaction is gone.")
    now_ms = row.now_us // 1000
    answer, changes = _decide(row, request, grace_ms)
    if changes:
        connection.execute(_CHANGE, {**changes, "locked_seq": row.seq})
    delivery = {
        "dispatch_id": request.dispatch_id,
        "backend": request.backend,
        "message_id": request.message_id,
        "side": request.side and request.side.value,
        "role": request.role and request.role.value,
        "at_ms": now_ms,
        "lag_ms": now_ms - startable_at_ms(request),
        "outcome": _OUTCOMES[type(answer)].value,
        "attempt": answer.attempt if isinstance(answer, Granted) else None,
    }
    connection.execute(insert(deliveries), delivery)
    return answer


def _locked(connection: Connection, database: Database, dispatch_id: str) -> AnyRow | None:
    values = {"wanted_id": dispatch_id, "offset_ms": database.clock_offset_ms()}
    return connection.execute(_LOCKED, values).one_or_none()


def _decide(row: AnyRow, request: ClaimRequest, grace_ms: int) -> tuple[Claim, dict[str, Any]]:
    """Return the answer to a claim, and what changes in the dispatch."""
    state, now_ms = State(row.state), row.now_us // 1000
    if state.settled:
        return Settled(state=state, owner=row.owner), {}
    runs = row.lease_until_ms is not None and now_ms < row.lease_until_ms
    if not runs and row.expires_at_ms is not None and now_ms > row.expires_at_ms:
        return _end(row, State.EXPIRED, now_ms)
    until_ms = row.lease_until_ms if runs else row.retry_at_ms
    if until_ms is not None and now_ms < until_ms:
        epoch = row.epoch + 1
        return Busy(until_ms=until_ms, now_ms=now_ms, epoch=epoch), {"epoch": epoch}
    if row.attempts >= row.max_attempts:
        return _end(row, State.QUARANTINED, now_ms)
    granted = Granted(token=max(row.token + 1, row.now_us), attempt=row.attempts + 1, now_ms=now_ms)
    return granted, {
        "state": State.RUNNING.value,
        "attempts": granted.attempt,
        "token": granted.token,
        "owner": request.owner,
        "lease_until_ms": now_ms + request.lease_ms,
        "next_check_at_ms": now_ms + request.lease_ms + grace_ms,
        "retry_at_ms": None,
        "started_at_ms": now_ms,
        "executed_by": request.backend,
        "executed_role": request.role and request.role.value,
        "digest": request.digest,
    }


def _end(row: AnyRow, state: State, now_ms: int) -> tuple[Claim, dict[str, Any]]:
    return (
        Settled(state=state, first=True, owner=row.owner),
        {**ENDED, "state": state.value, "finished_at_ms": now_ms},
    )


_lease_until = NOW_MS + bindparam("lease_ms", type_=BigInteger)
_RENEW = (
    update(dispatches)
    .where(_IS_IT, _HOLDS_IT, dispatches.c.state == State.RUNNING.value)
    .values(
        lease_until_ms=_lease_until,
        next_check_at_ms=_lease_until + bindparam("grace_ms", type_=BigInteger),
    )
)
_SETTLE = (
    update(dispatches)
    .where(_IS_IT, _HOLDS_IT, dispatches.c.state.in_([State.RUNNING.value, State.WAITING.value]))
    .values(
        **ENDED,
        state=bindparam("new_state", type_=String),
        settled_by=bindparam("held_token", type_=BigInteger),
        result=bindparam("new_result", type_=Words),
        error=bindparam("new_error", type_=Words),
        traceback=bindparam("new_traceback", type_=Words),
    )
)
_retry_at = NOW_MS + bindparam("retry_in_ms", type_=BigInteger)
_RELEASE = (
    update(dispatches)
    .where(_IS_IT, _HOLDS_IT, dispatches.c.state == State.RUNNING.value)
    .values(
        state=State.WAITING.value,
        lease_until_ms=null(),
        retry_at_ms=_retry_at,
        next_check_at_ms=_retry_at + bindparam("grace_ms", type_=BigInteger),
        error=bindparam("new_error", type_=Words),
        traceback=bindparam("new_traceback", type_=Words),
    )
)


def _count_as_stale(same: ColumnElement[bool]) -> Any:
    """Return the statement that counts a refused act, unless it has been done before: `same` says so."""
    stale = dispatches.c.stale_settles
    return (
        update(dispatches)
        .where(_IS_IT)
        .values(stale_settles=stale + case((same, 0), else_=1).cast(Integer))
        .returning(case((same, 1), else_=0))
    )


_NOT_SETTLED = _count_as_stale(
    and_(
        func.coalesce(dispatches.c.settled_by, -1) == bindparam("held_token", type_=BigInteger),
        dispatches.c.state == bindparam("new_state", type_=String),
    )
)
_NOT_RELEASED = _count_as_stale(and_(_HOLDS_IT, dispatches.c.state == State.WAITING.value))


def renew(database: Database, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
    """Extend a claim; see `Ledger.renew`."""
    values = {
        "wanted_id": dispatch_id,
        "held_token": token,
        "lease_ms": lease_ms,
        "grace_ms": grace_ms,
        "offset_ms": database.clock_offset_ms(),
    }
    with database.connection() as connection:
        return connection.execute(_RENEW, values).rowcount == 1


def settle(database: Database, dispatch_id: str, token: int, settlement: Settlement) -> bool:
    """Record the end of a dispatch; see `Ledger.settle`."""
    values = {
        "wanted_id": dispatch_id,
        "held_token": token,
        "new_state": settlement.state.value,
        "new_result": settlement.result,
        "new_error": settlement.error,
        "new_traceback": settlement.traceback,
        "offset_ms": database.clock_offset_ms(),
    }
    return _change(database, _SETTLE, _NOT_SETTLED, values, ("wanted_id", "held_token", "new_state"))


def release(
    database: Database,
    dispatch_id: str,
    token: int,
    *,
    retry_in_ms: int,
    grace_ms: int,
    error: str,
    traceback: str | None,
) -> bool:
    """End a failed attempt that will be retried; see `Ledger.release`."""
    values = {
        "wanted_id": dispatch_id,
        "held_token": token,
        "retry_in_ms": retry_in_ms,
        "grace_ms": grace_ms,
        "new_error": error,
        "new_traceback": traceback,
        "offset_ms": database.clock_offset_ms(),
    }
    return _change(database, _RELEASE, _NOT_RELEASED, values, ("wanted_id", "held_token"))


def _change(database: Database, change: Any, refused: Any, values: dict[str, Any], needed: tuple[str, ...]) -> bool:
    """Do a change that only the holder of the claim may do; whoever may not is counted.

    What the first statement refuses it refuses for ever, so that the second one need not be in the same transaction:
    tokens grow, and an end stays.
    """
    with database.connection() as connection:
        if connection.execute(change, values).rowcount == 1:
            return True
        return bool(connection.scalar(refused, {name: values[name] for name in needed}))
