"""What became of the writes of a job: for the ledger as marks, for the caller as a receipt."""

from __future__ import annotations

from dataclasses import dataclass, field

from queuebridge.errors import PublishOutcomeUnknown
from queuebridge.ledger import Copy, Recorded, WriteMark, WriteState
from queuebridge.publishing.copies import PlannedCopy, Prepared
from queuebridge.publishing.writing import one_line
from queuebridge.receipt import Receipt, Write
from queuebridge.stages import Role, Side


@dataclass(kw_only=True, slots=True)
class Job:
    """A job on its way.

    Attributes:
        prepared: What to write.
        recorded: Whether the ledger has it.
        new: Whether the ledger has it by this very enqueue, and not by an earlier one under the same key.
        maybe_recorded: The ledger did not answer: it may have it.
        committed: Whether it was recorded in a transaction of the caller's, who cannot be told of failures any more.
        results: What became of each write so far.
    """

    prepared: Prepared
    recorded: bool = False
    new: bool = False
    maybe_recorded: bool = False
    committed: bool = False
    results: dict[Side, Write | Exception] = field(default_factory=dict)


def planned(copy: PlannedCopy) -> Copy:
    """Return a copy as the ledger records it before it is written."""
    return Copy(
        side=copy.side,
        backend=copy.backend.name,
        role=copy.role,
        state=WriteState.HELD if copy.held_until_ms is not None else WriteState.PLANNED,
        due_at_ms=copy.held_until_ms,
    )


def is_out(copy: Copy) -> bool:
    """Return whether a recorded copy is with a backend, or certain to get there."""
    return copy.role is not Role.SHADOW and copy.state in (WriteState.WRITTEN, WriteState.HELD)


def is_incomplete(job: Job) -> bool:
    """Return whether a copy that could run the job was not written, or not for certain."""
    return any(
        isinstance(result, Exception) and job.prepared.copies[side].role is not Role.SHADOW
        for side, result in job.results.items()
    )


def marks_of(job: Job) -> list[WriteMark]:
    """Return the results of a job as marks for the ledger."""
    marks = []
    for side, result in job.results.items():
        copy = job.prepared.copies[side]
        state = WriteState.WRITTEN
        if isinstance(result, PublishOutcomeUnknown):
            state = WriteState.UNKNOWN
        elif isinstance(result, Exception):
            state = WriteState.FAILED
        marks.append(
            WriteMark(
                dispatch_id=job.prepared.envelope.dispatch_id,
                side=side,
                backend=copy.backend.name,
                role=copy.role,
                state=state,
                message_id=result.message_id if isinstance(result, Write) else None,
                error=None if isinstance(result, Write) else one_line(result),
            )
        )
    return marks


def known_receipt(prepared: Prepared, record: Recorded) -> Receipt:
    """Return the receipt for a job that an earlier enqueue has brought already."""
    envelope = prepared.envelope
    copies = [copy for copy in record.copies if copy.role is not Role.SHADOW]
    writes = tuple(
        Write(backend=copy.backend, message_id=copy.message_id or envelope.job_id, deduplicated=True)
        for copy in copies
        if copy.state is WriteState.WRITTEN
    )
    return Receipt(
        job_id=envelope.job_id,
        dispatch_id=envelope.dispatch_id,
        task=envelope.task,
        queue=envelope.queue,
        writes=writes,
        stage=envelope.stage.value if envelope.stage is not None else None,
        recorded=True,
        held=next((copy.backend for copy in copies if copy.state is WriteState.HELD), None),
        unconfirmed=tuple(copy.backend for copy in copies if copy.state is WriteState.UNKNOWN),
        failed=tuple(copy.backend for copy in copies if copy.state is WriteState.FAILED),
    )


def receipt_of(job: Job, *, recorded: bool, spooled: bool = False, pending_commit: bool = False) -> Receipt:
    """Return what is known of a job, as a receipt."""
    prepared = job.prepared
    envelope = prepared.envelope
    ordered = sorted(job.results.items(), key=lambda item: item[0] is not prepared.plan.preferred)
    runnable = [(side, r) for side, r in ordered if prepared.copies[side].role is not Role.SHADOW]
    held = next((c for s, c in prepared.copies.items() if c.held_until_ms is not None and s not in job.results), None)
    return Receipt(
        job_id=envelope.job_id,
        dispatch_id=envelope.dispatch_id,
        task=envelope.task,
        queue=envelope.queue,
        writes=tuple(result for _, result in runnable if isinstance(result, Write)),
        stage=envelope.stage.value if envelope.stage is not None else None,
        recorded=recorded,
        held=held.backend.name if held is not None and job.new else None,
        unconfirmed=tuple(prepared.copies[s].backend.name for s, r in ordered if isinstance(r, PublishOutcomeUnknown)),
        failed=tuple(
            prepared.copies[s].backend.name
            for s, r in ordered
            if isinstance(r, Exception) and not isinstance(r, PublishOutcomeUnknown)
        ),
        spooled=spooled,
        pending_commit=pending_commit,
    )
