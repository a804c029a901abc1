"""Between rows of the tables and what the ledger's port speaks of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from queuebridge.ledger import (
    ClaimRequest,
    Copy,
    DeliveryOutcome,
    DeliveryRecord,
    DispatchFacts,
    Execution,
    ShadowNote,
    State,
    WriteState,
)
from queuebridge.stages import Role, Side
from queuebridge.storage.sql.tables import dispatches

# SQLAlchemy 2.0 and 2.1 do not agree on what a row is generic in.
AnyRow: TypeAlias = Any

COPY_FIELDS = ("backend", "role", "state", "due_at_ms", "message_id", "error")
SIDES = tuple(side.value for side in Side)
COPY_COLUMNS = (
    dispatches.c.first_side,
    *(dispatches.c[f"{side}_{field}"] for side in SIDES for field in COPY_FIELDS),
)
# The body can be large, and people do not see it.
EXECUTION_COLUMNS = tuple(column for column in dispatches.c if column.name != "body")

_PLAIN = (
    *("dispatch_id", "job_id", "task", "queue", "stage", "attempts", "max_attempts", "epoch", "token", "owner"),
    *("lease_until_ms", "retry_at_ms", "deadline_ms", "enqueued_at_ms", "not_before_ms", "expires_at_ms"),
    *("accepted_at_ms", "started_at_ms", "finished_at_ms", "executed_by", "payload", "user_id", "organization_id"),
    *("result", "error", "traceback", "stale_settles", "digest", "next_check_at_ms"),
)


def execution(row: AnyRow, **changed: Any) -> Execution:
    """Return a dispatch as people see it, with some fields as they have become since the row was read."""
    values = row._mapping
    role = values["executed_role"]
    fields = {name: values[name] for name in _PLAIN}
    fields.update(
        state=State(values["state"]),
        copies=copies(row),
        executed_role=None if role is None else Role(role),
    )
    return Execution(**{**fields, **changed})


def copies(row: AnyRow) -> tuple[Copy, ...]:
    """Return the copies of a dispatch, in the order in which they were recorded."""
    values = row._mapping
    found = [
        Copy(
            side=Side(side),
            backend=values[f"{side}_backend"],
            role=Role(values[f"{side}_role"]),
            state=WriteState(values[f"{side}_state"]),
            due_at_ms=values[f"{side}_due_at_ms"],
            message_id=values[f"{side}_message_id"],
            error=values[f"{side}_error"],
        )
        for side in SIDES
        if values[f"{side}_state"] is not None
    ]
    return tuple(sorted(found, key=lambda copy: copy.side.value != values["first_side"]))


def copy_values(planned: Iterable[Copy]) -> dict[str, Any]:
    """Return the columns for copies; those of a side without a copy are None."""
    by_side = {copy.side.value: copy for copy in planned}
    values: dict[str, Any] = {"first_side": next(iter(by_side), None)}
    for side in SIDES:
        copy = by_side.get(side)
        values[f"{side}_backend"] = copy and copy.backend
        values[f"{side}_role"] = copy and copy.role.value
        values[f"{side}_state"] = copy and copy.state.value
        values[f"{side}_due_at_ms"] = copy and copy.due_at_ms
        values[f"{side}_message_id"] = copy and copy.message_id
        values[f"{side}_error"] = copy and copy.error
    return values


def held_until_ms(planned: Iterable[Copy]) -> int | None:
    """Return when the first of the held copies is due; None if there is none."""
    return min(
        (copy.due_at_ms for copy in planned if copy.state is WriteState.HELD and copy.due_at_ms is not None),
        default=None,
    )


def new_values(source: DispatchFacts) -> dict[str, Any]:
    """Return the columns of a dispatch that the ledger has not seen, but for copies and the ledger's own times."""
    return {
        "dispatch_id": source.dispatch_id,
        "job_id": source.job_id,
        "task": source.task,
        "queue": source.queue,
        "stage": source.stage,
        "max_attempts": source.max_attempts,
        "enqueued_at_ms": source.enqueued_at_ms,
        "not_before_ms": source.not_before_ms,
        "expires_at_ms": source.expires_at_ms,
        "payload": source.payload,
        "user_id": source.user_id,
        "organization_id": source.organization_id,
        "body": source.body,
    }


def delivery(row: AnyRow) -> DeliveryRecord:
    """Return one delivery."""
    return DeliveryRecord(
        backend=row.backend,
        message_id=row.message_id,
        side=None if row.side is None else Side(row.side),
        role=None if row.role is None else Role(row.role),
        at_ms=row.at_ms,
        lag_ms=row.lag_ms,
        outcome=DeliveryOutcome(row.outcome),
        attempt=row.attempt,
        digest=row.digest,
        problem=row.problem,
    )


def startable_at_ms(source: ClaimRequest | ShadowNote) -> int:
    """Return when a job could have started: what the lag of a delivery is counted from."""
    return max(source.enqueued_at_ms, source.not_before_ms or 0)
