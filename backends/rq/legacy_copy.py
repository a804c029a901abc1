"""Bring an RQ call that comes in an envelope to RQ's workers, as the legacy copy of a dispatch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import rq
from redis import Redis
from rq.job import Job, JobStatus
from rq.utils import utcformat

from queuebridge.backend import Publication
from queuebridge.backends.rq.allowed import AllowList
from queuebridge.backends.rq.calls import job_of
from queuebridge.backends.rq.claimed_list import add_claimed, add_claimed_at
from queuebridge.backends.rq.identity import FIELD, bound
from queuebridge.backends.rq.told import note_told, was_told
from queuebridge.envelope import Envelope
from queuebridge.ledger.custody import OPAQUE
from queuebridge.stages import Role

_KEEP_DELETED_SECONDS = 86_400


def enqueue_copy(connection: Redis, publication: Publication) -> None:
    """Write one copy. Whoever takes it off the queue knows its dispatch.

    A safety copy is for workers with claims only. A job that Redis does not have is made from the envelope, which has
    all of it; so reconcile can bring it, and a job that was accepted while Redis was away.
    """
    envelope = publication.envelope
    options: Mapping[str, Any] = publication.options
    saved = bool(options.get("saved"))
    queue = rq.Queue(envelope.queue, connection=connection)
    key = Job.key_for(envelope.job_id)
    safety, later, at_front = envelope.role is Role.SAFETY, _is_later(envelope), bool(options.get("at_front"))
    changes_status = False
    with connection.pipeline() as pipe:
        pipe.sadd(rq.Queue.redis_queues_keys, queue.key)
        if not saved:
            status = connection.hget(key, "status")
            if status is None and OPAQUE not in envelope.message:
                _restore(envelope, connection, pipe)
            # One that has ended and is not settled shall be settled as it ended.
            changes_status = status != JobStatus.FINISHED.value.encode()
            if status is None and was_told(connection, envelope.dispatch_id):
                # It was deleted: whoever takes the copy tells the ledger that it is not to run.
                changes_status = False
                pipe.hset(key, "status", JobStatus.CANCELED.value)
                pipe.expire(key, _KEEP_DELETED_SECONDS)
        if not saved or (safety and later):
            # Of what waits with RQ's scheduler, that one writes the time.
            bound_to = None if later and not safety else _queued_at(envelope)
            pipe.hset(key, FIELD, bound(envelope.dispatch_id, bound_to))
            if bound_to is not None:
                pipe.hset(key, "enqueued_at", bound_to)
        if changes_status:
            pipe.hset(key, "status", (JobStatus.SCHEDULED if later else JobStatus.QUEUED).value)
        if later and safety:
            add_claimed_at(queue, envelope.job_id, (envelope.not_before_ms or 0) / 1000, pipe)
        elif later:
            start = datetime.fromtimestamp((envelope.not_before_ms or 0) // 1000, timezone.utc)
            queue.scheduled_job_registry.schedule(_named(envelope.job_id, connection), start, pipeline=pipe)
        elif safety:
            add_claimed(queue, envelope.job_id, pipe, at_front=at_front)
        else:
            queue.push_job_id(envelope.job_id, pipeline=pipe, at_front=at_front)
        pipe.execute()


def _restore(envelope: Envelope, connection: Redis, pipe: Any) -> None:
    job = job_of(envelope, connection, AllowList.from_environment())
    job.save(pipeline=pipe)
    job.cleanup(job.ttl, pipeline=pipe)
    note_told(pipe, envelope.dispatch_id, envelope.not_before_ms)


def _named(job_id: str, connection: Redis) -> Job:
    return Job(job_id, connection=connection)


def _is_later(envelope: Envelope) -> bool:
    return envelope.not_before_ms is not None and envelope.not_before_ms > time.time() * 1000


def _queued_at(envelope: Envelope) -> str:
    """Return when the job was put on its queue: the time that its dispatch is bound to."""
    fields = envelope.message.get("hash") or {}
    return str(
        fields.get("enqueued_at") or utcformat(datetime.fromtimestamp(envelope.enqueued_at_ms / 1000, timezone.utc))
    )
