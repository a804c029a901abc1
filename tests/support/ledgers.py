"""The ledgers under contract, what is put into them, and a look at what they really keep."""

from __future__ import annotations

import base64
import importlib.util
import json
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from queuebridge.ledger import (
    Claim,
    ClaimRequest,
    Copy,
    Due,
    Execution,
    Granted,
    Ledger,
    NewDispatch,
    Settlement,
    ShadowNote,
    State,
    WriteMark,
    WriteState,
)
from queuebridge.stages import Role, Side
from queuebridge.storage.memory import MemoryLedger

STORES = ("memory", "sqlite", "postgres", "redis")
# Those that several processes can share.
SHARED_STORES = STORES[1:]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
LEASE = MINUTE
GRACE = 5 * SECOND
CHECK_IN = 30 * SECOND
DEADLINE = 10 * MINUTE

DONE = Settlement(state=State.DONE, result='"done"')
FAILED = Settlement(state=State.FAILED, error="ValueError: no", traceback="Traceback: ...")


def installed(kind: str) -> bool:
    """Say whether this version has that store."""
    module = {"sqlite": "sql", "postgres": "sql"}.get(kind, kind)
    return importlib.util.find_spec(f"queuebridge.storage.{module}") is not None


@dataclass
class Offset:
    """How far the store's clock has been moved, in milliseconds. Calling it gives that figure."""

    ms: int = 0

    def __call__(self) -> int:
        return self.ms

    def seconds(self) -> float:
        """Return the moved time in Unix seconds."""
        return time.time() + self.ms / 1000


@dataclass(frozen=True)
class Address:
    """Where a shared store is, in a form that a child process can be told."""

    kind: str
    url: str
    prefix: str = ""

    def open(self, offset: Offset) -> Ledger:
        """Return a ledger over this store."""
        if self.kind == "redis":
            from queuebridge.storage.redis import RedisLedger

            redis_ledger: Ledger = RedisLedger.from_url(self.url, prefix=self.prefix, clock_offset_ms=offset)
            return redis_ledger
        from queuebridge.storage.sql import SqlLedger

        sql_ledger: Ledger = SqlLedger.from_url(self.url, clock_offset_ms=offset)
        return sql_ledger

    def upgrade(self) -> None:
        """Give the store its schema, if it has one."""
        if self.kind != "redis":
            from queuebridge.storage.sql import upgrade

            upgrade(self.url)

    def to_json(self) -> str:
        """Return it as one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Address:
        """Return what `to_json` was given."""
        return cls(**json.loads(text))


@dataclass
class Store:
    """One empty ledger under test.

    Attributes:
        kind: One of STORES.
        address: Where it is; None for the memory ledger.
        offset: Its clock.
        ledger: The ledger.
    """

    kind: str
    address: Address | None = None
    offset: Offset = field(default_factory=Offset)
    ledger: Ledger = field(init=False)
    _others: list[Ledger] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self.address.open(self.offset) if self.address else MemoryLedger(clock=self.offset.seconds)

    def another(self) -> Ledger:
        """Return another ledger over the same store, as another process has it."""
        if self.address is None:
            return self.ledger
        self._others.append(self.address.open(self.offset))
        return self._others[-1]

    def close(self) -> None:
        """Give up all connections."""
        for ledger in (self.ledger, *self._others):
            ledger.close()

    def move(self, ms: int) -> None:
        """Let time pass."""
        self.offset.ms += ms

    def record(self, dispatch: NewDispatch | None = None, **changes: Any) -> NewDispatch:
        """Record a dispatch and return it."""
        dispatch = dispatch or new_dispatch(**changes)
        self.ledger.record([dispatch])
        return dispatch

    def get(self, dispatch: NewDispatch) -> Execution:
        """Return what the ledger knows of a dispatch, which it must."""
        execution = self.ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        return execution

    def claim(self, dispatch: NewDispatch, **changes: Any) -> Claim:
        """Claim a dispatch."""
        return self.ledger.claim(claim_request(dispatch, **changes), grace_ms=GRACE)

    def granted(self, dispatch: NewDispatch, **changes: Any) -> Granted:
        """Claim a dispatch, which must be granted."""
        claim = self.claim(dispatch, **changes)
        assert isinstance(claim, Granted), claim
        return claim

    def settled(self, dispatch: NewDispatch | None = None, settlement: Settlement = DONE) -> NewDispatch:
        """Record, claim and settle a dispatch, and return it."""
        dispatch = self.record(dispatch)
        assert self.settle(dispatch, self.granted(dispatch).token, settlement)
        return dispatch

    def settle(self, dispatch: NewDispatch, token: int, settlement: Settlement = DONE) -> bool:
        """Settle a dispatch."""
        return self.ledger.settle(dispatch.dispatch_id, token, settlement)

    def release(self, dispatch: NewDispatch, token: int, *, retry_in_ms: int = MINUTE) -> bool:
        """Release a dispatch after a failed attempt."""
        return self.ledger.release(
            dispatch.dispatch_id, token, retry_in_ms=retry_in_ms, grace_ms=GRACE, error="no", traceback="Traceback"
        )

    def renew(self, dispatch: NewDispatch, token: int) -> bool:
        """Renew a claim."""
        return self.ledger.renew(dispatch.dispatch_id, token, lease_ms=LEASE, grace_ms=GRACE)

    def take_due(self, limit: int = 100) -> list[Due]:
        """Take what is due."""
        return self.ledger.take_due(limit, lease_ms=LEASE)

    def due(self) -> list[str]:
        """Take what is due and return the ids."""
        return [due.execution.dispatch_id for due in self.take_due()]

    def holds(self, value: bytes) -> bool:
        """Say whether the store keeps this value anywhere: as it is, as hexadecimal digits or as base64."""
        forms = (value.decode(), value.hex(), base64.b64encode(value).decode())
        content = "\n".join(self._content())
        return any(form in content or form.upper() in content for form in forms)

    def _content(self) -> Sequence[str]:
        if self.address is None:
            return [repr(vars(self.ledger)), repr(getattr(self.ledger, "_tables").rows)]  # noqa: B009
        if self.kind == "redis":
            return _redis_content(self.address)
        if self.kind == "sqlite":
            connection = sqlite3.connect(urlsplit(self.address.url).path.removeprefix("/"))
            try:
                return list(connection.iterdump())
            finally:
                connection.close()
        return _postgres_content(self.address)


def _redis_content(address: Address) -> list[str]:
    import redis

    content = []
    with redis.Redis.from_url(address.url) as connection:
        for key in connection.scan_iter(match=f"{address.prefix}*"):
            kind = connection.type(key)
            read = {
                b"string": connection.get,
                b"hash": connection.hgetall,
                b"list": lambda name: connection.lrange(name, 0, -1),
                b"set": connection.smembers,
                b"zset": lambda name: connection.zrange(name, 0, -1),
                b"stream": connection.xrange,
            }[kind]
            content.append(f"{key!r} {read(key)!r}")
    return content


def _postgres_content(address: Address) -> list[str]:
    import psycopg
    from psycopg import sql

    with psycopg.connect(address.url) as connection:
        return [
            str(row[0])
            for table in postgres_tables(connection)
            for row in connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table)))
        ]


def postgres_tables(connection: Any) -> list[str]:
    """Return the tables of a database."""
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    return [name for (name,) in found]


def new_id() -> str:
    """Return a random id."""
    return uuid.uuid4().hex


def wall_clock_ms() -> int:
    """Return this process's time."""
    return int(time.time() * 1000)


def planned(side: Side = Side.LEGACY, role: Role = Role.PREFERRED, **changes: Any) -> Copy:
    """Return a copy that is to be written."""
    return Copy(**{"side": side, "backend": backend_of(side), "role": role, **changes})


def held(due_at_ms: int, side: Side = Side.PUSH) -> Copy:
    """Return a safety copy that the ledger keeps until it is due."""
    return planned(side, Role.SAFETY, state=WriteState.HELD, due_at_ms=due_at_ms)


def backend_of(side: Side | None) -> str:
    """Return the backend of a side in these tests."""
    return "qstash" if side is Side.PUSH else "celery"


def new_dispatch(**changes: Any) -> NewDispatch:
    """Return a dispatch with two planned copies."""
    values: dict[str, Any] = {
        "dispatch_id": new_id(),
        "job_id": new_id(),
        "task": "reports.build",
        "queue": "default",
        "stage": "dual",
        "copies": (planned(), planned(Side.PUSH, Role.SAFETY)),
        "body": b"the encoded envelope",
        "payload": '{"report": 7}',
        "enqueued_at_ms": wall_clock_ms(),
        "max_attempts": 3,
        "check_in_ms": CHECK_IN,
        "deadline_in_ms": DEADLINE,
    }
    return NewDispatch(**{**values, **changes})


_SHARED = (
    "dispatch_id",
    "job_id",
    "task",
    "queue",
    "stage",
    "enqueued_at_ms",
    "not_before_ms",
    "expires_at_ms",
    "max_attempts",
    "body",
    "payload",
    "user_id",
    "organization_id",
    "deadline_in_ms",
)


def claim_request(dispatch: NewDispatch | None = None, **changes: Any) -> ClaimRequest:
    """Return the request of a delivery of a dispatch, by default on its legacy side."""
    dispatch = dispatch or new_dispatch()
    side = changes.get("side", Side.LEGACY)
    values: dict[str, Any] = {
        **{name: getattr(dispatch, name) for name in _SHARED},
        "side": side,
        "role": Role.PREFERRED if side is Side.LEGACY else Role.SAFETY,
        "backend": backend_of(side),
        "message_id": new_id(),
        "owner": "host:1:worker",
        "lease_ms": LEASE,
    }
    return ClaimRequest(**{**values, **changes})


def shadow_note(dispatch: NewDispatch, **changes: Any) -> ShadowNote:
    """Return the note about the shadow copy of a dispatch."""
    values: dict[str, Any] = {
        **{name: getattr(dispatch, name) for name in _SHARED},
        "backend": "qstash",
        "message_id": new_id(),
        "digest": "shadow-digest",
        "problem": None,
    }
    return ShadowNote(**{**values, **changes})


def write_mark(dispatch: NewDispatch, state: WriteState = WriteState.WRITTEN, **changes: Any) -> WriteMark:
    """Return what became of a write, by default that of the legacy copy."""
    side = changes.get("side", Side.LEGACY)
    values: dict[str, Any] = {
        "dispatch_id": dispatch.dispatch_id,
        "side": side,
        "backend": backend_of(side),
        "role": Role.PREFERRED,
        "state": state,
    }
    return WriteMark(**{**values, **changes})


def just_after(value: int | None, moment: int) -> bool:
    """Say whether a time is the given moment, or as much later as a busy machine may need."""
    return value is not None and moment <= value <= moment + 4 * SECOND
