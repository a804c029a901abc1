"""Run one delivery of an envelope and say how it ended; every backend's executor goes through here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    ConfigurationError,
    InvalidArguments,
    LedgerRequired,
    PermanentFailure,
    UnknownTask,
)
from queuebridge.loading import load_foreign
from queuebridge.outcome import Outcome, Status
from queuebridge.registry import TaskRegistry
from queuebridge.runnable import KeepsRecords, Runnable, TaskRunnable
from queuebridge.stages import Role

if TYPE_CHECKING:
    from queuebridge.claims import Claims

logger = logging.getLogger(__name__)

# After how long a job is delivered again that this executor is not set up to run.
_MISCONFIGURED_SECONDS = 60.0
_QUIET = (Status.DONE, Status.DUPLICATE, Status.SHADOWED)
_EXPECTED = (*_QUIET, Status.RETRY, Status.RETRIED, Status.EXPIRED, Status.BUSY, Status.DEFERRED)


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
            runnable = self.find(envelope)
        except UnknownTask as error:
            return self._report(envelope, delivery, Outcome(status=Status.UNKNOWN_TASK, error=error))
        except ConfigurationError as error:
            # Another process may be set up better: the job is left to it.
            outcome = Outcome(status=Status.DEFERRED, error=error, retry_delay_seconds=_MISCONFIGURED_SECONDS)
            return self._report(envelope, delivery, outcome)
        return self.run_as(runnable, envelope, delivery)

    def find(self, envelope: Envelope) -> Runnable:
        """Return what an envelope names.

        Raises:
            UnknownTask: There is no task of this name here.
            ConfigurationError: It is a call of Celery's or RQ's, and this process is not set up for those.
        """
        if envelope.kind == "task":
            return TaskRunnable(task=self._registry.get(envelope.task), clock=self._clock)
        return load_foreign(envelope.kind)(envelope)

    def run_as(self, runnable: Runnable, envelope: Envelope, delivery: Delivery) -> Outcome:
        """Execute a delivery as `run` does, with a runnable that the caller has found already."""
        if self.claims is not None:
            return self._run_claimed(self.claims, runnable, envelope, delivery)
        refusal = _unclaimed_refusal(runnable, envelope, self._clock())
        if refusal is not None:
            return self._report(envelope, delivery, refusal)
        started = time.perf_counter()
        outcome = runnable.execute(envelope, delivery, None)
        return self._report(envelope, delivery, outcome, time.perf_counter() - started)

    def _run_claimed(self, claims: Claims, runnable: Runnable, envelope: Envelope, delivery: Delivery) -> Outcome:
        ticket = claims.begin(runnable, envelope, delivery)
        if isinstance(ticket, Outcome):
            if ticket.status is Status.FAILED and isinstance(runnable, KeepsRecords):
                runnable.give_up(envelope, ticket)
            return self._report(envelope, delivery, ticket)
        started = time.perf_counter()
        with claims.holding(ticket):
            # The result is turned into JSON inside the claim: one that has no JSON form must not run again.
            outcome = runnable.execute(ticket.envelope, ticket.delivery, ticket.lease)
            seconds = time.perf_counter() - started
            outcome = claims.finish(ticket, outcome)
        return self._report(ticket.envelope, ticket.delivery, outcome, seconds)

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


def _unclaimed_refusal(runnable: Runnable, envelope: Envelope, now: float) -> Outcome | None:
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
            runnable.check(envelope)
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
