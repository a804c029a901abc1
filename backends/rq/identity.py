"""Which dispatch an RQ job stands for at the moment.

RQ keeps one hash for a job, whatever is published of it: first run, retries, repeats. What tells one publication from
the next is the time at which the job was put on its queue, which RQ writes anew each time. So the dispatch id is made
from job id and that time, and a job that RQ alone has enqueued needs nothing of ours in Redis.

Two cases need more: a copy that RQ's scheduler puts on the queue at a later time, and a job of which the push side has
to know the dispatch. Then the hash has one more field, which RQ ignores. It is bound to a time on the queue, or, while
the job is with the scheduler, to the next one.
"""

from __future__ import annotations

import hashlib

FIELD = "queuebridge"


def dispatch_at(job_id: str, enqueued_at: str) -> str:
    """Return the dispatch of a job that was put on its queue at this time, as RQ writes it."""
    return "rq-" + hashlib.sha256(f"{job_id} {enqueued_at}".encode()).hexdigest()[:40]


def follow_up_of(dispatch_id: str, job_id: str) -> str:
    """Return the dispatch that an execution publishes of a job: a retry or repeat of its own, or a dependent.

    An execution that died before it was settled runs again, and publishes the same ones again.
    """
    return "rq-" + hashlib.sha256(f"{dispatch_id} then {job_id}".encode()).hexdigest()[:40]


def bound(dispatch_id: str, enqueued_at: str | None) -> str:
    """Return the field for a dispatch; without a time it holds for the next one that RQ's scheduler writes."""
    return f"{dispatch_id}@{enqueued_at}" if enqueued_at is not None else dispatch_id


def is_bound(field: str | None) -> bool:
    """Return whether a field names a time on the queue."""
    return field is not None and "@" in field


def named_by(field: str | None) -> str | None:
    """Return the dispatch that a field names, whatever time it is bound to."""
    return field.partition("@")[0] if field else None


def dispatch_of(job_id: str, field: str | None, enqueued_at: str) -> str:
    """Return the dispatch that a job stands for, from its hash."""
    if field:
        dispatch_id, _, time = field.partition("@")
        if not time or time == enqueued_at:
            return dispatch_id
    # Put on the queue again by a process without the bridge: another publication.
    return dispatch_at(job_id, enqueued_at)
