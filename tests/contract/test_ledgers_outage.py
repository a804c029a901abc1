"""What every ledger promises when its store cannot be reached, or has not the schema that it needs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledgers import (
    GRACE,
    LEASE,
    Address,
    Offset,
    claim_request,
    held,
    installed,
    new_dispatch,
    shadow_note,
    write_mark,
)
from processes import free_port

from queuebridge.errors import ConfigurationError, LedgerUnavailable, QueueBridgeError
from queuebridge.ledger import ExecutionFilter, ExecutionLog, Ledger, Settlement, StageStore, State

SECRET = "p4ssw0rd"
EVERY_METHOD: dict[str, Callable[[Ledger], object]] = {
    "record": lambda ledger: ledger.record([new_dispatch(copies=(held(0),))]),
    "mark": lambda ledger: ledger.mark([write_mark(new_dispatch())]),
    "claim": lambda ledger: ledger.claim(claim_request(), grace_ms=GRACE),
    "renew": lambda ledger: ledger.renew("d1", 1, lease_ms=LEASE, grace_ms=GRACE),
    "settle": lambda ledger: ledger.settle("d1", 1, Settlement(state=State.DONE)),
    "release": lambda ledger: ledger.release("d1", 1, retry_in_ms=0, grace_ms=GRACE, error="no", traceback=None),
    "note_shadow": lambda ledger: ledger.note_shadow(shadow_note(new_dispatch())),
    "cancel": lambda ledger: ledger.cancel("j1"),
    "withdraw": lambda ledger: ledger.withdraw("d1"),
    "take_due": lambda ledger: ledger.take_due(1, lease_ms=LEASE),
    "check_in": lambda ledger: ledger.check_in("d1", 0),
    "release_held": lambda ledger: ledger.release_held(),
    "put_payload": lambda ledger: ledger.put_payload("k1", b"body", keep_ms=LEASE),
    "get_payload": lambda ledger: ledger.get_payload("k1"),
    "purge": lambda ledger: ledger.purge(settled_before_ms=0, limit=1),
    "now_ms": lambda ledger: ledger.now_ms(),
    "ping": lambda ledger: ledger.ping(),
    "executions.get": lambda ledger: ledger.executions.get("d1"),
    "executions.of_job": lambda ledger: ledger.executions.of_job("j1"),
    "executions.recent": lambda ledger: ledger.executions.recent(ExecutionFilter(), limit=1),
    "executions.deliveries": lambda ledger: ledger.executions.deliveries(["d1"]),
    "executions.scan": lambda ledger: list(ledger.executions.scan(ExecutionFilter())),
    "stages.current": lambda ledger: ledger.stages.current(),
    "stages.add": lambda ledger: ledger.stages.add("{}", after=0, author="a", reason="r"),
    "stages.history": lambda ledger: ledger.stages.history(1),
    "stages.report_process": lambda ledger: ledger.stages.report_process("p1", "worker", 0),
    "stages.forget_process": lambda ledger: ledger.stages.forget_process("p1"),
    "stages.processes": lambda ledger: ledger.stages.processes(within_ms=LEASE),
}


@pytest.fixture
def open_ledger() -> Iterator[Callable[[Address], Ledger]]:
    """Open ledgers, and close them afterwards."""
    made: list[Ledger] = []

    def open_one(address: Address) -> Ledger:
        if not installed(address.kind):
            pytest.skip(f"This version has no {address.kind} ledger.")
        made.append(address.open(Offset()))
        return made[-1]

    yield open_one
    for ledger in made:
        ledger.close()


def errors_of(ledger: Ledger) -> dict[str, QueueBridgeError | None]:
    """Call every method and return the error that each has raised."""
    errors: dict[str, QueueBridgeError | None] = dict.fromkeys(EVERY_METHOD)
    for name, call in EVERY_METHOD.items():
        try:
            call(ledger)
        except QueueBridgeError as error:
            errors[name] = error
    return errors


def test_every_method_is_tried_here() -> None:
    ports = {"": Ledger, "executions.": ExecutionLog, "stages.": StageStore}
    names = {prefix + name for prefix, port in ports.items() for name in port.__abstractmethods__}

    assert set(EVERY_METHOD) == names - {"close"}


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_every_method_says_that_the_store_cannot_be_reached(
    kind: str, open_ledger: Callable[[Address], Ledger]
) -> None:
    scheme = {"postgres": "postgresql", "redis": "redis"}[kind]
    ledger = open_ledger(Address(kind, f"{scheme}://user:{SECRET}@127.0.0.1:{free_port()}/0", prefix="p:"))

    errors = errors_of(ledger)

    assert {name: error for name, error in errors.items() if type(error) is not LedgerUnavailable} == {}
    for error in errors.values():
        assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_method_says_that_the_schema_is_missing(
    kind: str, open_ledger: Callable[[Address], Ledger], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    ledger = open_ledger(Address(kind, url))

    errors = errors_of(ledger)

    # The time needs no table.
    del errors["now_ms"]
    assert {name: error for name, error in errors.items() if not isinstance(error, ConfigurationError)} == {}
