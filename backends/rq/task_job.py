"""The function that every RQ job of ours calls. Any RQ worker with the JSON serializer can run it."""

from __future__ import annotations

from typing import Any

from rq import get_current_job

from queuebridge.backends.rq.backend import retry_interval
from queuebridge.bridge import get_bridge
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import EnvelopeError, QueueBridgeError
from queuebridge.outcome import Status

_RETRYABLE = (Status.RETRY, Status.UNKNOWN_TASK)
# Nothing was tried, so that no attempt may be used up.
_PUT_OFF = (Status.BUSY, Status.DEFERRED)
_ACKNOWLEDGED = (Status.EXPIRED, Status.DUPLICATE, Status.SHADOWED)


def run(body: str) -> Any:
    """Execute the envelope in `body` and return the task's result in JSON form.

    An error of the task is raised, so that RQ records it; RQ then tries again, if the policy allows.
    """
    job = get_current_job()
    if job is None:
        raise QueueBridgeError("This function is called by RQ workers only. Use Bridge.enqueue.")
    try:
        envelope = Envelope.decode(body.encode())
    except EnvelopeError as error:
        if not error.retryable:
            job.retries_left = 0
        raise
    bridge = get_bridge()
    if envelope.task not in bridge.registry:
        # A worker that was not started by `queuebridge worker` has not imported the tasks yet.
        bridge.load_tasks()
    outcome = bridge.runner.run(
        envelope,
        Delivery(
            backend="rq",
            message_id=job.id,
            # Where the ledger counts the attempts, RQ has more retries than the policy.
            attempt=max(envelope.retry.retries - (job.retries_left or 0), 0) + 1,
        ),
    )
    if outcome.status is Status.DONE:
        return outcome.result
    if outcome.status in _ACKNOWLEDGED:
        # RQ takes what is returned for the job's result; that of the execution that counts must stay.
        return job.return_value() if outcome.status is Status.DUPLICATE else outcome.status.value
    if outcome.status in _PUT_OFF or (outcome.status is Status.RETRY and bridge.runner.claims is not None):
        # With a ledger the attempts are counted there.
        job.retries_left = max(job.retries_left or 0, 1) + (outcome.status in _PUT_OFF)
    if outcome.status not in (*_RETRYABLE, *_PUT_OFF):
        job.retries_left = 0
    elif outcome.retry_delay_seconds is not None:
        job.retry_intervals = [retry_interval(outcome.retry_delay_seconds)]
    raise outcome.error or QueueBridgeError(outcome.status.value)
