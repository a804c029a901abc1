"""The ledger in Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from queuebridge.ledger import (
    Busy,
    Claim,
    ClaimRequest,
    Due,
    Granted,
    Ledger,
    NewDispatch,
    Recorded,
    Settled,
    Settlement,
    ShadowNote,
    State,
    WriteMark,
    WriteState,
)
from queuebridge.stages import Role, Side
from queuebridge.storage.redis.connection import Argument, Connection
from queuebridge.storage.redis.executions import RedisExecutions
from queuebridge.storage.redis.fields import (
    COPY_FIELDS,
    EXECUTION_FIELDS,
    describe_delivery,
    named,
    new_fields,
    present,
    read_copies,
    read_execution,
)
from queuebridge.storage.redis.health import health_line
from queuebridge.storage.redis.keys import DEFAULT_PREFIX, Keys
from queuebridge.storage.redis.stages import RedisStages

# A script keeps everybody else waiting.
_PURGE_AT_ONCE = 500

_KNOWN_FIELDS = ("state", *COPY_FIELDS)


class RedisLedger(Ledger):
    """A ledger in one database of Redis, or in one slot of a cluster.

    Each method is one script and one round trip. When the connection is lost, an act that may be repeated without
    harm is tried once more; of any other one it stays unknown whether it took place, and LedgerUnavailable is raised.
    A claim is such an act: if it was granted and the answer was lost, its lease runs out.

    It keeps the last 100 deliveries of a dispatch.

    Args:
        connection: The way to Redis.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._run = connection.run
        self.executions = RedisExecutions(connection)
        self.stages = RedisStages(connection)

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = DEFAULT_PREFIX, clock_offset_ms: Callable[[], int] = lambda: 0
    ) -> RedisLedger:
        """Return the ledger at an address.

        Args:
            url: Such as `redis://localhost:6379/0`.
            prefix: What the names of its keys begin with; its part in braces keeps them in one slot of a cluster.
            clock_offset_ms: What to add to the clock of Redis; for tests.

        Raises:
            ConfigurationError: It is not an address of Redis.
        """
        return cls(Connection(url, Keys(prefix), clock_offset_ms))

    def record(self, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        if not dispatches:
            return []
        arguments: list[Argument] = [len(_KNOWN_FIELDS), *_KNOWN_FIELDS]
        for dispatch in dispatches:
            fields = new_fields(dispatch, dispatch.copies)
            arguments += (
                *(dispatch.dispatch_id, dispatch.job_id, dispatch.task, dispatch.check_in_ms, dispatch.deadline_in_ms),
                *(_held_until_ms(dispatch), len(fields) // 2, *fields),
            )
        answers: list[list[bytes | None] | None] = self._run("record", *arguments)
        return [_recorded(dispatch, answer) for dispatch, answer in zip(dispatches, answers, strict=True)]

    def mark(self, marks: Sequence[WriteMark], *, check_in_ms: int | None = None) -> None:
        if not marks:
            return
        arguments: list[Argument] = [check_in_ms]
        for mark in marks:
            due_in_ms = (mark.due_in_ms or 0) if mark.state is WriteState.HELD else None
            arguments += (
                *(mark.dispatch_id, mark.side.value, mark.backend, mark.role.value, mark.state.value),
                *(due_in_ms, mark.message_id, mark.error),
            )
        self._run("mark", *arguments, repeat=True)

    def claim(self, request: ClaimRequest, *, grace_ms: int) -> Claim:
        kind, *answer = self._run(
            "claim",
            *(request.dispatch_id, request.job_id, request.task, request.owner, request.lease_ms, grace_ms),
            *(request.enqueued_at_ms, request.not_before_ms, request.backend),
            *(request.role and request.role.value, request.digest),
            describe_delivery(request.backend, request.message_id, request.side, request.role),
            request.deadline_in_ms,
            *new_fields(request),
        )
        if kind == b"granted":
            token, attempt, now_ms = map(int, answer)
            return Granted(token=token, attempt=attempt, now_ms=now_ms)
        if kind == b"busy":
            until_ms, now_ms, epoch = map(int, answer)
            return Busy(until_ms=until_ms, now_ms=now_ms, epoch=epoch)
        state, first, owner = answer
        return Settled(
            state=State(state.decode()), first=first == b"1", owner=None if owner is None else owner.decode()
        )

    def renew(self, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
        return bool(self._run("renew", dispatch_id, token, lease_ms, grace_ms, repeat=True))

    def settle(self, dispatch_id: str, token: int, settlement: Settlement) -> bool:
        fields = present({"result": settlement.result, "error": settlement.error, "traceback": settlement.traceback})
        return bool(self._run("settle", dispatch_id, token, settlement.state.value, *fields, repeat=True))

    def release(
        self, dispatch_id: str, token: int, *, retry_in_ms: int, grace_ms: int, error: str, traceback: str | None
    ) -> bool:
        fields = present({"error": error, "traceback": traceback})
        return bool(self._run("release", dispatch_id, token, retry_in_ms, grace_ms, *fields, repeat=True))

    def note_shadow(self, note: ShadowNote) -> None:
        described = describe_delivery(note.backend, note.message_id, Side.PUSH, Role.SHADOW, note.digest, note.problem)
        self._run(
            "note_shadow",
            *(note.dispatch_id, note.job_id, note.task, note.enqueued_at_ms, note.not_before_ms),
            *(described, note.deadline_in_ms, *new_fields(note)),
        )

    def cancel(self, job_id: str) -> tuple[int, int]:
        cancelled, running = self._run("cancel", job_id)
        return cancelled, running

    def withdraw(self, dispatch_id: str) -> bool:
        return bool(self._run("withdraw", dispatch_id))

    def take_due(self, limit: int, *, lease_ms: int) -> list[Due]:
        now_ms, *found = self._run("take_due", limit, lease_ms, *EXECUTION_FIELDS, "body")
        due = []
        for dispatch_id, epoch, answer in found:
            *values, body = answer
            execution = read_execution(dispatch_id.decode(), named(EXECUTION_FIELDS, values))
            if execution is not None:
                due.append(Due(execution=execution, body=body or b"", epoch=int(epoch), now_ms=int(now_ms)))
        return due

    def check_in(self, dispatch_id: str, delay_ms: int | None) -> None:
        self._run("check_in", dispatch_id, delay_ms, repeat=True)

    def release_held(self) -> int:
        return int(self._run("release_held"))

    def put_payload(self, key: str, body: bytes, *, keep_ms: int) -> None:
        self._run("put_payload", key, body, keep_ms, repeat=True)

    def get_payload(self, key: str) -> bytes | None:
        (body,) = self._connection.read_many([("GET", self._connection.keys.of("PAYLOAD", key))])
        return None if body is None else bytes(body)

    def purge(self, *, settled_before_ms: int, limit: int) -> int:
        """Forget settled dispatches, in several scripts, each of which is one atomic act; see `Ledger.purge`."""
        purged = 0
        while True:
            at_once = min(_PURGE_AT_ONCE, limit - purged)
            answer = self._run("purge", settled_before_ms, at_once, _PURGE_AT_ONCE)
            dispatches, payloads = map(int, answer)
            purged += dispatches
            if dispatches < _PURGE_AT_ONCE and payloads < _PURGE_AT_ONCE:
                return purged

    def now_ms(self) -> int:
        return self._connection.now_ms()

    def ping(self) -> str:
        return health_line(self._connection)

    def close(self) -> None:
        self._connection.close()


def _held_until_ms(dispatch: NewDispatch) -> int | None:
    due = (copy.due_at_ms for copy in dispatch.copies if copy.state is WriteState.HELD)
    return min((at_ms for at_ms in due if at_ms is not None), default=None)


def _recorded(dispatch: NewDispatch, answer: Sequence[bytes | None] | None) -> Recorded:
    if answer is None:
        return Recorded(new=True, state=State.ACCEPTED, copies=dispatch.copies)
    values = named(_KNOWN_FIELDS, answer)
    return Recorded(new=False, state=State(values["state"]), copies=read_copies(values))
