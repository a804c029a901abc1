"""What the ledger keeps and says. All times are Unix milliseconds on the store's clock, unless said otherwise."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from queuebridge.stages import Role, Side


class State(enum.Enum):
    """What has become of a dispatch. The last six are its end: it is settled."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    WAITING = "waiting"  # an attempt failed; the next one may start at `retry_at_ms`
    DONE = "done"
    FAILED = "failed"
    RETRIED = "retried"  # the job was published anew, as another dispatch
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"  # all its attempts ended with the death of their executor

    @property
    def settled(self) -> bool:
        """Return whether this is the end."""
        return self not in (State.ACCEPTED, State.RUNNING, State.WAITING)


class WriteState(enum.Enum):
    """What is known of one copy of a dispatch."""

    PLANNED = "planned"  # recorded, and not yet known to be written
    WRITTEN = "written"
    UNKNOWN = "unknown"  # sent, and no answer came: it may have been written
    FAILED = "failed"
    HELD = "held"  # kept in the ledger until `due_at_ms`


class DeliveryOutcome(enum.Enum):
    """How the ledger answered a delivery."""

    GRANTED = "granted"
    BUSY = "busy"
    SUPPRESSED = "suppressed"  # the dispatch was settled already
    SHADOWED = "shadowed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One copy of a dispatch.

    Attributes:
        side: Where it goes.
        backend: The name of the backend on that side.
        role: What it is for.
        state: What is known of it.
        due_at_ms: For a held copy, when to write it if the dispatch is not settled by then.
        message_id: The backend's id of the message, once written.
        error: Why the write failed, in one line without secrets.
    """

    side: Side
    backend: str
    role: Role
    state: WriteState = WriteState.PLANNED
    due_at_ms: int | None = None
    message_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchFacts:
    """What the ledger keeps of a dispatch that it has never seen, however it comes to know it.

    Attributes:
        dispatch_id, job_id, task, queue: As in the envelope.
        stage: The stage by which it is written; None without a migration.
        body: The encoded envelope (sealed, if it must not be stored in clear), for whoever publishes it later.
        payload: The arguments as JSON text for people, without secrets.
        user_id, organization_id: From the metadata, as text.
        enqueued_at_ms: When the producer enqueued, on its clock.
        not_before_ms, expires_at_ms: The time window in which it may start.
        max_attempts: How many executions there may be.
        deadline_in_ms: After how long without an end it counts as lost, from now.
    """

    dispatch_id: str
    job_id: str
    task: str
    queue: str
    stage: str | None
    body: bytes
    payload: str
    user_id: str | None = None
    organization_id: str | None = None
    enqueued_at_ms: int
    not_before_ms: int | None = None
    expires_at_ms: int | None = None
    max_attempts: int
    deadline_in_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDispatch(DispatchFacts):
    """A dispatch to be recorded before it is published.

    Attributes:
        copies: The copies that are planned or held.
        check_in_ms: After how long reconcile shall look whether it was published, from now.
    """

    copies: tuple[Copy, ...]
    check_in_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The answer to a record.

    Attributes:
        new: Whether the dispatch was not known before. If it was, nothing was changed.
        state: Its state.
        copies: Its copies as they are known now.
    """

    new: bool
    state: State
    copies: tuple[Copy, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteMark:
    """What became of a write.

    Attributes:
        dispatch_id: The dispatch.
        side: Which copy.
        backend: The name of the backend on that side.
        role: What the copy is for; used if the copy was not planned.
        state: WRITTEN, UNKNOWN, FAILED, or HELD with `due_in_ms`.
        due_in_ms: For HELD, after how long to write it, from now.
        message_id, error: As in `Copy`.
    """

    dispatch_id: str
    side: Side
    backend: str
    role: Role
    state: WriteState
    due_in_ms: int | None = None
    message_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest(DispatchFacts):
    """One delivery that asks for the right to run.

    Attributes:
        backend, message_id: What delivered it.
        side, role: Which copy it is; None without a migration.
        owner: Who wants to run it: host, process and thread, for people.
        lease_ms: How long the claim shall hold without being renewed.
        digest: Digest of task and arguments as this delivery has them; kept, to be compared with a shadow copy's.
    """

    backend: str
    message_id: str
    side: Side | None = None
    role: Role | None = None
    owner: str
    lease_ms: int
    digest: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """The delivery may run.

    Attributes:
        token: The fencing token: greater than every token of this dispatch before.
        attempt: Which execution this is, counted from 1.
        now_ms: The store's time.
    """

    token: int
    attempt: int
    now_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """Another execution holds the claim, or a failed attempt waits for its retry time.

    Attributes:
        until_ms: When it may be asked again.
        now_ms: The store's time.
        epoch: A publication epoch of this dispatch that nobody else has, for parking the delivery.
    """

    until_ms: int
    now_ms: int
    epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The dispatch has ended.

    Attributes:
        state: How.
        first: Whether it ended by this very claim: expired, or its attempts used up.
        owner: Who held the last claim.
    """

    state: State
    first: bool = False
    owner: str | None = None


Claim: TypeAlias = Granted | Busy | Settled


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """The end of a dispatch.

    Attributes:
        state: DONE, FAILED, RETRIED, CANCELLED or EXPIRED.
        result: The task's result as JSON text.
        error: The error in one line, without secrets.
        traceback: Its traceback, without secrets.
    """

    state: State
    result: str | None = None
    error: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowNote(DispatchFacts):
    """What became of a shadow copy.

    Attributes:
        backend, message_id: What delivered it.
        digest: Digest of task and arguments as the shadow copy has them.
        problem: Why it could not have run (unknown task, invalid arguments); None if it could.
    """

    backend: str
    message_id: str
    digest: str
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryRecord:
    """One arrival of a dispatch.

    Attributes:
        backend, message_id: What delivered it.
        side, role: Which copy it was.
        at_ms: When.
        lag_ms: How long after the job could have started: after it was enqueued, or after its not-before time.
        outcome: How the ledger answered.
        attempt: The execution that was granted, or None.
        digest, problem: For shadow copies, as in `ShadowNote`.
    """

    backend: str
    message_id: str
    side: Side | None
    role: Role | None
    at_ms: int
    lag_ms: int
    outcome: DeliveryOutcome
    attempt: int | None = None
    digest: str | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Everything that the ledger knows of a dispatch, but for its body.

    Attributes:
        dispatch_id, job_id, task, queue, stage, payload, user_id, organization_id, enqueued_at_ms, not_before_ms,
        expires_at_ms, max_attempts: As recorded.
        state: What has become of it.
        attempts: How many executions were granted.
        copies: Its copies.
        epoch: The last publication epoch that was given out.
        token: The last fencing token, 0 if there was none.
        owner: Who holds, or last held, the claim.
        lease_until_ms: While it runs, when the claim ends unless it is renewed.
        retry_at_ms: While it waits, when it may be claimed again.
        deadline_ms: When it counts as lost if it has not ended.
        accepted_at_ms: When the ledger first saw it.
        started_at_ms: When the last execution was granted.
        finished_at_ms: When it ended.
        executed_by: The backend whose delivery was granted last.
        executed_role: The role of that copy.
        result, error, traceback: As settled or released.
        stale_settles: How many settlements and releases were refused for a stale token.
        digest: Digest of task and arguments as they ran.
        next_check_at_ms: When reconcile will look at it; None if it need not.
    """

    dispatch_id: str
    job_id: str
    task: str
    queue: str
    stage: str | None
    state: State
    attempts: int
    max_attempts: int
    copies: tuple[Copy, ...]
    epoch: int
    token: int
    owner: str | None
    lease_until_ms: int | None
    retry_at_ms: int | None
    deadline_ms: int
    enqueued_at_ms: int
    not_before_ms: int | None
    expires_at_ms: int | None
    accepted_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    executed_by: str | None
    executed_role: Role | None
    payload: str
    user_id: str | None
    organization_id: str | None
    result: str | None
    error: str | None
    traceback: str | None
    stale_settles: int
    digest: str | None
    next_check_at_ms: int | None

    def copy(self, side: Side) -> Copy | None:
        """Return the copy on one side, None if there is none."""
        return next((copy for copy in self.copies if copy.side is side), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A dispatch that reconcile has to look at.

    Attributes:
        execution: What is known of it.
        body: Its body as recorded.
        epoch: A publication epoch of this dispatch that nobody else has.
        now_ms: The store's time.
    """

    execution: Execution
    body: bytes
    epoch: int
    now_ms: int
