"""RQ's registries from which jobs are enqueued, so that these go where their stage says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rq.registry
from redis import WatchError
from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.utils import as_text

from queuebridge.backends.rq.forwarding import falling_back
from queuebridge.errors import PublishOutcomeUnknown, QueueBridgeError

if TYPE_CHECKING:
    from queuebridge.backends.rq.queue import Queue


class ForwardingFailedJobRegistry(FailedJobRegistry):
    """The failed jobs of a queue; requeued from here, they go where their stage says."""

    def requeue(self, job_or_id: Job | str, at_front: bool = False) -> Job:
        """Enqueue a failed job again; see RQ. One that cannot go where it has to, or that nobody takes, stays failed.

        Raises:
            QueueBridgeError: It cannot be pushed, or nobody took it.
        """
        job = (
            job_or_id
            if isinstance(job_or_id, Job)
            else self.job_class.fetch(job_or_id, connection=self.connection, serializer=self.serializer)
        )
        queue = self._queue_of(job)
        # Before anything is written.
        route = queue.route(job)
        if route is None or getattr(job, "rate_limit_key", None):
            return super().requeue(job, at_front=at_front)
        expiry = self.connection.zscore(self.key, job.id)
        before: dict[Any, Any] = self.connection.hgetall(job.key)
        lives_ms = self.connection.pttl(job.key)
        if expiry is None or not self.connection.zrem(self.key, job.id):
            raise InvalidJobOperation
        job.started_at = None
        job.ended_at = None
        job._exc_info = ""
        try:
            with self.connection.pipeline() as pipeline:
                queue._enqueue_job(job, pipeline=pipeline, at_front=at_front)
                pipeline.execute()
        except PublishOutcomeUnknown:
            # It may run.
            raise
        except QueueBridgeError:
            with self.connection.pipeline() as pipeline:
                pipeline.delete(job.key)
                pipeline.hset(job.key, mapping=before)
                if lives_ms > 0:
                    pipeline.pexpire(job.key, lives_ms)
                pipeline.zadd(self.key, {job.id: expiry})
                pipeline.execute()
            raise
        return job

    def _queue_of(self, job: Job) -> Queue:
        from queuebridge.backends.rq.queue import Queue

        return Queue(job.origin, connection=self.connection, job_class=self.job_class, serializer=job.serializer)


def ready_registry_of(queue: Queue) -> Any:
    """Return the jobs of a queue whose dependencies are met; RQ has had them since version 3."""

    class ForwardingReadyJobRegistry(rq.registry.ReadyJobRegistry):  # type: ignore[misc, name-defined, unused-ignore]
        def enqueue_jobs(self, job_ids: list[str]) -> list[Job]:
            """Enqueue jobs; as RQ, but through our queue."""
            jobs = self.job_class.fetch_many(job_ids, connection=self.connection, serializer=self.serializer)
            enqueued = []
            for job_id, job in zip(job_ids, jobs, strict=True):
                if job is None or job.get_status(refresh=False) != JobStatus.READY_TO_ENQUEUE:
                    self.connection.zrem(self.key, job_id)
                elif self._enqueue(job):
                    enqueued.append(job)
            return enqueued

        def _enqueue(self, job: Job) -> bool:
            try:
                with falling_back(), self.connection.pipeline() as pipe:
                    pipe.watch(self.key, job.key)  # type: ignore[no-untyped-call]
                    status = pipe.hget(job.key, "status")
                    if pipe.zscore(self.key, job.id) is None:
                        return False
                    pipe.multi()
                    self.remove(job, pipeline=pipe)
                    wanted = status is not None and as_text(status) == JobStatus.READY_TO_ENQUEUE.value
                    if wanted and job.has_rate_limit:
                        queue._enqueue_rate_limited_job(job, pipeline=pipe)
                    elif wanted:
                        queue._enqueue_job(job, pipeline=pipe, at_front=job.should_enqueue_at_front())
                    pipe.execute()
            except WatchError:
                return False
            except Exception:
                queue.log.exception("Failed to enqueue ready job %s; leaving it in ReadyJobRegistry", job.id)
                return False
            return wanted

    return ForwardingReadyJobRegistry(queue=queue, job_class=queue.job_class, serializer=queue.serializer)
