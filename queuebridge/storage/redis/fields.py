"""How records are written into the fields of a hash in Redis, and read back.

The fields are named as in `Execution`; what is None is left out. Those of a copy are named `push.state` and the like,
and `sides` keeps the order of the copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from queuebridge.ledger import (
    Copy,
    DeliveryOutcome,
    DeliveryRecord,
    DispatchFacts,
    Execution,
    State,
    WriteState,
)
from queuebridge.stages import Role, Side
from queuebridge.storage.redis.connection import Argument

_COPY = ("backend", "role", "state", "due_at_ms", "message_id", "error")
COPY_FIELDS = ("sides", *(f"{side.value}.{name}" for side in Side for name in _COPY))
_TEXT = (
    *("job_id", "task", "queue", "stage", "owner", "executed_by", "payload", "user_id", "organization_id"),
    *("result", "error", "traceback", "digest"),
)
_NUMBERS = (
    *("max_attempts", "lease_until_ms", "retry_at_ms", "deadline_ms", "enqueued_at_ms", "not_before_ms"),
    *("expires_at_ms", "accepted_at_ms", "started_at_ms", "finished_at_ms", "next_check_at_ms"),
)
_COUNTS = ("attempts", "epoch", "token", "stale_settles")  # left out while they are 0
EXECUTION_FIELDS = (*_TEXT, *_NUMBERS, *_COUNTS, "state", "executed_role", *COPY_FIELDS)
# As they are recorded.
_RECORDED = (
    *("job_id", "task", "queue", "stage", "enqueued_at_ms", "not_before_ms", "expires_at_ms", "max_attempts"),
    *("body", "payload", "user_id", "organization_id"),
)


def new_fields(source: DispatchFacts, copies: Sequence[Copy] = ()) -> list[Argument]:
    """Return the fields of a new dispatch, each name followed by its value."""
    found: dict[str, Argument] = {name: getattr(source, name) for name in _RECORDED}
    if copies:
        found["sides"] = " ".join(copy.side.value for copy in copies)
    for copy in copies:
        values = (copy.backend, copy.role.value, copy.state.value, copy.due_at_ms, copy.message_id, copy.error)
        found |= {f"{copy.side.value}.{name}": value for name, value in zip(_COPY, values, strict=True)}
    return present(found)


def present(fields: Mapping[str, Argument]) -> list[Argument]:
    """Return the fields that have a value, each name followed by its value."""
    return [part for name, value in fields.items() if value is not None for part in (name, value)]


def read_copies(values: Mapping[str, str]) -> tuple[Copy, ...]:
    """Return the copies, from fields."""
    return tuple(_read_copy(side, values) for side in map(Side, values.get("sides", "").split()))


def _read_copy(side: Side, values: Mapping[str, str]) -> Copy:
    own = {name: values.get(f"{side.value}.{name}") for name in _COPY}
    return Copy(
        side=side,
        backend=own["backend"] or "",
        role=Role(own["role"]),
        state=WriteState(own["state"]),
        due_at_ms=_maybe_number(own["due_at_ms"]),
        message_id=own["message_id"],
        error=own["error"],
    )


def named(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, str]:
    """Return the answer to HMGET by names, without what is not there."""
    return {name: _text(value) for name, value in zip(names, values, strict=True) if value is not None}


def named_in_json(names: Sequence[str], values: bytes) -> dict[str, str]:
    """Return the same from what the script `read` makes of it."""
    return {name: value for name, value in zip(names, json.loads(_text(values)), strict=True) if value is not False}


def read_execution(dispatch_id: str, values: Mapping[str, str]) -> Execution | None:
    """Return an execution, from its fields; None if it has none."""
    if "state" not in values:
        return None
    found: dict[str, Any] = {name: values.get(name) for name in _TEXT}
    found |= {name: _maybe_number(values.get(name)) for name in _NUMBERS}
    found |= {name: int(values.get(name, 0)) for name in _COUNTS}
    role = values.get("executed_role")
    return Execution(
        dispatch_id=dispatch_id,
        state=State(values["state"]),
        executed_role=None if role is None else Role(role),
        copies=read_copies(values),
        **found,
    )


def describe_delivery(
    backend: str, message_id: str, side: Side | None, role: Role | None, *about_shadow: str | None
) -> str:
    """Return what is known of a delivery before the ledger has answered, as JSON."""
    known = [backend, message_id, side and side.value, role and role.value, *about_shadow]
    return json.dumps(known, separators=(",", ":"))


def read_deliveries(items: Sequence[bytes]) -> Iterator[DeliveryRecord]:
    """Yield deliveries, from the items of their list."""
    for item in items:
        at_ms, lag_ms, outcome, attempt, described = item.split(b" ", 4)
        backend, message_id, side, role, *about_shadow = json.loads(described)
        digest, problem = about_shadow or (None, None)
        yield DeliveryRecord(
            backend=backend,
            message_id=message_id,
            side=None if side is None else Side(side),
            role=None if role is None else Role(role),
            at_ms=int(at_ms),
            lag_ms=int(lag_ms),
            outcome=DeliveryOutcome(_text(outcome)),
            attempt=None if attempt == b"-" else int(attempt),
            digest=digest,
            problem=problem,
        )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _maybe_number(value: str | None) -> int | None:
    return None if value is None else int(value)
