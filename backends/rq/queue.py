"""RQ's `Queue`, with one difference: what it enqueues goes where the stage of the migration says."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

import redis
import rq
from redis.client import Pipeline
from rq.job import Job, JobStatus
from rq.scripts import save_unique_job
from rq.utils import now, utcformat

from queuebridge.backends.rq.forwarding import (
    Pending,
    Route,
    after_execute,
    falling_back,
    is_falling_back,
    publish_all,
    route_of,
)
from queuebridge.backends.rq.identity import FIELD, bound, dispatch_at, follow_up_of
from queuebridge.backends.rq.job_class import Job as BridgedJob
from queuebridge.backends.rq.performing import current_performance
from queuebridge.backends.rq.registries import ForwardingFailedJobRegistry, ready_registry_of
from queuebridge.backends.rq.told import note_told
from queuebridge.failures import redact
from queuebridge.foreign import is_chosen
from queuebridge.ids import new_dispatch_id

# On a job that RQ takes alone, until it has.
_LEFT = "_queuebridge_left_to_rq"


class Queue(rq.Queue):
    """RQ's queue for a migration.

    Without QUEUEBRIDGE_BACKEND, QUEUEBRIDGE_LEGACY or QUEUEBRIDGE_STAGE in the environment, and in stage `legacy`, it
    is RQ's queue in every respect. In other stages it refuses what cannot be pushed when it is enqueued.
    """

    job_class: type[Job] = BridgedJob

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.job_class is Job:
            # What RQ's own code says unless it is told otherwise.
            self.job_class = BridgedJob

    @cached_property
    def is_bridged(self) -> bool:
        """Return whether the environment says where jobs go."""
        return is_chosen()

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        """Create a job as RQ does, and refuse a dependent one that could not go where its stage sends it."""
        job = super().create_job(*args, **kwargs)
        if job._dependency_ids:
            # One that has to wait for others would be refused when nobody listens any more.
            route = route_of(self, job)
            if route is not None and route.pushes:
                route.check(job)
        return job

    def enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Enqueue a job; see RQ. One that is pushed is accepted also while Redis is away, if it waits for no other."""
        if pipeline is None and not unique and not job._dependency_ids:
            route = self.route(job)
            if route is not None:
                # RQ's own way begins with writes that the publication makes too.
                return self._publish(route, job, None, unique=False, at_front=at_front, not_before=None)
            # So that it is not found out a second time in a moment.
            setattr(job, _LEFT, True)
        return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)

    def schedule_job(
        self,
        job: Job,
        datetime: datetime,
        pipeline: Pipeline | None = None,
        unique: bool = False,
    ) -> Job:
        """Have a job enqueued at a time; see RQ."""
        _need_id(job, unique)
        route = self.route(job)
        if route is None:
            job = super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
            self._note_follow_up(job, pipeline, None)
            return job
        # RQ takes a time without zone for the machine's, and drops fractions of a second.
        start = datetime.astimezone(timezone.utc).replace(microsecond=0)
        return self._publish(route, job, pipeline, unique=unique, at_front=False, not_before=start)

    def _enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        if getattr(job, _LEFT, False):
            setattr(job, _LEFT, False)
            return super()._enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        _need_id(job, unique)
        route = self.route(job)
        if route is None:
            job = super()._enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
            self._note_follow_up(job, pipeline, job.enqueued_at)
            return job
        return self._publish(route, job, pipeline, unique=unique, at_front=at_front, not_before=None)

    def _enqueue_rate_limited_job(self, job: Job, *args: Any, **kwargs: Any) -> Job:
        route = route_of(self, job)
        if route is not None:
            route.check(job)
        limited: Job = super()._enqueue_rate_limited_job(job, *args, **kwargs)  # type: ignore[misc, unused-ignore]
        return limited

    def enqueue_dependents(self, *args: Any, **kwargs: Any) -> Any:
        """Enqueue the dependents of a job; see RQ."""
        with falling_back():
            return super().enqueue_dependents(*args, **kwargs)

    @property
    def failed_job_registry(self) -> ForwardingFailedJobRegistry:
        """Return the failed jobs of this queue; requeued from here, they go where their stage says."""
        return ForwardingFailedJobRegistry(queue=self, job_class=self.job_class, serializer=self.serializer)

    @property
    def ready_job_registry(self) -> Any:
        """Return the jobs of this queue whose dependencies are met (RQ 3)."""
        return ready_registry_of(self)

    def route(self, job: Job) -> Route | None:
        """Return where a job goes; None if RQ takes it alone.

        Raises:
            QueueBridgeError: It cannot go where it has to.
        """
        route = route_of(self, job)
        return route if route is not None and route.check(job) else None

    def _publish(
        self,
        route: Route,
        job: Job,
        pipeline: Pipeline | None,
        *,
        unique: bool,
        at_front: bool,
        not_before: datetime | None,
    ) -> Job:
        """Write of a job what RQ would, but for its place on the queue, and publish it after that."""
        performance = current_performance()
        # RQ's own machinery, in an execution, and not a job that the function enqueues.
        follows = pipeline is not None and (performance is not None or is_falling_back())
        status = job.get_status(refresh=False)
        is_new = job.started_at is None and status in (JobStatus.CREATED, JobStatus.QUEUED, JobStatus.SCHEDULED)
        job.origin = self.name
        job.enqueued_at = now() if not_before is None else job.enqueued_at
        job.timeout = job.timeout if job.timeout is not None else self._default_timeout
        job._status = JobStatus.QUEUED if not_before is None else JobStatus.SCHEDULED
        queued_at = utcformat(job.enqueued_at) if not_before is None and job.enqueued_at is not None else None
        if performance is not None and pipeline is not None:
            dispatch_id = follow_up_of(performance.dispatch_id, job.id)
            performance.published.add(job.id)
        else:
            dispatch_id = dispatch_at(job.id, queued_at) if queued_at is not None else new_dispatch_id()

        def pending(*, unsaved: bool = False) -> Pending:
            prepared = route.prepare(
                job, dispatch_id=dispatch_id, not_before=not_before, unsaved=unsaved, at_front=at_front
            )
            return Pending(
                route=route,
                prepared=prepared,
                job=job,
                take_back=lambda: self._take_back(job) if is_new else None,
                fall_back=(
                    (lambda: self._put_on_queue(job, at_front=at_front, not_before=not_before)) if follows else None
                ),
            )

        one = pending()
        if unique:
            save_unique_job(self.connection, self.key, job, enqueue=False)  # type: ignore[no-untyped-call]
        pipe = pipeline if pipeline is not None else self.connection.pipeline()
        if status == JobStatus.DEFERRED:
            self.deferred_job_registry.remove(job, pipeline=pipe)
        pipe.sadd(self.redis_queues_keys, self.key)
        if not unique:
            self._persist_job(job, pipe, status=job._status)
        pipe.hset(job.key, FIELD, bound(dispatch_id, queued_at))
        if route.pushes and route.forwarding.bridge.ledger is not None:
            note_told(pipe, dispatch_id, int(not_before.timestamp() * 1000) if not_before is not None else None)
        if pipeline is not None:
            after_execute(pipe, one)
            return job
        try:
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            if not route.pushes:
                raise
            self.log.warning(
                "Job %s is not in Redis yet (%s): who runs it will see to that.", job.id, redact(str(error))
            )
            one = pending(unsaved=True)
        publish_all([one])
        return job

    def _take_back(self, job: Job) -> None:
        # Where Redis is away, nothing was written.
        with suppress(redis.RedisError, OSError):
            self.connection.delete(job.key)

    def _put_on_queue(self, job: Job, *, at_front: bool, not_before: datetime | None) -> None:
        if not_before is None:
            self.push_job_id(job.id, at_front=at_front)
        else:
            self.scheduled_job_registry.schedule(job, not_before)

    def _note_follow_up(self, job: Job, pipeline: Pipeline | None, enqueued_at: datetime | None) -> None:
        """Keep an execution from being taken for the next one of its job, which RQ publishes alone."""
        performance = current_performance()
        if performance is None or pipeline is None:
            return
        performance.published.add(job.id)
        if job.id == performance.job_id and performance.marked:
            queued_at = utcformat(enqueued_at) if enqueued_at is not None else None
            pipeline.hset(job.key, FIELD, bound(follow_up_of(performance.dispatch_id, job.id), queued_at))


def _need_id(job: Job, unique: bool) -> None:
    """Refuse what RQ refuses; before the job is asked for its id, for it would make one."""
    if unique and not job._id:
        raise ValueError("unique=True requires an explicit job_id")
