"""Recording dispatches, and what became of their writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    String,
    Update,
    and_,
    bindparam,
    case,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ColumnElement

from queuebridge.ledger import (
    ClaimRequest,
    DeliveryOutcome,
    DispatchFacts,
    NewDispatch,
    Recorded,
    ShadowNote,
    State,
    WriteMark,
    WriteState,
)
from queuebridge.stages import Role, Side
from queuebridge.storage.sql.engine import NOW_MS, Database
from queuebridge.storage.sql.rows import COPY_COLUMNS, copies, copy_values, held_until_ms, new_values, startable_at_ms
from queuebridge.storage.sql.tables import Words, deliveries, dispatches

# As many as fit into one statement.
_BATCH = 500


@cache
def _insert(dialect: str) -> Any:
    """Return the statement that adds dispatches, and says which ones were new."""
    check_in = bindparam("check_in_ms", type_=BigInteger)
    held_until = bindparam("held_until_ms", type_=BigInteger)
    check_at = NOW_MS + check_in
    adding: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[dialect](dispatches)
    return (
        adding.values(
            state=State.ACCEPTED.value,
            attempts=0,
            epoch=0,
            token=0,
            stale_settles=0,
            accepted_at_ms=NOW_MS,
            deadline_ms=NOW_MS + bindparam("deadline_in_ms", type_=BigInteger),
            next_check_at_ms=case((held_until < check_at, held_until), else_=check_at),
        )
        .on_conflict_do_nothing(index_elements=[dispatches.c.dispatch_id])
        .returning(dispatches.c.dispatch_id)
    )


def _new_row(source: DispatchFacts, database: Database) -> dict[str, Any]:
    planned = source.copies if isinstance(source, NewDispatch) else ()
    return {
        **new_values(source),
        **copy_values(planned),
        "check_in_ms": source.check_in_ms if isinstance(source, NewDispatch) else None,
        "held_until_ms": held_until_ms(planned),
        "deadline_in_ms": source.deadline_in_ms,
        "offset_ms": database.clock_offset_ms(),
    }


def add(connection: Connection, database: Database, source: ClaimRequest | ShadowNote) -> None:
    """Add a dispatch that came to be known by its delivery, unless it is known."""
    connection.execute(_insert(connection.dialect.name), [_new_row(source, database)])


def record(connection: Connection, database: Database, new: Sequence[NewDispatch]) -> list[Recorded]:
    """Add dispatches; see `Ledger.record`. All or none only if the connection is in a transaction, or there is one."""
    adding = _insert(connection.dialect.name)
    added: set[str] = set()
    # All in one order: two that record the same dispatches would otherwise wait for each other.
    ordered = sorted(new, key=lambda dispatch: dispatch.dispatch_id)
    for start in range(0, len(new), _BATCH):
        rows = [_new_row(dispatch, database) for dispatch in ordered[start : start + _BATCH]]
        added.update(connection.scalars(adding, rows))
    known = _known(connection, {dispatch.dispatch_id for dispatch in new} - added)
    answers = []
    for dispatch in new:
        if dispatch.dispatch_id in added:
            # The second of two with the same id is not new.
            added.discard(dispatch.dispatch_id)
            answers.append(Recorded(new=True, state=State.ACCEPTED, copies=dispatch.copies))
            known[dispatch.dispatch_id] = Recorded(new=False, state=State.ACCEPTED, copies=dispatch.copies)
        else:
            answers.append(known[dispatch.dispatch_id])
    return answers


def _known(connection: Connection, dispatch_ids: set[str]) -> dict[str, Recorded]:
    if not dispatch_ids:
        return {}
    wanted = select(dispatches.c.dispatch_id, dispatches.c.state, *COPY_COLUMNS).where(
        dispatches.c.dispatch_id.in_(dispatch_ids)
    )
    return {
        row.dispatch_id: Recorded(new=False, state=State(row.state), copies=copies(row))
        for row in connection.execute(wanted)
    }


def mark_steps(
    database: Database, marks: Sequence[WriteMark], check_in_ms: int | None
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return what to execute for these marks: for each statement its sides and its values."""
    by_dispatch: dict[str, list[WriteMark]] = {}
    for mark_ in marks:
        by_dispatch.setdefault(mark_.dispatch_id, []).append(mark_)
    steps = []
    # In one order, for the same reason as above.
    for _, of_dispatch in sorted(by_dispatch.items()):
        # Both sides go into one statement; two marks of the same side cannot.
        together = len({mark_.side for mark_ in of_dispatch}) == len(of_dispatch)
        for group in [of_dispatch] if together else [[mark_] for mark_ in of_dispatch]:
            values: dict[str, Any] = {
                "marked_id": group[0].dispatch_id,
                "first_marked": group[0].side.value,
                "check_in_ms": check_in_ms,
                "offset_ms": database.clock_offset_ms(),
            }
            for mark_ in group:
                values.update(_mark_values(mark_.side.value, mark_))
            steps.append((tuple(mark_.side.value for mark_ in group), values))
    return steps


def mark(connection: Connection, steps: Sequence[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Note what became of writes; see `Ledger.mark`."""
    for sides, same in groupby(steps, key=itemgetter(0)):
        values = [values for _, values in same]
        connection.execute(_mark(sides), values if len(values) > 1 else values[0])


def _mark_values(side: str, mark_: WriteMark) -> dict[str, Any]:
    held = mark_.state is WriteState.HELD
    return {
        f"{side}_new_backend": mark_.backend,
        f"{side}_new_role": mark_.role.value,
        f"{side}_new_state": mark_.state.value,
        f"{side}_new_due_in_ms": (mark_.due_in_ms or 0) if held else None,
        f"{side}_new_message_id": mark_.message_id,
        f"{side}_new_error": mark_.error,
    }


@cache
def _mark(sides: tuple[str, ...]) -> Update:
    """Return the statement that notes one write on each of these sides."""
    columns = dispatches.c
    check_in = bindparam("check_in_ms", type_=BigInteger)
    values: dict[str, ColumnElement[Any]] = {}
    held_until = {side: _held_until(side) for side in (Side.LEGACY.value, Side.PUSH.value)}
    for side in sides:
        state = columns[f"{side}_state"]
        # A copy that was not planned has no state.
        open_ = or_(state.is_(None), state != WriteState.WRITTEN.value)
        new_state = bindparam(f"{side}_new_state", type_=String)
        new_message_id = bindparam(f"{side}_new_message_id", type_=String)
        due_at = NOW_MS + bindparam(f"{side}_new_due_in_ms", type_=BigInteger)
        for field in ("backend", "state", "message_id", "error"):
            kind: Any = Words if field == "error" else String
            new: ColumnElement[Any] = bindparam(f"{side}_new_{field}", type_=kind)
            values[f"{side}_{field}"] = case((open_, new), else_=columns[f"{side}_{field}"])
        values[f"{side}_role"] = case(
            (state.is_(None), bindparam(f"{side}_new_role", type_=String)), else_=columns[f"{side}_role"]
        )
        values[f"{side}_due_at_ms"] = case((open_, due_at), else_=columns[f"{side}_due_at_ms"])
        resent = and_(new_state == WriteState.WRITTEN.value, new_message_id.is_not(None))
        values[f"{side}_message_id"] = case((or_(open_, resent), new_message_id), else_=columns[f"{side}_message_id"])
        held_until[side] = case((open_, due_at), else_=held_until[side])
    values["first_side"] = case(
        (columns.first_side.is_(None), bindparam("first_marked", type_=String)), else_=columns.first_side
    )
    legacy, push = held_until.values()
    first_held = case((or_(push.is_(None), legacy < push), legacy), else_=push)
    values["next_check_at_ms"] = case(
        (columns.state != State.ACCEPTED.value, columns.next_check_at_ms),
        (check_in.is_not(None), NOW_MS + check_in),
        else_=first_held,
    )
    return update(dispatches).where(columns.dispatch_id == bindparam("marked_id", type_=String)).values(values)


def _held_until(side: str) -> ColumnElement[Any]:
    return case(
        (dispatches.c[f"{side}_state"] == WriteState.HELD.value, dispatches.c[f"{side}_due_at_ms"]),
        else_=null(),
    )


def note_shadow(connection: Connection, database: Database, note: ShadowNote) -> None:
    """Record the arrival of a shadow copy; see `Ledger.note_shadow`."""
    add(connection, database, note)
    connection.execute(
        insert(deliveries).values(
            dispatch_id=note.dispatch_id,
            backend=note.backend,
            message_id=note.message_id,
            side=Side.PUSH.value,
            role=Role.SHADOW.value,
            at_ms=NOW_MS,
            lag_ms=NOW_MS - literal(startable_at_ms(note), BigInteger),
            outcome=DeliveryOutcome.SHADOWED.value,
            digest=note.digest,
            problem=note.problem,
        ),
        {"offset_ms": database.clock_offset_ms()},
    )
