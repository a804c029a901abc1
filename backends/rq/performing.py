"""One execution of an RQ job by RQ's own machinery, as the bridge sees it: what it published, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rq.job import Job, Retry

from queuebridge.backends.rq.allowed import AllowList
from queuebridge.backends.rq.calls import job_of, parameter_names
from queuebridge.context import executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    ConfigurationError,
    InvalidArguments,
    MalformedEnvelope,
    PermanentFailure,
    QueueBridgeError,
)
from queuebridge.outcome import Outcome, Status, describe
from queuebridge.runnable import current_job_of, json_result
from queuebridge.tracing import continued

if TYPE_CHECKING:
    from queuebridge.lease import Lease


@dataclass(kw_only=True)
class Performance:
    """An execution under way.

    Attributes:
        job_id: Its job.
        dispatch_id: Its dispatch.
        marked: Whether the hash of its job names a dispatch, so that the next publication has to replace it.
        lease: The claim under which it runs; None without one.
        published: The jobs that RQ published because of it: the next try or repeat of its own, and dependents.
        error: What its function, or a callback, raised.
    """

    job_id: str
    dispatch_id: str
    marked: bool = False
    lease: Lease | None = None
    published: set[str] = field(default_factory=set)
    error: BaseException | None = None

    @property
    def is_overtaken(self) -> bool:
        """Return whether another execution may have taken the dispatch over."""
        return self.lease is not None and self.lease.lost


_current: ContextVar[Performance | None] = ContextVar("queuebridge_rq_performance", default=None)


def current_performance() -> Performance | None:
    """Return the execution that this thread is busy with."""
    return _current.get()


@contextmanager
def performing(performance: Performance) -> Iterator[None]:
    """Make an execution the current one for the duration of the block."""
    token = _current.set(performance)
    try:
        yield
    finally:
        _current.reset(token)


def _is_overtaken() -> bool:
    performance = current_performance()
    return performance is not None and performance.is_overtaken


class PerformanceMixin:
    """For RQ workers: notes what a job raised, and lets an overtaken execution leave RQ's records alone."""

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Note the error, and do as RQ does."""
        performance = current_performance()
        if performance is not None and len(exc_info) > 1:
            performance.error = exc_info[1]
        super().handle_exception(job, *exc_info)  # type: ignore[misc]

    def handle_job_success(self, job: Job, *args: Any, **kwargs: Any) -> None:
        """Do as RQ does, unless another execution counts."""
        if not _is_overtaken():
            super().handle_job_success(job, *args, **kwargs)  # type: ignore[misc]

    def handle_job_failure(self, job: Job, *args: Any, **kwargs: Any) -> None:
        """Do as RQ does, unless another execution counts."""
        if not _is_overtaken():
            super().handle_job_failure(job, *args, **kwargs)  # type: ignore[misc]

    def handle_job_retry(self, job: Job, *args: Any, **kwargs: Any) -> None:
        """Do as RQ does, unless another execution counts."""
        if not _is_overtaken():
            super().handle_job_retry(job, *args, **kwargs)  # type: ignore[misc]


class JobRunnable:
    """An RQ job that a worker has taken from its queue.

    Args:
        job: The job.
        performance: Its execution.
        perform: Has RQ perform it.

    Attributes:
        executed: Whether it was performed.
        succeeded: What RQ says of that.
    """

    def __init__(self, job: Job, performance: Performance, perform: Callable[[], bool]) -> None:
        self._job = job
        self._performance = performance
        self._perform = perform
        self.executed = False
        self.succeeded = False

    @property
    def name(self) -> str:
        """Return the name of the function."""
        try:
            return str(self._job.func_name)
        except Exception:  # noqa: BLE001 - what cannot be deserialised may raise anything
            return "unreadable"

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of the function's positional parameters."""
        return parameter_names(self._job)

    def check(self, envelope: Envelope) -> None:
        """Accept everything: RQ has accepted it."""

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Have RQ perform the job; see `Runnable.execute`."""
        self.executed = True
        performance = self._performance
        performance.lease = lease
        with (
            executing(current_job_of(envelope, delivery, time.time(), lease)),
            continued(envelope.trace, envelope.task),
            performing(performance),
        ):
            self.succeeded = self._perform()
        return outcome_of(self._job, performance, envelope)


def outcome_of(job: Job, performance: Performance, envelope: Envelope) -> Outcome:
    """Return how an execution ended that RQ has dealt with already."""
    error = performance.error
    if error is None and not isinstance(job._result, Retry):
        return Outcome(status=Status.DONE, result=json_result(envelope, job._result))
    if error is None:
        error = PermanentFailure("The function returned a Retry.")
    elif not isinstance(error, Exception):
        error = QueueBridgeError(describe(error))
    status = Status.RETRIED if job.id in performance.published else Status.FAILED
    return Outcome(status=status, error=error)


def check_carried(envelope: Envelope, allowed: AllowList) -> None:
    """Find out whether a pushed call could be performed here; see `Runnable.check`.

    Raises:
        InvalidArguments: It could not.
    """
    try:
        # Connects to nothing: the connection is used by what performs the job.
        job_of(envelope, connection=_NO_CONNECTION, allowed=allowed)
    except (ConfigurationError, MalformedEnvelope) as error:
        raise InvalidArguments(envelope.task, [str(error)]) from error


_NO_CONNECTION: Any = object()
