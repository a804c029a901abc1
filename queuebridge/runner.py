"""Run one delivery of an envelope and say how it ended; every backend's executor goes through here."""

from __future__ import annotations

import enum
import inspect
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pydantic_core import from_json, to_json

from queuebridge.context import CurrentJob, executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    InvalidArguments,
    PermanentFailure,
    QueueBridgeError,
    RetryLater,
    UnknownTask,
)
from queuebridge.registry import AnyTask, TaskRegistry
from queuebridge.timelimit import time_limit
from queuebridge.tracing import continued

logger = logging.getLogger(__name__)


class Status(enum.Enum):
    """How a delivery ended."""

    DONE = "done"
    RETRY = "retry"
    FAILED = "failed"
    EXPIRED = "expired"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNKNOWN_TASK = "unknown_task"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of one delivery.

    Attributes:
        status: How it ended.
        result: The task's return value in JSON form, if `status` is DONE.
        error: What went wrong, for every other status.
        retry_delay_seconds: When to deliver it again, if `status` is RETRY.
    """

    status: Status
    result: Any = None
    error: Exception | None = None
    retry_delay_seconds: float | None = None

    @property
    def reason(self) -> str:
        """Return the error in one line."""
        return describe(self.error) if self.error is not None else ""


class Runner:
    """Executes deliveries with the tasks of a registry.

    Args:
        registry: The tasks.
        clock: The time in Unix seconds, for `expires` and for the deadline that a task is told.
    """

    def __init__(self, registry: TaskRegistry, *, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock

    def run(self, envelope: Envelope, delivery: Delivery) -> Outcome:
        """Execute a delivery. Everything that a task may raise becomes an outcome.

        Only exceptions that ask the process to end (KeyboardInterrupt, SystemExit) pass through: the transport
        then sees no answer and delivers again.
        """
        try:
            task = self._registry.get(envelope.task)
        except UnknownTask as error:
            return self._report(envelope, delivery, Outcome(status=Status.UNKNOWN_TASK, error=error))
        if envelope.expires_at_ms is not None and self._clock() * 1000 > envelope.expires_at_ms:
            expired = PermanentFailure("It expired before it could start.")
            return self._report(envelope, delivery, Outcome(status=Status.EXPIRED, error=expired))
        started = time.perf_counter()
        try:
            bound = task.arguments.load(envelope.args, envelope.kwargs)
        except InvalidArguments as invalid:
            return self._report(envelope, delivery, Outcome(status=Status.INVALID_ARGUMENTS, error=invalid))
        except Exception as error:  # noqa: BLE001 - a validator of the user's own may raise anything
            return self._report(envelope, delivery, _after_failure(task, envelope, delivery, error))
        timeout = None if delivery.enforces_timeout else envelope.timeout_seconds
        try:
            with executing(_current(envelope, delivery, self._clock())), continued(envelope.trace, task.name):
                value = _call(task, bound.args, bound.kwargs, timeout)
        except Exception as error:  # noqa: BLE001 - whatever a task raises is the job's outcome
            outcome = _after_failure(task, envelope, delivery, error)
        else:
            outcome = Outcome(status=Status.DONE, result=_jsonable(envelope, delivery, value))
        return self._report(envelope, delivery, outcome, time.perf_counter() - started)

    def _report(
        self, envelope: Envelope, delivery: Delivery, outcome: Outcome, seconds: float | None = None
    ) -> Outcome:
        if outcome.status is Status.DONE and not logger.isEnabledFor(logging.INFO):
            return outcome
        took = f" in {seconds * 1000:.1f} ms" if seconds is not None else ""
        again = f", again in {outcome.retry_delay_seconds:g} s" if outcome.retry_delay_seconds is not None else ""
        expected = outcome.status in (Status.DONE, Status.RETRY, Status.EXPIRED)
        logger.log(
            logging.INFO if outcome.status is Status.DONE else logging.WARNING if expected else logging.ERROR,
            "%s job=%s task=%s attempt=%d/%d backend=%s%s%s%s",
            outcome.status.value,
            envelope.job_id,
            envelope.task,
            delivery.attempt,
            envelope.retry.max_attempts,
            delivery.backend,
            took,
            again,
            f": {outcome.reason}" if outcome.error is not None else "",
            extra=_log_fields(f"job_{outcome.status.value}", envelope, delivery),
            exc_info=outcome.error if outcome.status in (Status.FAILED, Status.RETRY) else None,
        )
        return outcome


def describe(error: BaseException) -> str:
    """Return an exception in one line: its type, and its text if it has one."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an error that cannot be shown must not become another one
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _log_fields(event: str, envelope: Envelope, delivery: Delivery) -> dict[str, object]:
    return {
        "event": event,
        "job_id": envelope.job_id,
        "dispatch_id": envelope.dispatch_id,
        "task_name": envelope.task,
        "attempt": delivery.attempt,
        "backend": delivery.backend,
    }


def _current(envelope: Envelope, delivery: Delivery, now: float) -> CurrentJob:
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
    )


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


def _jsonable(envelope: Envelope, delivery: Delivery, value: Any) -> Any:
    if value is None:
        return None
    try:
        return from_json(to_json(value, inf_nan_mode="strings", bytes_mode="base64"))
    except Exception as error:  # noqa: BLE001 - serializers and properties of the user's own may raise anything
        # The effect has happened: a result that cannot be stored must not make the job run again.
        logger.warning(
            "The result of task %s is not JSON (%s); its repr is kept instead.",
            envelope.task,
            type(error).__name__,
            extra=_log_fields("result_not_json", envelope, delivery),
        )
        return _safe_repr(value)


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}>"
