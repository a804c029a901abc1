"""What the memory ledger keeps, and the order in which it has to be looked at."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, fields, replace
from itertools import count
from operator import attrgetter
from threading import Lock

from queuebridge.ledger import Copy, DeliveryRecord, Execution, State, WriteMark, WriteState
from queuebridge.stages import Role


@dataclass(kw_only=True, slots=True)
class Row:
    """One dispatch. The fields are those of `Execution`, and what people do not see.

    Attributes:
        body: The encoded envelope, until the dispatch is settled.
        deliveries: Its deliveries, the oldest first.
        settled_by: The token that settled it; 0 if none did.
        queued_at_ms: The time of the entry in `Checks` that counts; None if there is none.
    """

    dispatch_id: str
    job_id: str
    task: str
    queue: str
    stage: str | None
    state: State = State.ACCEPTED
    attempts: int = 0
    max_attempts: int
    copies: tuple[Copy, ...] = ()
    epoch: int = 0
    token: int = 0
    owner: str | None = None
    lease_until_ms: int | None = None
    retry_at_ms: int | None = None
    deadline_ms: int
    enqueued_at_ms: int
    not_before_ms: int | None
    expires_at_ms: int | None
    accepted_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    executed_by: str | None = None
    executed_role: Role | None = None
    payload: str
    user_id: str | None
    organization_id: str | None
    result: str | None = None
    error: str | None = None
    traceback: str | None = None
    stale_settles: int = 0
    digest: str | None = None
    next_check_at_ms: int | None = None

    body: bytes
    deliveries: list[DeliveryRecord] = field(default_factory=list)
    settled_by: int = 0
    queued_at_ms: int | None = None

    def execution(self) -> Execution:
        """Return it as people see it."""
        return Execution(**dict(zip(_EXECUTION_FIELDS, _execution_values(self), strict=True)))

    def next_epoch(self) -> int:
        """Return a publication epoch that nobody else has."""
        self.epoch += 1
        return self.epoch

    def held_until_ms(self) -> int | None:
        """Return when the first of its held copies is due; None if there is none."""
        return min(
            (copy.due_at_ms for copy in self.copies if copy.state is WriteState.HELD and copy.due_at_ms is not None),
            default=None,
        )

    def runs(self, now_ms: int) -> bool:
        """Say whether somebody holds a claim that has not ended."""
        return self.state is State.RUNNING and self.lease_until_ms is not None and now_ms < self.lease_until_ms

    def note_write(self, mark: WriteMark, now_ms: int) -> None:
        """Note what became of the copy on one side."""
        before = next((copy for copy in self.copies if copy.side is mark.side), None)
        if before is None:
            self.copies += (_copy(mark, mark.role, now_ms),)
        elif before.state is not WriteState.WRITTEN:
            self._replace(_copy(mark, before.role, now_ms))
        elif mark.state is WriteState.WRITTEN and mark.message_id is not None:
            self._replace(replace(before, message_id=mark.message_id))

    def release_held(self, now_ms: int) -> int:
        """Make its held copies due now, and return how many there are."""
        held = [copy for copy in self.copies if copy.state is WriteState.HELD]
        for copy in held:
            self._replace(replace(copy, due_at_ms=now_ms))
        return len(held)

    def _replace(self, copy: Copy) -> None:
        self.copies = tuple(copy if other.side is copy.side else other for other in self.copies)


_EXECUTION_FIELDS = tuple(field.name for field in fields(Execution))
_execution_values = attrgetter(*_EXECUTION_FIELDS)


def _copy(mark: WriteMark, role: Role, now_ms: int) -> Copy:
    held = mark.state is WriteState.HELD
    return Copy(
        side=mark.side,
        backend=mark.backend,
        role=role,
        state=mark.state,
        due_at_ms=now_ms + (mark.due_in_ms or 0) if held else None,
        message_id=mark.message_id,
        error=mark.error,
    )


class Checks:
    """Which dispatch has to be looked at next, without looking at all of them.

    A check that is put off leaves its entry where it is; once that comes up, it is put in the right place. So
    there is about one entry per dispatch, however often its lease is renewed.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Row]] = []
        self._serial = count()  # keeps rows of the same time from being compared

    def set(self, row: Row, at_ms: int | None) -> None:
        """Look at a dispatch at this time, or not any more."""
        row.next_check_at_ms = at_ms
        if at_ms is not None and (row.queued_at_ms is None or at_ms < row.queued_at_ms):
            row.queued_at_ms = at_ms
            heapq.heappush(self._heap, (at_ms, next(self._serial), row))

    def take(self, now_ms: int) -> Row | None:
        """Return the dispatch whose check time came first, None if none has come. It is not given out again."""
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, row = heapq.heappop(self._heap)
            if at_ms != row.queued_at_ms:
                continue  # moved forward since: another entry counts
            row.queued_at_ms = None
            if row.next_check_at_ms == at_ms:
                row.next_check_at_ms = None
                return row
            self.set(row, row.next_check_at_ms)
        return None


class Tables:
    """Everything that a memory ledger keeps about dispatches, behind one lock."""

    def __init__(self) -> None:
        self.lock = Lock()
        # In the order in which they were accepted.
        self.rows: dict[str, Row] = {}
        self.jobs: dict[str, dict[str, Row]] = {}
        self.checks = Checks()
        # When a dispatch was settled, and which; the first to be purged comes first.
        self.settled: list[tuple[int, str]] = []

    def add(self, row: Row) -> None:
        """Keep a new dispatch."""
        self.rows[row.dispatch_id] = row
        self.jobs.setdefault(row.job_id, {})[row.dispatch_id] = row

    def remove(self, row: Row) -> None:
        """Forget a dispatch."""
        self.checks.set(row, None)
        del self.rows[row.dispatch_id]
        of_job = self.jobs[row.job_id]
        del of_job[row.dispatch_id]
        if not of_job:
            del self.jobs[row.job_id]

    def end(self, row: Row, state: State, now_ms: int) -> None:
        """Settle a dispatch."""
        row.state = state
        row.finished_at_ms = now_ms
        row.lease_until_ms = row.retry_at_ms = None
        row.body = b""
        self.checks.set(row, None)
        heapq.heappush(self.settled, (now_ms, row.dispatch_id))

    def settled_before(self, at_ms: int) -> Row | None:
        """Return a dispatch that was settled before a time, None if there is none. It is not given out again."""
        if self.settled and self.settled[0][0] < at_ms:
            return self.rows[heapq.heappop(self.settled)[1]]
        return None
