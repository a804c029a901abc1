"""Claims at work: what an executor does before and after a task body, so that a dispatch takes effect once."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    ConfigurationError,
    InvalidArguments,
    InvalidOption,
    LedgerUnavailable,
    MalformedEnvelope,
    PermanentFailure,
)
from queuebridge.failures import redact
from queuebridge.lease import Lease, LeaseKeeper
from queuebridge.ledger import (
    Busy,
    ClaimRequest,
    Granted,
    Ledger,
    Settled,
    Settlement,
    ShadowNote,
    State,
)
from queuebridge.ledger.custody import Custody, digest, referenced
from queuebridge.ledger.facts import facts_of
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.outcome import Outcome, Status
from queuebridge.runnable import Runnable
from queuebridge.stages import Role, side_of

logger = logging.getLogger(__name__)

# How long a delivery is put off while the ledger is away; spread, so that all do not come back together.
_DEFER_SECONDS = 15.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_TRACEBACK_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """The right to execute one delivery.

    Attributes:
        envelope: The job, with its arguments.
        delivery: The delivery; its attempt is the one that the ledger counted.
        lease: The claim; None if it is executed without one, because the ledger is away and the settings say so.
    """

    envelope: Envelope
    delivery: Delivery
    lease: Lease | None


class Claims:
    """Asks the ledger before a task body runs, and tells it how it ended.

    Args:
        ledger: The ledger.
        settings: Leases, and what to do when the ledger is away.
        custody: How jobs are stored.
        sleep: Waits, in seconds; replaced where time is simulated.
        clock: Monotonic seconds; likewise.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: LedgerSettings,
        custody: Custody,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = ledger
        self._settings = settings
        self._custody = custody
        self._sleep = sleep
        self._clock = clock
        self._keeper = LeaseKeeper(self._renew)

    def begin(self, runnable: Runnable, envelope: Envelope, delivery: Delivery) -> Ticket | Outcome:
        """Claim a delivery. Returns the right to execute it, or how the delivery ends without an execution."""
        try:
            if envelope.role is Role.SHADOW:
                return self._shadow(runnable, envelope, delivery)
            whole, problem = self._whole_or_problem(envelope)
            request = self._request(runnable, whole, envelope, delivery)
            claim = self.ledger.claim(request, grace_ms=self._settings.grace_ms)
        except LedgerUnavailable as error:
            return self._without_ledger(envelope, delivery, error)
        except ConfigurationError as error:
            # Another process may be set up better: the job is left to it.
            logger.error("Job %s cannot be claimed here: %s", envelope.job_id, error, extra={"event": "not_claimable"})
            return _deferred(error)
        if isinstance(claim, Granted):
            ticket = Ticket(
                envelope=whole,
                delivery=replace(delivery, attempt=claim.attempt),
                lease=Lease(envelope.dispatch_id, claim.token, self._settings.lease_seconds),
            )
            # Claimed all the same: a job that can never run has to end too.
            return ticket if problem is None else self.finish(ticket, Outcome(status=Status.FAILED, error=problem))
        if isinstance(claim, Busy):
            return Outcome(
                status=Status.BUSY, retry_delay_seconds=max(claim.until_ms - claim.now_ms, 0) / 1000, epoch=claim.epoch
            )
        return _ended(claim, envelope)

    @contextmanager
    def holding(self, ticket: Ticket) -> Iterator[None]:
        """Keep the claim alive while the block runs."""
        if ticket.lease is None:
            yield
            return
        with self._keeper.kept(ticket.lease):
            yield

    def finish(self, ticket: Ticket, outcome: Outcome) -> Outcome:
        """Tell the ledger how an execution ended, and return how its delivery ends.

        The ledger is asked again for as long as the lease may still be ours. If it stays away, the delivery is put
        off: it comes again, and is executed again unless the settlement has reached the ledger after all.
        """
        lease = ticket.lease
        if lease is None:
            return outcome
        if outcome.status is Status.RETRY:
            settled = self._persist(
                lambda: self.ledger.release(
                    lease.dispatch_id,
                    lease.token,
                    retry_in_ms=round((outcome.retry_delay_seconds or 0) * 1000),
                    grace_ms=self._settings.grace_ms,
                    error=redact(outcome.reason),
                    traceback=_traceback(outcome.error),
                )
            )
        else:
            settled = self._persist(
                lambda: self.ledger.settle(lease.dispatch_id, lease.token, self._settlement(outcome))
            )
        if settled is None:
            return Outcome(
                status=Status.DEFERRED,
                error=LedgerUnavailable("The ledger could not be told how the execution ended."),
                retry_delay_seconds=self._settings.lease_seconds,
            )
        if not settled:
            logger.error(
                "The end of job %s (%s) is not recorded: its fencing token %d is stale, another execution took over.",
                ticket.envelope.job_id,
                outcome.status.value,
                lease.token,
                extra={"event": "stale_settle", "dispatch_id": lease.dispatch_id, "job_id": ticket.envelope.job_id},
            )
            return Outcome(status=Status.DUPLICATE, error=PermanentFailure("Another execution took the job over."))
        return outcome

    def _persist(self, act: Callable[[], bool]) -> bool | None:
        deadline = self._clock() + self._settings.lease_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return act()
            except LedgerUnavailable as error:
                if self._clock() + pause >= deadline:
                    logger.error("The ledger stayed away: %s", error, extra={"event": "ledger_down"})
                    return None
            self._sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _renew(self, lease: Lease) -> bool:
        return self.ledger.renew(
            lease.dispatch_id, lease.token, lease_ms=self._settings.lease_ms, grace_ms=self._settings.grace_ms
        )

    def _with_arguments(self, envelope: Envelope) -> Envelope:
        if envelope.payload_ref is None:
            return envelope
        body = self.ledger.get_payload(envelope.payload_ref.key)
        if body is None:
            raise MalformedEnvelope(
                f"The arguments of job {envelope.job_id} were kept in the ledger, and are there no more."
            )
        return referenced(envelope, self._custody.open(body))

    def _whole_or_problem(self, envelope: Envelope) -> tuple[Envelope, MalformedEnvelope | None]:
        try:
            return self._with_arguments(envelope), None
        except MalformedEnvelope as error:
            return envelope, error

    def _request(self, runnable: Runnable, whole: Envelope, carried: Envelope, delivery: Delivery) -> ClaimRequest:
        # The copy as it was carried: one by reference must not put its long arguments into the ledger again.
        return ClaimRequest(
            **self._common(runnable, whole, carried, delivery),
            side=side_of(delivery.backend),
            role=carried.role,
            owner=owner(),
            lease_ms=self._settings.lease_ms,
        )

    def _common(self, runnable: Runnable, whole: Envelope, carried: Envelope, delivery: Delivery) -> dict[str, Any]:
        names = runnable.positional
        try:
            body = self._custody.store(whole, carried.encode(), names)
        except InvalidOption:
            # Accepted already, so it has to run; without a body nobody can publish it again.
            body = b""
        payload = self._custody.payload(whole, names)
        return {
            **facts_of(whole, self._settings, body=body, payload=payload, delivered=True),
            # The envelope may call it by an alias.
            "task": runnable.name,
            "backend": delivery.backend,
            "message_id": delivery.message_id,
            "digest": digest(whole),
        }

    def _shadow(self, runnable: Runnable, envelope: Envelope, delivery: Delivery) -> Outcome:
        problem = None
        whole = envelope
        try:
            whole = self._with_arguments(envelope)
            runnable.check(whole)
        except (InvalidArguments, MalformedEnvelope) as error:
            problem = redact(str(error))
        self.ledger.note_shadow(ShadowNote(**self._common(runnable, whole, envelope, delivery), problem=problem))
        return Outcome(status=Status.SHADOWED)

    def _without_ledger(self, envelope: Envelope, delivery: Delivery, error: LedgerUnavailable) -> Ticket | Outcome:
        runnable = envelope.role is not Role.SHADOW and envelope.payload_ref is None
        if self._settings.ledger_down == "execute" and runnable:
            logger.error(
                "The ledger is away (%s): job %s is executed WITHOUT a claim, and may be executed twice "
                "(QUEUEBRIDGE_LEDGER_DOWN=execute).",
                error,
                envelope.job_id,
                extra={"event": "executed_without_claim", "job_id": envelope.job_id},
            )
            return Ticket(envelope=envelope, delivery=delivery, lease=None)
        return _deferred(error)

    def _settlement(self, outcome: Outcome) -> Settlement:
        if outcome.status is Status.DONE:
            result = self._custody.result(outcome.result) if outcome.result is not None else None
            return Settlement(state=State.DONE, result=result)
        state = State.RETRIED if outcome.status is Status.RETRIED else State.FAILED
        return Settlement(state=state, error=redact(outcome.reason), traceback=_traceback(outcome.error))


def owner() -> str:
    """Return who this thread is."""
    return f"{owning_process(os.getpid())}{threading.current_thread().name}"


def owning_process(pid: int) -> str:
    """Return how the names of all threads of a process on this machine begin."""
    return f"{socket.gethostname()}:{pid}:"


def _deferred(error: Exception) -> Outcome:
    delay = _DEFER_SECONDS * (0.5 + random.random())  # noqa: S311 - spreads load, hides nothing
    return Outcome(status=Status.DEFERRED, error=error, retry_delay_seconds=round(delay, 1))


def _ended(claim: Settled, envelope: Envelope) -> Outcome:
    if claim.first and claim.state is State.EXPIRED:
        return Outcome(status=Status.EXPIRED, error=PermanentFailure("It expired before it could start."))
    if claim.first and claim.state is State.QUARANTINED:
        return Outcome(
            status=Status.FAILED,
            error=PermanentFailure(
                f"All {envelope.retry.max_attempts} attempts ended without an answer: it seems to kill its process. "
                f"The last one was {claim.owner or 'unknown'}. It is quarantined."
            ),
        )
    return Outcome(status=Status.DUPLICATE, error=PermanentFailure(f"The job had ended already: {claim.state.value}."))


def _traceback(error: Exception | None) -> str | None:
    if error is None or error.__traceback__ is None:
        return None
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "\n".join(redact(line) if line.strip() else line for text in lines for line in text.splitlines())[
        -_TRACEBACK_CHARACTERS:
    ]
