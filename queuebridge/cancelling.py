"""Keep a job from starting: in the ledger, where every claim asks, and then in the transports."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from queuebridge.backend import Backend
from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.ledger import Ledger, State, WriteState
from queuebridge.outcome import describe
from queuebridge.stages import Side

logger = logging.getLogger(__name__)


def cancel_everywhere(job_id: str, ledger: Ledger, backends: Mapping[Side, Backend]) -> tuple[int, int]:
    """Cancel all dispatches of a job that have not started.

    Args:
        job_id: The job.
        ledger: What is cancelled there never starts.
        backends: The backend of each side, whose messages are taken back too where that can be done.

    Returns:
        How many dispatches were cancelled, and how many run already and were left alone.

    Raises:
        LedgerUnavailable: The ledger cannot be reached.
    """
    cancelled, running = ledger.cancel(job_id)
    for side, backend in backends.items():
        messages = [
            copy.message_id
            for execution in ledger.executions.of_job(job_id)
            if execution.state is State.CANCELLED
            for copy in execution.copies
            if copy.side is side and copy.state is WriteState.WRITTEN and copy.message_id is not None
        ]
        if cancelled and messages:
            try:
                backend.cancel(messages)
            except QueueBridgeError as error:
                # It comes, and is refused by the claim.
                logger.warning("Messages of job %s stay with %s: %s", job_id, backend.name, redact(describe(error)))
    return cancelled, running
