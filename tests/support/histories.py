"""Histories of jobs, made by the ledger's own operations with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Sequence

from queuebridge.ledger import (
    Claim,
    ClaimRequest,
    Copy,
    Granted,
    NewDispatch,
    Settlement,
    ShadowNote,
    State,
    WriteMark,
    WriteState,
)
from queuebridge.stages import Role, Side, Stage
from queuebridge.storage.memory import MemoryLedger

BACKENDS = {Side.LEGACY: "celery", Side.PUSH: "qstash"}
HOUR_MS = 3_600_000
GRACE_MS = 10_000


class History:
    """Jobs in a memory ledger. Times are in milliseconds.

    Attributes:
        ledger: The ledger.
        now_ms: The store's time.
    """

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000
        self.ledger = MemoryLedger(clock=lambda: self.now_ms / 1000)
        self.log = self.ledger.executions

    def wait(self, ms: int) -> None:
        """Move the clock."""
        self.now_ms += ms

    def record(
        self,
        dispatch_id: str,
        *,
        job_id: str | None = None,
        task: str = "mail.send",
        stage: str | None = "dual",
        sides: Sequence[Side] | None = None,
        states: dict[Side, WriteState] | None = None,
        not_before_in_ms: int | None = None,
        expires_in_ms: int | None = None,
        max_attempts: int = 3,
        deadline_in_ms: int = HOUR_MS,
    ) -> str:
        """Record a dispatch, and mark its copies: WRITTEN, unless `states` says otherwise."""
        plan = {} if stage is None else Stage(stage).plan.copies
        roles = plan if sides is None else {side: plan.get(side, Role.PREFERRED) for side in sides}
        self.ledger.record(
            [
                NewDispatch(
                    dispatch_id=dispatch_id,
                    job_id=job_id or f"job-{dispatch_id}",
                    task=task,
                    queue="default",
                    stage=stage,
                    copies=tuple(Copy(side=side, backend=BACKENDS[side], role=role) for side, role in roles.items()),
                    body=b"{}",
                    payload='{"to": "you"}',
                    enqueued_at_ms=self.now_ms,
                    not_before_ms=None if not_before_in_ms is None else self.now_ms + not_before_in_ms,
                    expires_at_ms=None if expires_in_ms is None else self.now_ms + expires_in_ms,
                    max_attempts=max_attempts,
                    check_in_ms=60_000,
                    deadline_in_ms=deadline_in_ms,
                )
            ]
        )
        for side, role in roles.items():
            state = (states or {}).get(side, WriteState.WRITTEN)
            if state is not WriteState.PLANNED:
                self.mark(dispatch_id, side, state, role=role)
        return dispatch_id

    def mark(self, dispatch_id: str, side: Side, state: WriteState, *, role: Role = Role.PREFERRED) -> None:
        """Note what became of a write."""
        due_in_ms = 60_000 if state is WriteState.HELD else None
        backend = BACKENDS[side]
        mark = WriteMark(
            dispatch_id=dispatch_id, side=side, backend=backend, role=role, state=state, due_in_ms=due_in_ms
        )
        self.ledger.mark([mark])

    def arrive(self, dispatch_id: str, side: Side, *, digest: str = "same", lease_ms: int = 60_000) -> Claim:
        """Let a copy of a recorded dispatch arrive, and ask for the right to run."""
        known = self.log.get(dispatch_id)
        assert known is not None
        copy = known.copy(side)
        request = ClaimRequest(
            dispatch_id=dispatch_id,
            job_id=known.job_id,
            task=known.task,
            queue=known.queue,
            stage=known.stage,
            backend=BACKENDS[side],
            message_id=f"message-{side.value}",
            side=side,
            role=copy.role if copy else Role.PREFERRED,
            owner="host:1",
            lease_ms=lease_ms,
            enqueued_at_ms=known.enqueued_at_ms,
            not_before_ms=known.not_before_ms,
            expires_at_ms=known.expires_at_ms,
            max_attempts=known.max_attempts,
            digest=digest,
            body=b"{}",
            payload=known.payload,
            deadline_in_ms=HOUR_MS,
        )
        return self.ledger.claim(request, grace_ms=GRACE_MS)

    def run(
        self, dispatch_id: str, side: Side, *, state: State = State.DONE, took_ms: int = 0, digest: str = "same"
    ) -> int:
        """Let a copy arrive, run and end. Returns the token."""
        granted = self.arrive(dispatch_id, side, digest=digest, lease_ms=took_ms + 60_000)
        assert isinstance(granted, Granted)
        self.wait(took_ms)
        assert self.settle(dispatch_id, granted.token, state)
        return granted.token

    def settle(self, dispatch_id: str, token: int, state: State = State.DONE) -> bool:
        """Settle with a token."""
        failed = state is State.FAILED
        return self.ledger.settle(
            dispatch_id,
            token,
            Settlement(
                state=state,
                result=None if failed else "1",
                error="ValueError: no" if failed else None,
                traceback="Traceback: no" if failed else None,
            ),
        )

    def release(self, dispatch_id: str, token: int, *, retry_in_ms: int) -> bool:
        """End an attempt that will be retried."""
        return self.ledger.release(
            dispatch_id, token, retry_in_ms=retry_in_ms, grace_ms=GRACE_MS, error="ValueError: no", traceback=None
        )

    def shadow(self, dispatch_id: str, *, digest: str = "same", problem: str | None = None) -> None:
        """Let the shadow copy of a recorded dispatch arrive."""
        known = self.log.get(dispatch_id)
        assert known is not None
        self.ledger.note_shadow(
            ShadowNote(
                dispatch_id=dispatch_id,
                job_id=known.job_id,
                task=known.task,
                queue=known.queue,
                stage=known.stage,
                backend="qstash",
                message_id="message-shadow",
                digest=digest,
                problem=problem,
                enqueued_at_ms=known.enqueued_at_ms,
                not_before_ms=known.not_before_ms,
                max_attempts=known.max_attempts,
                body=b"{}",
                payload=known.payload,
                deadline_in_ms=HOUR_MS,
            )
        )
