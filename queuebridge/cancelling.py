"""Keep a job from starting: in the ledger, where every claim asks, and then in the transports.

Also record the end of executions that were ended from outside, so that they do not start again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from queuebridge.backend import Backend
from queuebridge.claims import owning_process
from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.ledger import Ledger, Settlement, State, WriteState
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


def settle_ended(job_id: str, ledger: Ledger, *, pid: int, settlement: Settlement) -> int:
    """Record the end of what of a job ran in a process of this machine, which was ended on purpose.

    Such a process cannot tell the ledger itself, and its job would run again when the lease ends. What runs elsewhere
    is left alone: the settlement carries the fencing token of the very execution that was found in this process.

    Args:
        job_id: The job.
        ledger: The ledger.
        pid: The process.
        settlement: How the job ended.

    Returns:
        How many executions that were.

    Raises:
        LedgerUnavailable: The ledger cannot be reached.
    """
    return sum(
        ledger.settle(execution.dispatch_id, execution.token, settlement)
        for execution in ledger.executions.of_job(job_id)
        if execution.state is State.RUNNING and (execution.owner or "").startswith(owning_process(pid))
    )
