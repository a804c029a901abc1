"""Run pushed RQ calls, in the process of the receiver, by RQ's own machinery."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import redis
import rq
from redis import Redis
from redis.client import Pipeline
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.worker import BaseWorker

from queuebridge.backends.rq.allowed import AllowList
from queuebridge.backends.rq.calls import job_of, positional_names
from queuebridge.backends.rq.death_penalty import PushDeathPenalty
from queuebridge.backends.rq.identity import FIELD, bound, follow_up_of, named_by
from queuebridge.backends.rq.performing import Performance, PerformanceMixin, check_carried, outcome_of, performing
from queuebridge.backends.rq.queue import Queue
from queuebridge.backends.rq.settings import RQSettings
from queuebridge.backends.rq.told import forget_told, note_told, was_told
from queuebridge.context import executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, MalformedEnvelope, PermanentFailure, QueueBridgeError
from queuebridge.failures import redact
from queuebridge.outcome import Outcome, Status, describe
from queuebridge.runnable import Runnable, current_job_of, json_result
from queuebridge.settings import environment_or, read_settings
from queuebridge.tracing import continued

if TYPE_CHECKING:
    from queuebridge.lease import Lease

logger = logging.getLogger(__name__)

_WITHOUT_REDIS_SECONDS = 15.0
_MISCONFIGURED_SECONDS = 60.0
WORKER_NAME = "queuebridge-receiver"
_NOT_ENDED = (JobStatus.STARTED.value, JobStatus.QUEUED.value, JobStatus.SCHEDULED.value)
_TAKES_EXECUTION = "execution" in inspect.signature(BaseWorker.perform_job).parameters


def find(envelope: Envelope) -> Runnable:
    """Return the function that a pushed RQ call names, to be run.

    Raises:
        ConfigurationError: Its module is not one that may be imported for such a call.
        UnknownTask: Its module has no such function.
        ConfigurationError: There is no Redis, where RQ keeps what becomes of jobs.
    """
    allowed = AllowList.from_environment()
    url = read_settings(RQSettings, environment_or(None)).redis_url
    if url is None:
        raise ConfigurationError(
            "A pushed RQ call needs REDIS_URL (or RQ_REDIS_URL) at the receiver: RQ keeps results and status in Redis."
        )
    return PushedCall(allowed.find(envelope.task), envelope.task, allowed, _connection(url.get_secret_value()))


class PushedCall:
    """A pushed RQ call.

    Args:
        function: What it calls.
        name: Its name.
        allowed: What else it may name.
        connection: RQ's Redis.
    """

    def __init__(self, function: Any, name: str, allowed: AllowList, connection: Redis) -> None:
        self.name = name
        self._function = function
        self._allowed = allowed
        self._connection = connection

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of the function's positional parameters."""
        return positional_names(self._function)

    def check(self, envelope: Envelope) -> None:
        """Find out whether RQ could perform it; see `Runnable.check`."""
        check_carried(envelope, self._allowed)

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Have RQ perform it; see `Runnable.execute`."""
        try:
            job = job_of(envelope, self._connection, self._allowed)
            outcome = _meet_record(job, envelope, claimed=lease is not None)
            if outcome is None:
                outcome = self._perform(job, envelope, delivery, lease)
        except MalformedEnvelope as error:
            return Outcome(status=Status.FAILED, error=error)
        except ConfigurationError as error:
            # Another process may be set up better.
            return Outcome(status=Status.RETRY, error=error, retry_delay_seconds=_MISCONFIGURED_SECONDS)
        except (redis.RedisError, OSError) as error:
            return Outcome(status=Status.RETRY, error=error, retry_delay_seconds=_WITHOUT_REDIS_SECONDS)
        if lease is not None:
            with suppress(redis.RedisError, OSError):
                forget_told(self._connection, envelope.dispatch_id)
        return outcome

    def give_up(self, envelope: Envelope, outcome: Outcome) -> None:
        """Have RQ record that it failed, with its own retries; see `KeepsRecords.give_up`."""
        try:
            job = job_of(envelope, self._connection, self._allowed)
            status, field = cast("list[bytes | None]", self._connection.hmget(job.key, "status", FIELD))
            named = named_by(field.decode() if field is not None else None)
            if status is None or status.decode() not in _NOT_ENDED or named != envelope.dispatch_id:
                # It has ended, or another dispatch of it counts by now.
                return
            queue = Queue(envelope.queue, connection=self._connection, job_class=type(job), serializer=job.serializer)
            worker = PushWorker(queue)
            worker.execution = Execution(id=envelope.dispatch_id, job_id=job.id, connection=self._connection)
            worker.execution._job = job
            more = {"execution": worker.execution} if _TAKES_EXECUTION else {}
            with performing(Performance(job_id=job.id, dispatch_id=envelope.dispatch_id, marked=True)):
                worker.handle_job_failure(job, queue, exc_string=outcome.reason, **more)
        except (QueueBridgeError, redis.RedisError, OSError) as error:
            logger.error(
                "RQ could not be told that job %s has failed: %s",
                envelope.job_id,
                redact(describe(error)),
                extra={"event": "rq_not_told", "job_id": envelope.job_id},
            )

    def _perform(self, job: Job, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        queue = Queue(envelope.queue, connection=self._connection, job_class=type(job), serializer=job.serializer)
        worker = PushWorker(queue)
        performance = Performance(job_id=job.id, dispatch_id=envelope.dispatch_id, marked=True, lease=lease)
        execution = worker.begin(job, envelope.dispatch_id)
        more = (execution,) if _TAKES_EXECUTION else ()
        with (
            executing(current_job_of(envelope, delivery, time.time(), lease)),
            continued(envelope.trace, envelope.task),
            performing(performance),
        ):
            worker.perform_job(job, queue, *more)
        return outcome_of(job, performance, envelope)


class PushWorker(PerformanceMixin, rq.SimpleWorker):
    """Performs one pushed job: an RQ worker that no queue, heartbeat or statistics of RQ's know."""

    queue_class = Queue
    death_penalty_class: Any = PushDeathPenalty

    def __init__(self, queue: Queue) -> None:
        super().__init__(
            [queue],
            name=WORKER_NAME,
            connection=queue.connection,
            job_class=queue.job_class,
            serializer=queue.serializer,
            prepare_for_work=False,
        )
        queue.death_penalty_class = PushDeathPenalty

    def _set_connection(self, connection: Redis) -> Redis:
        return connection

    def begin(self, job: Job, dispatch_id: str) -> Execution:
        """Note an execution, in the way in which RQ shows those that are under way."""
        execution = Execution(id=dispatch_id, job_id=job.id, connection=self.connection)
        execution._job = job
        ttl = self.get_heartbeat_ttl(job)
        with self.connection.pipeline() as pipe:
            execution.save(ttl, pipeline=pipe)
            ExecutionRegistry(job_id=job.id, connection=self.connection).add(
                execution=execution, ttl=ttl, pipeline=pipe
            )
            # Without an end: RQ's workers would take it for abandoned and publish it again, which is for the transport
            # to do. Under the id of its dispatch, so that its next delivery has the same entry.
            job.started_job_registry.add_execution(execution, pipeline=pipe, ttl=-1)
            pipe.execute()
        self.execution = execution
        return execution

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:  # noqa: ARG002
        """Note that the job has started; it did not come from RQ's queue."""
        super().prepare_job_execution(job, False)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Do nothing: there is no worker to be shown."""

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Do nothing; as above."""

    def set_current_job_id(self, job_id: str | None = None, pipeline: Pipeline | None = None) -> None:
        """Do nothing; as above. (RQ 2)"""

    def set_current_job_working_time(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; as above. (RQ 2)"""

    def procline(self, message: str) -> None:
        """Do nothing: the process is the receiver's."""

    def increment_failed_job_count(self, pipeline: Pipeline | None = None) -> None:
        """Do nothing: there is no worker that counts."""

    def increment_successful_job_count(self, pipeline: Pipeline | None = None) -> None:
        """Do nothing; as above."""

    def increment_total_working_time(self, job_execution_time: Any, pipeline: Pipeline) -> None:
        """Do nothing; as above."""


def _meet_record(job: Job, envelope: Envelope, *, claimed: bool) -> Outcome | None:
    """Bring a job and RQ's record of it together; returns how the delivery ends if it is not to run any more."""
    status, meta, field = cast("list[bytes | None]", job.connection.hmget(job.key, "status", "meta", FIELD))
    if status is None:
        unsaved = bool(envelope.message.get("unsaved"))
        # Under a claim it has neither ended nor been cancelled, so that Redis must have lost it.
        if was_told(job.connection, envelope.dispatch_id) or not (unsaved or claimed):
            return _ended("RQ has no record of it any more: it was deleted, or its ttl has passed.")
        if not unsaved:
            logger.warning(
                "Redis has lost the record of job %s; it is made anew, and the job runs.",
                job.id,
                extra={"event": "rq_record_lost", "job_id": job.id},
            )
        with job.connection.pipeline() as pipe:
            job.save(pipeline=pipe)
            pipe.sadd(rq.Queue.redis_queues_keys, Queue(envelope.queue, connection=job.connection).key)
            pipe.hset(job.key, FIELD, bound(envelope.dispatch_id, None))
            note_told(pipe, envelope.dispatch_id, None)
            pipe.execute()
        return None
    if JobStatus(status.decode()) in (JobStatus.CANCELED, JobStatus.STOPPED):
        return _ended("It was cancelled in RQ.")
    named = named_by(field.decode() if field is not None else None)
    if named == follow_up_of(envelope.dispatch_id, job.id):
        # Its answer, or its settlement, was lost. RQ's record was written as a whole.
        return Outcome(status=Status.RETRIED, error=PermanentFailure("An earlier delivery of it ran."))
    if named == envelope.dispatch_id and status.decode() == JobStatus.FINISHED.value:
        return Outcome(status=Status.DONE, result=json_result(envelope, job.return_value()))
    if meta:
        # What has been saved since it was enqueued.
        job.meta = job.serializer.loads(meta)
    return None


def _ended(reason: str) -> Outcome:
    return Outcome(status=Status.EXPIRED, error=PermanentFailure(reason))


@lru_cache(maxsize=4)
def _connection(url: str) -> Redis:
    return Redis.from_url(url)
