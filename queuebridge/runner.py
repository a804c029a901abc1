"""Run one delivery of an envelope and say how it ended; every backend's executor goes through here."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from queuebridge.context import CurrentJob, executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    InvalidArguments,
    LedgerRequired,
    PermanentFailure,
    QueueBridgeError,
    RetryLater,
    UnknownTask,
)
from queuebridge.outcome import Outcome, Status
from queuebridge.registry import AnyTask, TaskRegistry
from queuebridge.stages import Role
from queuebridge.timelimit import time_limit
from queuebridge.tracing import continued

if TYPE_CHECKING:
    from queuebridge.claims import Claims
    from queuebridge.lease import Lease

logger = logging.getLogger(__name__)

# After how long a job is delivered again that this executor is not set up to run.
_MISCONFIGURED_SECONDS = 60.0
_QUIET = (Status.DONE, Status.DUPLICATE, Status.SHADOWED)
_EXPECTED = (*_QUIET, Status.RETRY, Status.EXPIRED, Status.BUSY, Status.DEFERRED)


class Runner:
    """Executes deliveries with the tasks of a registry.

    Args:
        registry: The tasks.
        clock: The time in Unix seconds, for `expires` and for the deadline that a task is told.
        claims: Asks the ledger before each execution; None executes every delivery.
    """

    def __init__(
        self, registry: TaskRegistry, *, clock: Callable[[], float] = time.time, claims: Claims | None = None
    ) -> None:
        self._registry = registry
        self._clock = clock
        self.claims = claims

    def run(self, envelope: Envelope, delivery: Delivery) -> Outcome:
        """Execute a delivery, if it may be executed. Everything that a task may raise becomes an outcome.

        Only exceptions that ask the process to end (KeyboardInterrupt, SystemExit) pass through: the transport
        then sees no answer and delivers again.
        """
        try:
            task = self._registry.get(envelope.task)
        except UnknownTask as error:
            return self._report(envelope, delivery, Outcome(status=Status.UNKNOWN_TASK, error=error))
        if self.claims is not None:
            return self._run_claimed(self.claims, task, envelope, delivery)
        refusal = _unclaimed_refusal(task, envelope, self._clock())
        if refusal is not None:
            return self._report(envelope, delivery, refusal)
        started = time.perf_counter()
        outcome = self._execute(task, envelope, delivery, None)
        return self._report(envelope, delivery, outcome, time.perf_counter() - started)

    def _run_claimed(self, claims: Claims, task: AnyTask, envelope: Envelope, delivery: Delivery) -> Outcome:
        ticket = claims.begin(task, envelope, delivery)
        if isinstance(ticket, Outcome):
            return self._report(envelope, delivery, ticket)
        started = time.perf_counter()
        with claims.holding(ticket):
            # The result is turned into JSON inside the claim: one that has no JSON form must not run again.
            outcome = self._execute(task, ticket.envelope, ticket.delivery, ticket.lease)
            seconds = time.perf_counter() - started
            outcome = claims.finish(ticket, outcome)
        return self._report(ticket.envelope, ticket.delivery, outcome, seconds)

    def _execute(self, task: AnyTask, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        try:
            bound = task.arguments.load(envelope.args, envelope.kwargs)
        except InvalidArguments as invalid:
            return Outcome(status=Status.INVALID_ARGUMENTS, error=invalid)
        except Exception as error:  # noqa: BLE001 - a validator of the user's own may raise anything
            return _after_failure(task, envelope, delivery, error)
        timeout = None if delivery.enforces_timeout else envelope.timeout_seconds
        try:
            with executing(_current(envelope, delivery, self._clock(), lease)), continued(envelope.trace, task.name):
                value = _call(task, bound.args, bound.kwargs, timeout)
        except Exception as error:  # noqa: BLE001 - whatever a task raises is the job's outcome
            return _after_failure(task, envelope, delivery, error)
        return Outcome(status=Status.DONE, result=_jsonable(envelope, delivery, value))

    def _report(
        self, envelope: Envelope, delivery: Delivery, outcome: Outcome, seconds: float | None = None
    ) -> Outcome:
        if outcome.status in _QUIET and not logger.isEnabledFor(logging.INFO):
            return outcome
        took = f" in {seconds * 1000:.1f} ms" if seconds is not None else ""
        again = f", again in {outcome.retry_delay_seconds:g} s" if outcome.retry_delay_seconds is not None else ""
        expected = outcome.status in _EXPECTED
        logger.log(
            logging.INFO if outcome.status in _QUIET else logging.WARNING if expected else logging.ERROR,
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


def _unclaimed_refusal(task: AnyTask, envelope: Envelope, now: float) -> Outcome | None:
    """Return how a delivery ends that is not executed although there is no ledger to say so; None if it is."""
    if envelope.expires_at_ms is not None and now * 1000 > envelope.expires_at_ms:
        return Outcome(status=Status.EXPIRED, error=PermanentFailure("It expired before it could start."))
    if envelope.payload_ref is not None:
        return Outcome(
            status=Status.FAILED,
            error=LedgerRequired("A job whose arguments were too long for the transport"),
        )
    if envelope.role is Role.SHADOW:
        try:
            task.arguments.load(envelope.args, envelope.kwargs)
        except InvalidArguments as invalid:
            logger.error("A shadow copy could not have run: %s", invalid, extra={"event": "shadow_invalid"})
        return Outcome(status=Status.SHADOWED)
    if envelope.role is not None:
        # Another copy may run elsewhere, under a claim that is not seen from here.
        error = LedgerRequired(f"A job of stage {envelope.stage.value if envelope.stage else 'dual'}")
        return Outcome(status=Status.DEFERRED, error=error, retry_delay_seconds=_MISCONFIGURED_SECONDS)
    return None


def _log_fields(event: str, envelope: Envelope, delivery: Delivery) -> dict[str, object]:
    return {
        "event": event,
        "job_id": envelope.job_id,
        "dispatch_id": envelope.dispatch_id,
        "task_name": envelope.task,
        "attempt": delivery.attempt,
        "backend": delivery.backend,
    }


def _current(envelope: Envelope, delivery: Delivery, now: float, lease: Lease | None) -> CurrentJob:
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
