"""RQ's `Job`, with one difference: what it enqueues again goes where the stage of the migration says."""

from __future__ import annotations

import logging
from typing import Any

import rq
import rq.job
from redis import Redis, WatchError
from redis.client import Pipeline
from rq.exceptions import InvalidJobOperation
from rq.job import JobStatus
from rq.registry import FailedJobRegistry

from queuebridge.bridge import get_bridge
from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.foreign import is_chosen
from queuebridge.outcome import describe

logger = logging.getLogger(__name__)

_RQ_2 = rq.__version__.startswith("2.")


class _TakesRQs(type):
    """For `Job`: a job of RQ's own passes for one of ours.

    RQ compares jobs, and looks for them in registries, by asking whether they are of the class in use; and a program
    may go on to import RQ's.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or (cls is Job and type(instance) is rq.job.Job)


class Job(rq.job.Job, metaclass=_TakesRQs):
    """RQ's job for a migration; what queues of ours return, and what their workers run."""

    # The transaction that `cancel` has to open before it writes.
    _unopened: Pipeline | None = None

    @property
    def failed_job_registry(self) -> FailedJobRegistry:
        """Return the failed jobs of its queue; through it, `requeue` puts a job where its stage says."""
        from queuebridge.backends.rq.registries import ForwardingFailedJobRegistry

        return ForwardingFailedJobRegistry(
            self.origin, connection=self.connection, job_class=self.__class__, serializer=self.serializer
        )

    def cancel(
        self,
        pipeline: Pipeline | None = None,
        enqueue_dependents: bool = False,
        remove_from_dependencies: bool = False,
    ) -> Any:
        """Cancel a job as RQ does, on all backends; its dependents go where their stage says."""
        freed = self._cancel(pipeline, enqueue_dependents, remove_from_dependencies)
        if pipeline is None:
            cancel_elsewhere(self.id)
        return freed

    def delete(
        self, pipeline: Pipeline | None = None, remove_from_queue: bool = True, delete_dependents: bool = False
    ) -> None:
        """Delete a job as RQ does, and cancel it on all backends."""
        super().delete(pipeline=pipeline, remove_from_queue=remove_from_queue, delete_dependents=delete_dependents)
        if pipeline is None:
            cancel_elsewhere(self.id)

    def _cancel(self, pipeline: Pipeline | None, enqueue_dependents: bool, remove_from_dependencies: bool) -> Any:
        own = {"pipeline": pipeline, "remove_from_dependencies": remove_from_dependencies}
        if not enqueue_dependents or not is_chosen():
            return super().cancel(enqueue_dependents=enqueue_dependents, **own)  # type: ignore[arg-type, unused-ignore]
        from queuebridge.backends.rq.queue import Queue

        queue = Queue(
            self.origin, connection=self.connection, job_class=self.__class__, serializer=self.serializer
        )
        if _RQ_2 or getattr(self, "has_rate_limit", False):
            if self.is_canceled:
                raise InvalidJobOperation(f"Cannot cancel already canceled job: {self.id}")
            # In the order of RQ 2, which has two transactions.
            where = {"pipeline": pipeline} if _RQ_2 else {}
            queue.enqueue_dependents(self, exclude_job_id=self.id, **where)
            return super().cancel(**own)  # type: ignore[arg-type, unused-ignore]
        if pipeline is not None:
            # The caller enqueues the dependents, by a queue of its own.
            return super().cancel(enqueue_dependents=True, **own)  # type: ignore[arg-type, unused-ignore]
        ready = self._cancel_and_free_dependents(remove_from_dependencies)
        queue.enqueue_ready_jobs_by_queue(ready)
        return ready

    def set_status(self, status: JobStatus, pipeline: Pipeline | None = None) -> None:
        """Set the status; see RQ."""
        if self._unopened is not None and pipeline is self._unopened and not pipeline.explicit_transaction:
            pipeline.multi()
        super().set_status(status, pipeline=pipeline)

    def _cancel_and_free_dependents(self, remove_from_dependencies: bool) -> Any:
        """Do in one transaction what RQ 3 does in one, but leave the dependents to a queue of ours."""
        with self.connection.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(self.dependents_key)  # type: ignore[no-untyped-call]
                    # With a pipeline of the caller's, RQ opens the transaction only if there are dependents.
                    self._unopened = pipe
                    ready = super().cancel(
                        pipeline=pipe, enqueue_dependents=True, remove_from_dependencies=remove_from_dependencies
                    )
                    pipe.execute()
                except WatchError:
                    continue
                finally:
                    self._unopened = None
                return ready


def cancel_elsewhere(job_id: str) -> None:
    """Keep a job that RQ has cancelled or deleted from starting on any backend, if there is a ledger.

    No promise rests on it: an executor asks RQ's records too. But so the ledger knows, and nothing is delivered.
    """
    if not is_chosen():
        return
    bridge = get_bridge()
    if bridge.ledger is None:
        return
    try:
        bridge.cancel(job_id)
    except QueueBridgeError as error:
        logger.warning("Job %s is cancelled in RQ, and the ledger does not know: %s", job_id, redact(describe(error)))


def requeue_job(job_id: str, connection: Redis, serializer: Any = None) -> rq.job.Job:
    """Enqueue a failed job again; see RQ. It goes where its stage says."""
    return Job.fetch(job_id, connection=connection, serializer=serializer).requeue()


def cancel_job(job_id: str, connection: Redis, serializer: Any = None, enqueue_dependents: bool = False) -> None:
    """Cancel a job; see RQ. Its dependents go where their stage says."""
    Job.fetch(job_id, connection=connection, serializer=serializer).cancel(enqueue_dependents=enqueue_dependents)
