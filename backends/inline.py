"""The inline backend: run each job at once, in this process, after a full round trip through the wire form.

For tests and small scripts. The envelope is encoded and decoded as for any other backend, so that what works
here works on the wire. Failed jobs are retried at once, without waiting for their backoff.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidOption, QueueBridgeError
from queuebridge.outcome import Outcome, Status
from queuebridge.receipt import Write
from queuebridge.registry import TaskRegistry
from queuebridge.runner import Runner
from queuebridge.settings import Settings, read_settings

_RUNS_AT_ONCE = "it runs the job at once, in this process. Use another backend to test delays."


class InlineSettings(BaseModel):
    """Settings of the inline backend.

    Attributes:
        propagate: Raise the error of a job that failed for good out of `enqueue`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    propagate: Annotated[bool, Field(validation_alias="QUEUEBRIDGE_INLINE_PROPAGATE")] = False


class InlineBackend(Backend):
    """Runs jobs at once.

    Args:
        runner: What executes them.
        propagate: Raise the error of a job that failed for good out of `enqueue`, as a direct call would.
    """

    name = "inline"
    capabilities = Capabilities(
        publish_retry=True,
        reasons={
            "countdown/eta": _RUNS_AT_ONCE,
            "priority": "there is no queue in which a job could overtake another.",
            "idempotency_key": "it remembers no jobs.",
        },
    )

    def __init__(self, runner: Runner, *, propagate: bool = False) -> None:
        self._runner = runner
        self._propagate = propagate

    def check(self, publication: Publication) -> None:
        """Refuse options addressed to this backend: it has none of its own."""
        for option in publication.options:
            raise InvalidOption(f"options['inline'][{option!r}]", "the inline backend has no options.")

    def publish(self, publication: Publication) -> Write:
        """Run the job, with its retries, before returning.

        Raises:
            Exception: With `propagate`, the error of a job that failed for good.
        """
        envelope = Envelope.decode(publication.body)
        outcome = self._run(envelope)
        if self._propagate and outcome.error is not None:
            raise outcome.error
        return Write(backend=self.name, message_id=envelope.dispatch_id)

    def _run(self, envelope: Envelope) -> Outcome:
        for attempt in range(1, envelope.retry.max_attempts + 1):
            outcome = self._runner.run(
                envelope, Delivery(backend=self.name, message_id=envelope.dispatch_id, attempt=attempt)
            )
            if outcome.status is not Status.RETRY:
                return outcome
        raise QueueBridgeError("The runner asked for more attempts than the envelope allows.")

    def ping(self) -> str:
        """Return a line; there is nothing to reach."""
        return "runs jobs in this process"


def create_backend(
    settings: Settings,  # noqa: ARG001 - the same signature for every backend
    environ: Mapping[str, str],
    registry: TaskRegistry,  # noqa: ARG001
    runner: Runner,
) -> InlineBackend:
    """Return the backend, configured from the environment."""
    chosen = read_settings(InlineSettings, environ)
    return InlineBackend(runner, propagate=chosen.propagate)
