"""RQ workers that ask the ledger before they run a job."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import redis
import rq
import rq.worker
from redis.client import Pipeline
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.utils import utcformat

from queuebridge.backends.rq.backend import RUN_FUNCTION
from queuebridge.backends.rq.calls import envelope_of
from queuebridge.backends.rq.claimed_list import put_off, take_claimed
from queuebridge.backends.rq.forwarding import forwarding_in_use
from queuebridge.backends.rq.identity import FIELD, bound, dispatch_of, is_bound
from queuebridge.backends.rq.job_class import Job as BridgedJob
from queuebridge.backends.rq.job_class import cancel_elsewhere
from queuebridge.backends.rq.marking import MarkingMixin
from queuebridge.backends.rq.performing import (
    JobRunnable,
    Performance,
    PerformanceMixin,
    performing,
)
from queuebridge.backends.rq.queue import Queue
from queuebridge.backends.rq.reconciling_worker import ReconcilingHelper
from queuebridge.backends.rq.told import forget_told
from queuebridge.bridge import Bridge
from queuebridge.delivery import Delivery
from queuebridge.errors import ConfigurationError
from queuebridge.failures import redact
from queuebridge.ledger import State
from queuebridge.outcome import Outcome, Status, describe

logger = logging.getLogger(__name__)

# How often a worker looks for jobs that only workers with claims take; by default RQ waits almost seven minutes for the
# next job.
_LOOK_SECONDS = 2
# A job whose work horse was killed comes again at once; the lease of the dead one decides when it may run.
_AFTER_DEATH_SECONDS = 1.0
# What RQ says of a job whose worker died between the list and the execution.
_STUCK = "Job was stuck in intermediate queue."
_RQ_2 = rq.__version__.startswith("2.")
_ENDED = {
    State.DONE: JobStatus.FINISHED,
    State.FAILED: JobStatus.FAILED,
    State.QUARANTINED: JobStatus.FAILED,
}


class ClaimingMixin(MarkingMixin, PerformanceMixin):
    """For RQ worker classes: `class Mine(ClaimingMixin, rq.worker.RoundRobinWorker)`.

    Without a ledger, and without any setting of queuebridge's, the worker is as RQ made it.
    """

    queue_class: Any = Queue
    job_class: Any = BridgedJob
    connection: Any
    queues: Any
    serializer: Any
    name: str
    log: logging.Logger
    reorder_queues: Callable[..., None]
    get_redis_server_version: Callable[[], Any]
    _ordered_queues: list[rq.Queue]
    is_horse: bool
    _killed_job_id: str | None = None
    _reconciles: ReconcilingHelper | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.queue_class is rq.Queue:
            # What `rq worker` says unless it is told otherwise. Jobs that follow from a job have to go our way.
            self.queue_class = Queue
        if self.job_class is Job:
            self.job_class = BridgedJob
            for queue in self.queues:
                if queue.job_class is Job:
                    queue.job_class = BridgedJob
        if _RQ_2 and isinstance(self, rq.worker.SpawnWorker) and _claiming_bridge() is not None:
            raise ConfigurationError(
                "A SpawnWorker of RQ 2 has RQ's own Worker run the jobs in its child processes, which would not ask "
                "the ledger. Use Worker or SimpleWorker, or RQ 3."
            )

    def claims(self) -> bool:
        """Return whether it asks the ledger."""
        return _claiming_bridge() is not None

    def work(self, burst: bool = False, *args: Any, **kwargs: Any) -> bool:
        """Work as RQ does; beside one of the workers, reconcile. One that ends when there is nothing to do does not."""
        if not burst and self.claims():
            self._reconciles = ReconcilingHelper(self.connection, self.name)
        try:
            worked: bool = super().work(burst, *args, **kwargs)  # type: ignore[misc]
        finally:
            helper, self._reconciles = self._reconciles, None
            if helper is not None:
                with suppress(redis.RedisError, OSError):
                    helper.stop()
        return worked

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Show a sign of life, and see that somebody reconciles."""
        super().heartbeat(timeout, pipeline=pipeline)  # type: ignore[misc]
        if self._reconciles is not None and pipeline is None and not self.is_horse:
            self._reconciles.look()

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for a job as RQ does, but look in between for those that only workers with claims take."""
        wait: Callable[..., Any] = super().dequeue_job_and_maintain_ttl  # type: ignore[misc]
        if not self.claims():
            return wait(timeout, max_idle_time)
        idle_until = time.monotonic() + max_idle_time if max_idle_time is not None else math.inf
        while True:
            taken = self._take_claimed()
            if taken is not None or timeout is None:
                # Without a timeout, as in burst mode, RQ does not wait.
                return taken if taken is not None else wait(timeout, max_idle_time)
            pause = max(min(_LOOK_SECONDS, math.ceil(min(idle_until - time.monotonic(), _LOOK_SECONDS))), 1)
            found = wait(min(timeout, pause), pause)
            if found is not None or time.monotonic() >= idle_until:
                return found

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Note that a job starts, as RQ does; wherever it was taken from, it has passed the intermediate list."""
        remove = remove_from_intermediate_queue or self.claims()
        super().prepare_job_execution(job, remove)  # type: ignore[misc]

    def perform_job(self, job: Job, queue: rq.Queue, *execution: Any) -> bool:
        """Perform a job, if the ledger lets it."""

        perform: Callable[[], bool] = partial(super().perform_job, job, queue, *execution)  # type: ignore[misc]
        forwarding = forwarding_in_use()
        if forwarding is None or _is_task_of_ours(job):
            # A task of ours claims for itself.
            return perform()
        bridge = forwarding.bridge
        field, enqueued_at, status = self._stored(job)
        dispatch_id = dispatch_of(job.id, field, enqueued_at)
        performance = Performance(job_id=job.id, dispatch_id=dispatch_id, marked=field is not None)
        if bridge.runner.claims is None:
            with performing(performance):
                return perform()
        if status == JobStatus.CANCELED or (status == JobStatus.SCHEDULED and not is_bound(field)):
            # It was cancelled, or is with the scheduler, after it had been put on the queue.
            self._leave(job, queue, execution)
            if status == JobStatus.CANCELED:
                # By whatever class: nobody else may have told the ledger.
                cancel_elsewhere(job.id)
            return True
        if field is not None and not is_bound(field):
            self.connection.hset(job.key, FIELD, bound(dispatch_id, enqueued_at))
        if status == JobStatus.FINISHED:
            # Whoever ran it has died between RQ's record, which was written as a whole, and that of the ledger.
            perform = partial(self._take_result, job, queue, execution)
        runnable = JobRunnable(job, performance, perform)
        outcome = bridge.runner.run_as(
            runnable, envelope_of(job, dispatch_id), Delivery(backend="rq", message_id=job.id, attempt=1)
        )
        if runnable.executed:
            if field is not None:
                forget_told(self.connection, dispatch_id)
            return runnable.succeeded
        return self._end_unexecuted(job, queue, execution, outcome, bridge, dispatch_id)

    def handle_work_horse_killed(self, job: Job, *how: Any) -> None:
        """Note it, and do as RQ does."""
        self._killed_job_id = job.id
        super().handle_work_horse_killed(job, *how)  # type: ignore[misc]

    def handle_job_failure(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> None:
        """Do as RQ does; but a job whose worker or work horse has died comes again, as often as the ledger allows."""
        killed, self._killed_job_id = self._killed_job_id == job.id, None
        stuck = kwargs.get("exc_string") == _STUCK
        if (killed or stuck) and _claiming_bridge() is not None:
            execution = kwargs.get("execution")
            self.log.warning("Job %s comes again: the process that had it has died.", job.id)
            self._leave(job, queue, (execution,) if execution is not None else (), again_in=_AFTER_DEATH_SECONDS)
            return
        super().handle_job_failure(job, queue, *args, **kwargs)

    def _take_claimed(self) -> tuple[Job, rq.Queue] | None:
        """Take a job that only workers with claims may take, unless a queue before its own has others."""
        try:
            for queue in self._ordered_queues:
                while (taken := take_claimed(queue, self.connection)).job_id is not None:
                    job = self._fetch_taken(queue, taken.job_id)
                    if job is not None:
                        self.heartbeat()
                        return job, queue
                if taken.others:
                    break
        except (redis.ConnectionError, redis.TimeoutError) as error:
            # RQ's own wait, which comes next, lasts until it is back.
            self.log.warning("Worker %s: could not look for safety copies: %s", self.name, redact(str(error)))
        return None

    def _fetch_taken(self, queue: rq.Queue, job_id: str) -> Job | None:
        try:
            job: Job = self.job_class.fetch(job_id, connection=self.connection, serializer=self.serializer)
        except NoSuchJobError:
            # It was deleted.
            self.connection.lrem(queue.intermediate_queue_key, 1, job_id)
            return None
        self.reorder_queues(reference_queue=queue)
        job.redis_server_version = self.get_redis_server_version()
        self.log.info("Worker %s: %s: %s", self.name, queue.name, job.id)
        return job

    def _end_unexecuted(
        self, job: Job, queue: rq.Queue, execution: tuple[Any, ...], outcome: Outcome, bridge: Bridge, dispatch_id: str
    ) -> bool:
        if outcome.status in (Status.BUSY, Status.DEFERRED):
            self._leave(job, queue, execution, again_in=outcome.retry_delay_seconds or 0.0)
        elif outcome.status is Status.FAILED:
            # Quarantined: RQ shall know, and may have retries of its own.
            with performing(Performance(job_id=job.id, dispatch_id=dispatch_id, marked=True)):
                more = {"execution": execution[0]} if execution else {}
                reason = describe(outcome.error) if outcome.error is not None else outcome.status.value
                super().handle_job_failure(job, queue, exc_string=reason, **more)
        else:
            self._leave(job, queue, execution)
            self._restore_status(job, bridge, dispatch_id)
        return outcome.status is not Status.FAILED

    def _take_result(self, job: Job, queue: rq.Queue, execution: tuple[Any, ...]) -> bool:
        job._result = job.return_value()
        self._leave(job, queue, execution)
        return True

    def _leave(self, job: Job, queue: rq.Queue, execution: tuple[Any, ...], *, again_in: float | None = None) -> None:
        """Take back what RQ noted of an execution that does not take place."""
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(job, pipe, *execution)  # type: ignore[attr-defined]
            pipe.lrem(queue.intermediate_queue_key, 1, job.id)
            if again_in is not None:
                put_off(queue, job.id, again_in, pipe)
            pipe.execute()

    def _restore_status(self, job: Job, bridge: Bridge, dispatch_id: str) -> None:
        """Give a job that has ended its status back, if being put on the queue has changed it."""
        known = bridge.ledger.executions.get(dispatch_id) if bridge.ledger is not None else None
        ended = _ENDED.get(known.state) if known is not None else None
        if ended is not None and self._stored(job)[2] in (JobStatus.QUEUED, JobStatus.SCHEDULED):
            self.connection.hset(job.key, "status", ended.value)

    def _stored(self, job: Job) -> tuple[str | None, str, str | None]:
        """Return the dispatch field of a job, when it was put on its queue, and its status."""
        field, enqueued_at, status = (
            value.decode() if value else None
            for value in self.connection.hmget(job.key, FIELD, "enqueued_at", "status")
        )
        return field, enqueued_at or utcformat(job.enqueued_at or job.created_at), status


class Worker(ClaimingMixin, rq.Worker):
    """RQ's worker, which asks the ledger before it runs a job."""


class SimpleWorker(ClaimingMixin, rq.SimpleWorker):
    """RQ's worker that runs jobs in its own process, which asks the ledger before it runs one."""


def _is_task_of_ours(job: Job) -> bool:
    try:
        return job.func_name == RUN_FUNCTION
    except DeserializationError:
        return False


def _claiming_bridge() -> Bridge | None:
    forwarding = forwarding_in_use()
    return forwarding.bridge if forwarding is not None and forwarding.bridge.runner.claims is not None else None
