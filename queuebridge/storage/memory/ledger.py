"""The ledger in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from queuebridge.ledger import (
    Busy,
    Claim,
    ClaimRequest,
    Copy,
    DeliveryOutcome,
    DeliveryRecord,
    DispatchFacts,
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
)
from queuebridge.stages import Role, Side
from queuebridge.storage.memory.executions import MemoryExecutions
from queuebridge.storage.memory.rows import Row, Tables
from queuebridge.storage.memory.stages import MemoryStages


class MemoryLedger(Ledger):
    """A ledger that lives and ends with this process.

    Args:
        clock: Returns the time in Unix seconds; the store's clock.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._tables = Tables()
        self._lock = self._tables.lock
        self._payloads: dict[str, tuple[int, bytes]] = {}
        self.executions = MemoryExecutions(self._tables)
        self.stages = MemoryStages(self.now_ms)

    def record(self, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        with self._lock:
            now_ms = self.now_ms()
            # All are read before the first one is kept, so that an impossible one leaves nothing behind.
            rows = [_new_row(dispatch, now_ms, copies=dispatch.copies) for dispatch in dispatches]
            checks = [now_ms + dispatch.check_in_ms for dispatch in dispatches]
            return [self._record(row, check_at_ms) for row, check_at_ms in zip(rows, checks, strict=True)]

    def _record(self, row: Row, check_at_ms: int) -> Recorded:
        known = self._tables.rows.get(row.dispatch_id)
        if known is not None:
            return Recorded(new=False, state=known.state, copies=known.copies)
        held_until_ms = row.held_until_ms()
        self._tables.add(row)
        self._tables.checks.set(row, check_at_ms if held_until_ms is None else min(check_at_ms, held_until_ms))
        return Recorded(new=True, state=row.state, copies=row.copies)

    def mark(self, marks: Sequence[WriteMark], *, check_in_ms: int | None = None) -> None:
        with self._lock:
            now_ms = self.now_ms()
            for mark in marks:
                row = self._tables.rows.get(mark.dispatch_id)
                if row is None:
                    continue
                row.note_write(mark, now_ms)
                if row.state is State.ACCEPTED:
                    at_ms = row.held_until_ms() if check_in_ms is None else now_ms + check_in_ms
                    self._tables.checks.set(row, at_ms)

    def claim(self, request: ClaimRequest, *, grace_ms: int) -> Claim:
        with self._lock:
            now_ms = self.now_ms()
            row = self._tables.rows.get(request.dispatch_id)
            if row is None:
                row = _new_row(request, now_ms)
                self._tables.add(row)
            answer = self._answer(row, request, now_ms, grace_ms)
            row.deliveries.append(_delivery(request, answer, now_ms))
            return answer

    def _answer(self, row: Row, request: ClaimRequest, now_ms: int, grace_ms: int) -> Claim:
        if row.state.settled:
            return Settled(state=row.state, owner=row.owner)
        runs = row.runs(now_ms)
        if not runs and row.expires_at_ms is not None and now_ms > row.expires_at_ms:
            return self._end_by_claim(row, State.EXPIRED, now_ms)
        until_ms = row.lease_until_ms if runs else row.retry_at_ms
        if until_ms is not None and now_ms < until_ms:
            return Busy(until_ms=until_ms, now_ms=now_ms, epoch=row.next_epoch())
        if row.attempts >= row.max_attempts:
            return self._end_by_claim(row, State.QUARANTINED, now_ms)
        row.state = State.RUNNING
        row.attempts += 1
        row.token = max(row.token + 1, int(self._clock() * 1_000_000))
        row.owner = request.owner
        row.lease_until_ms = now_ms + request.lease_ms
        row.retry_at_ms = None
        row.started_at_ms = now_ms
        row.executed_by = request.backend
        row.executed_role = request.role
        row.digest = request.digest
        self._tables.checks.set(row, row.lease_until_ms + grace_ms)
        return Granted(token=row.token, attempt=row.attempts, now_ms=now_ms)

    def _end_by_claim(self, row: Row, state: State, now_ms: int) -> Settled:
        self._tables.end(row, state, now_ms)
        return Settled(state=state, first=True, owner=row.owner)

    def renew(self, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
        with self._lock:
            row = self._tables.rows.get(dispatch_id)
            if row is None or row.token != token or row.state is not State.RUNNING:
                return False
            row.lease_until_ms = self.now_ms() + lease_ms
            self._tables.checks.set(row, row.lease_until_ms + grace_ms)
            return True

    def settle(self, dispatch_id: str, token: int, settlement: Settlement) -> bool:
        with self._lock:
            row = self._tables.rows.get(dispatch_id)
            if row is None:
                return False
            if row.state.settled and row.settled_by == token and row.state is settlement.state:
                return True
            if row.state in (State.RUNNING, State.WAITING) and row.token == token:
                row.settled_by = token
                row.result = settlement.result
                row.error = settlement.error
                row.traceback = settlement.traceback
                self._tables.end(row, settlement.state, self.now_ms())
                return True
            row.stale_settles += 1
            return False

    def release(
        self, dispatch_id: str, token: int, *, retry_in_ms: int, grace_ms: int, error: str, traceback: str | None
    ) -> bool:
        with self._lock:
            row = self._tables.rows.get(dispatch_id)
            if row is None:
                return False
            if row.state is State.WAITING and row.token == token:
                return True
            if row.state is State.RUNNING and row.token == token:
                row.state = State.WAITING
                row.lease_until_ms = None
                row.retry_at_ms = self.now_ms() + retry_in_ms
                row.error = error
                row.traceback = traceback
                self._tables.checks.set(row, row.retry_at_ms + grace_ms)
                return True
            row.stale_settles += 1
            return False

    def note_shadow(self, note: ShadowNote) -> None:
        with self._lock:
            now_ms = self.now_ms()
            row = self._tables.rows.get(note.dispatch_id)
            if row is None:
                row = _new_row(note, now_ms)
                self._tables.add(row)
            row.deliveries.append(
                DeliveryRecord(
                    backend=note.backend,
                    message_id=note.message_id,
                    side=Side.PUSH,
                    role=Role.SHADOW,
                    at_ms=now_ms,
                    lag_ms=_lag_ms(note, now_ms),
                    outcome=DeliveryOutcome.SHADOWED,
                    digest=note.digest,
                    problem=note.problem,
                )
            )

    def cancel(self, job_id: str) -> tuple[int, int]:
        with self._lock:
            now_ms = self.now_ms()
            unsettled = [row for row in self._tables.jobs.get(job_id, {}).values() if not row.state.settled]
            idle = [row for row in unsettled if not row.runs(now_ms)]
            for row in idle:
                self._tables.end(row, State.CANCELLED, now_ms)
            return len(idle), len(unsettled) - len(idle)

    def withdraw(self, dispatch_id: str) -> bool:
        with self._lock:
            row = self._tables.rows.get(dispatch_id)
            if row is None:
                return True
            if row.state is not State.ACCEPTED or row.epoch:
                return False
            self._tables.remove(row)
            return True

    def take_due(self, limit: int, *, lease_ms: int) -> list[Due]:
        with self._lock:
            now_ms = self.now_ms()
            rows: list[Row] = []
            while len(rows) < limit and (row := self._tables.checks.take(now_ms)) is not None:
                rows.append(row)
            # Put off only when all are taken: with a lease of 0 they would be taken again at once.
            for row in rows:
                row.next_epoch()
                self._tables.checks.set(row, now_ms + lease_ms)
            return [Due(execution=row.execution(), body=row.body, epoch=row.epoch, now_ms=now_ms) for row in rows]

    def check_in(self, dispatch_id: str, delay_ms: int | None) -> None:
        with self._lock:
            row = self._tables.rows.get(dispatch_id)
            if row is not None and not row.state.settled:
                self._tables.checks.set(row, None if delay_ms is None else self.now_ms() + delay_ms)

    def release_held(self) -> int:
        with self._lock:
            now_ms = self.now_ms()
            released = 0
            for row in self._tables.rows.values():
                held = 0 if row.state.settled else row.release_held(now_ms)
                if held and row.state is State.ACCEPTED:
                    self._tables.checks.set(row, now_ms)
                released += held
            return released

    def put_payload(self, key: str, body: bytes, *, keep_ms: int) -> None:
        with self._lock:
            kept_until_ms, _ = self._payloads.get(key, (0, b""))
            self._payloads[key] = (max(kept_until_ms, self.now_ms() + keep_ms), body)

    def get_payload(self, key: str) -> bytes | None:
        with self._lock:
            _, body = self._payloads.get(key, (0, None))
            return body

    def purge(self, *, settled_before_ms: int, limit: int) -> int:
        with self._lock:
            now_ms = self.now_ms()
            for key in [key for key, (until_ms, _) in self._payloads.items() if until_ms < now_ms]:
                del self._payloads[key]
            purged = 0
            while purged < limit and (row := self._tables.settled_before(settled_before_ms)) is not None:
                self._tables.remove(row)
                purged += 1
            return purged

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def ping(self) -> str:
        return "memory: the dispatches of this process only"

    def close(self) -> None:
        """Do nothing: there are no connections, and what is kept may be asked for again."""


def create_ledger(url: str) -> MemoryLedger:  # noqa: ARG001 - the same signature for every ledger
    """Return an empty ledger."""
    return MemoryLedger()


def _new_row(source: DispatchFacts, now_ms: int, copies: tuple[Copy, ...] = ()) -> Row:
    return Row(
        dispatch_id=source.dispatch_id,
        job_id=source.job_id,
        task=source.task,
        queue=source.queue,
        stage=source.stage,
        max_attempts=source.max_attempts,
        copies=copies,
        deadline_ms=now_ms + source.deadline_in_ms,
        enqueued_at_ms=source.enqueued_at_ms,
        not_before_ms=source.not_before_ms,
        expires_at_ms=source.expires_at_ms,
        accepted_at_ms=now_ms,
        payload=source.payload,
        user_id=source.user_id,
        organization_id=source.organization_id,
        body=source.body,
    )


def _delivery(request: ClaimRequest, answer: Claim, now_ms: int) -> DeliveryRecord:
    return DeliveryRecord(
        backend=request.backend,
        message_id=request.message_id,
        side=request.side,
        role=request.role,
        at_ms=now_ms,
        lag_ms=_lag_ms(request, now_ms),
        outcome=_OUTCOMES[type(answer)],
        attempt=answer.attempt if isinstance(answer, Granted) else None,
    )


_OUTCOMES = {
    Granted: DeliveryOutcome.GRANTED,
    Busy: DeliveryOutcome.BUSY,
    Settled: DeliveryOutcome.SUPPRESSED,
}


def _lag_ms(delivery: ClaimRequest | ShadowNote, now_ms: int) -> int:
    return now_ms - max(delivery.enqueued_at_ms, delivery.not_before_ms or 0)
