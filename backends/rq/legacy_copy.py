"""Put an RQ call that comes in an envelope onto RQ's own queue, as the legacy copy of a dispatch."""

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
from queuebridge.backends.rq.identity import FIELD, bound
from queuebridge.envelope import Envelope
from queuebridge.ledger.custody import OPAQUE


def enqueue_copy(connection: Redis, publication: Publication) -> None:
    """Write one copy. Whoever takes it off the queue knows its dispatch.

    A job that Redis does not have is made from the envelope, which has all of it; so reconcile can bring it, and a
    job that was accepted while Redis was away.
    """
    envelope = publication.envelope
    options: Mapping[str, Any] = publication.options
    saved = bool(options.get("saved"))
    queue = rq.Queue(envelope.queue, connection=connection)
    key = Job.key_for(envelope.job_id)
    changes_status = False
    with connection.pipeline() as pipe:
        pipe.sadd(rq.Queue.redis_queues_keys, queue.key)
        if not saved:
            status = connection.hget(key, "status")
            if status is None and OPAQUE not in envelope.message:
                _restore(envelope, connection, pipe)
            # One that has ended and is not settled shall be settled as it ended.
            changes_status = status != JobStatus.FINISHED.value.encode()
            pipe.hset(key, FIELD, bound(envelope.dispatch_id, None if _is_later(envelope) else _queued_at(envelope)))
        if _is_later(envelope):
            start = datetime.fromtimestamp((envelope.not_before_ms or 0) // 1000, timezone.utc)
            if changes_status:
                pipe.hset(key, "status", JobStatus.SCHEDULED.value)
            queue.scheduled_job_registry.schedule(_named(envelope.job_id, connection), start, pipeline=pipe)
        else:
            if not saved:
                pipe.hset(key, "enqueued_at", _queued_at(envelope))
            if changes_status:
                pipe.hset(key, "status", JobStatus.QUEUED.value)
            queue.push_job_id(envelope.job_id, pipeline=pipe, at_front=bool(options.get("at_front")))
        pipe.execute()


def _restore(envelope: Envelope, connection: Redis, pipe: Any) -> None:
    job = job_of(envelope, connection, AllowList.from_environment())
    job.save(pipeline=pipe)
    job.cleanup(job.ttl, pipeline=pipe)


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
