"""Executions that a worker ends from outside: their processes cannot tell the ledger, so the main process does."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import signals
from celery.exceptions import TimeLimitExceeded

from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.ledger import Settlement, State
from queuebridge.outcome import describe

if TYPE_CHECKING:
    from queuebridge.ledger import Ledger

logger = logging.getLogger(__name__)

# What this worker has received: it alone knows which process runs it. Celery's own set has forgotten a request by the
# time that its end is signalled, and the signals have its context only.
_received: WeakSet[Any] = WeakSet()


def watch_endings() -> None:
    """Have the main process of a worker settle what is ended by its hard time limit."""
    signals.task_received.connect(_note_received, weak=False, dispatch_uid="queuebridge.note_received")
    signals.task_failure.connect(note_failure, weak=False, dispatch_uid="queuebridge.note_failure")


def settle_terminated(task_id: str, ledger: Ledger) -> None:
    """Settle as cancelled what of a job was ended by request in this worker.

    Raises:
        LedgerUnavailable: The ledger cannot be reached.
    """
    _settle(task_id, ledger, Settlement(state=State.CANCELLED, error="Ended by request while it ran: it was revoked."))


def note_failure(sender: Any, task_id: str, exception: Any, **_: Any) -> None:
    """Settle as failed what was ended by its hard time limit, as Celery does, so that it does not run again.

    The other failures were settled by the process that ran the task. Of a process that was lost nobody knows what it
    did: its job runs again.
    """
    forwarding = getattr(sender.app, "queuebridge", None)
    chosen = forwarding.forwarding() if forwarding is not None else None
    if not isinstance(exception, TimeLimitExceeded) or chosen is None or chosen.bridge.ledger is None:
        return
    if sender.acks_late and not getattr(sender, "acks_on_timeout", sender.acks_on_failure_or_timeout):
        # Celery gives it back to the broker.
        return
    settlement = Settlement(state=State.FAILED, error=describe(exception))
    try:
        _settle(task_id, chosen.bridge.ledger, settlement)
    except QueueBridgeError as error:
        logger.error("Task %s ran into its time limit, and may run again: %s", task_id, redact(describe(error)))


def _note_received(request: Any, **_: Any) -> None:
    _received.add(request)


def _settle(task_id: str, ledger: Ledger, settlement: Settlement) -> None:
    # Only where something was ended, which is seldom.
    from queuebridge.cancelling import settle_ended

    # Greenlets run in this very process, and what Celery calls their process is none.
    pids = {os.getpid(), *(request.worker_pid for request in list(_received) if request.id == task_id)}
    for pid in pids - {None}:
        settle_ended(task_id, ledger, pid=pid, settlement=settlement)
