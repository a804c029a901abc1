"""What an envelope names, ready to be executed: a task of the registry, or a call written for Celery or RQ."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic_core import from_json, to_json

from queuebridge.context import CurrentJob, executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidArguments, PermanentFailure, QueueBridgeError, RetryLater
from queuebridge.outcome import Outcome, Status
from queuebridge.registry import AnyTask
from queuebridge.timelimit import time_limit
from queuebridge.tracing import continued

if TYPE_CHECKING:
    from queuebridge.lease import Lease

logger = logging.getLogger(__name__)


class Runnable(Protocol):
    """Something that can be executed."""

    @property
    def name(self) -> str:
        """Return the name of the task."""

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of its positional parameters, as far as they are known."""

    def check(self, envelope: Envelope) -> None:
        """Find out, without executing anything, whether it could be executed with these arguments.

        Raises:
            InvalidArguments: It could not.
        """

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Execute it, and return how that ended. Everything that the body may raise becomes an outcome.

        Args:
            envelope: The job, with its arguments.
            delivery: The delivery that brought it.
            lease: The claim under which it runs; None without one.
        """


@runtime_checkable
class KeepsRecords(Protocol):
    """A runnable whose library keeps records of its own, and has to be told how a job ended that was not executed."""

    def give_up(self, envelope: Envelope, outcome: Outcome) -> None:
        """Record that a job has failed for good without being executed, as one that is quarantined has.

        It raises nothing: the ledger has it already.

        Args:
            envelope: The job.
            outcome: How it ended.
        """


@dataclass(frozen=True, kw_only=True)
class TaskRunnable:
    """A task of ours.

    Attributes:
        task: The task.
        clock: The time in Unix seconds, for the deadline that the task is told.
    """

    task: AnyTask
    clock: Callable[[], float] = time.time

    @property
    def name(self) -> str:
        """Return the name of the task."""
        return self.task.name

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of its positional parameters."""
        return self.task.arguments.positional

    def check(self, envelope: Envelope) -> None:
        """Validate the arguments; see `Runnable.check`."""
        self.task.arguments.load(envelope.args, envelope.kwargs)

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Validate the arguments and call the function; see `Runnable.execute`."""
        task = self.task
        try:
            bound = task.arguments.load(envelope.args, envelope.kwargs)
        except InvalidArguments as invalid:
            return Outcome(status=Status.INVALID_ARGUMENTS, error=invalid)
        except Exception as error:  # noqa: BLE001 - a validator of the user's own may raise anything
            return _after_failure(task, envelope, delivery, error)
        timeout = None if delivery.enforces_timeout else envelope.timeout_seconds
        try:
            with (
                executing(current_job_of(envelope, delivery, self.clock(), lease)),
                continued(envelope.trace, task.name),
            ):
                value = _call(task, bound.args, bound.kwargs, timeout)
        except Exception as error:  # noqa: BLE001 - whatever a task raises is the job's outcome
            return _after_failure(task, envelope, delivery, error)
        return Outcome(status=Status.DONE, result=json_result(envelope, value))


def current_job_of(envelope: Envelope, delivery: Delivery, now: float, lease: Lease | None) -> CurrentJob:
    """Return what a body can ask about its own execution.

    Args:
        envelope, delivery, lease: As in `Runnable.execute`.
        now: The time in Unix seconds.
    """
    timeout = envelope.timeout_seconds
    return CurrentJob(
        job_id=envelope.job_id,
        dispatch_id=envelope.dispatch_id,
        task=envelope.task,
        queue=envelope.queue,
        attempt=delivery.attempt,
        max_attempts=envelope.retry.max_attempts,
        backend=delivery.backend,
        message_id=delivery.message_id,
        deadline=datetime.fromtimestamp(now + timeout, timezone.utc) if timeout is not None else None,
        metadata=envelope.metadata,
        headers=envelope.headers,
        lease=lease,
    )


def json_result(envelope: Envelope, value: Any) -> Any:
    """Return the result of a body in JSON form; of one that has none, the `repr`.

    The effect has happened: a result that cannot be stored must not make the job run again.
    """
    if value is None:
        return None
    try:
        return from_json(to_json(value, inf_nan_mode="strings", bytes_mode="base64"))
    except Exception as error:  # noqa: BLE001 - serializers and properties of the user's own may raise anything
        logger.warning(
            "The result of task %s is not JSON (%s); its repr is kept instead.",
            envelope.task,
            type(error).__name__,
            extra={
                "event": "result_not_json",
                "job_id": envelope.job_id,
                "dispatch_id": envelope.dispatch_id,
                "task_name": envelope.task,
            },
        )
        return _safe_repr(value)


def _call(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    try:
        with time_limit(None if task.is_async else timeout):
            value = task.function(*args, **kwargs)
        # A decorator may hide that a function is `async def`; never awaited, the job would do nothing.
        if not inspect.iscoroutine(value):
            return value
        # Not at the top: loading asyncio would slow the cold start of programs that have no such task.
        from queuebridge.coroutines import run_coroutine

        return run_coroutine(value, timeout)
    except BaseException as error:
        if not _is_cancellation(error):
            raise
        # No Exception, but no wish to end the process either.
        raise QueueBridgeError("The task was cancelled from inside.") from error


def _is_cancellation(error: BaseException) -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def _after_failure(task: AnyTask, envelope: Envelope, delivery: Delivery, error: Exception) -> Outcome:
    final = isinstance(error, (PermanentFailure, *task.give_up_on)) or delivery.attempt > envelope.retry.retries
    if final:
        return Outcome(status=Status.FAILED, error=error)
    delay = error.delay_seconds if isinstance(error, RetryLater) else None
    if delay is None:
        delay = envelope.retry.delay_before_retry(delivery.attempt)
    return Outcome(status=Status.RETRY, error=error, retry_delay_seconds=delay)


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}>"
