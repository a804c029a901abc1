"""Publish a push delivery anew, to come again later: while its job is busy, or before its time has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from queuebridge.backend import Backend, Publication
from queuebridge.envelope import Envelope
from queuebridge.receipt import Write

# No two publications of a dispatch may have the same epoch. The ledger gives out one number for each; the epochs from
# that number times this up to the next belong to it and to the hops on its way. Those before the first are the
# producer's, in the same manner: the first publication from 0, a shadow copy from SHADOW_EPOCH (under the epoch of one
# that may run, QStash would take the latter for a resend), a hurried one from HURRIED_EPOCH.
_EPOCHS_EACH = 1000
SHADOW_EPOCH = 250
HURRIED_EPOCH = 500
# A delivery that comes earlier than this made a hop; one that is less early met a clock that goes wrong.
HOP_TOLERANCE_SECONDS = 60.0


def ledger_epoch(number: int) -> int:
    """Return the publication epoch for a number that the ledger gave out; numbers count from 1."""
    return _EPOCHS_EACH * number


class Parking:
    """Publishes deliveries anew.

    Args:
        backend: The push backend.
        counted_by_ledger: As in `Publication`.
        clock: The time in Unix seconds.
    """

    def __init__(
        self, backend: Backend, *, counted_by_ledger: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._backend = backend
        self._counted = counted_by_ledger
        self._clock = clock

    def park(self, envelope: Envelope, *, delay_seconds: float, number: int) -> Write:
        """Publish a busy delivery to come again after a delay, under the epoch of a number that the ledger gave out.

        Raises:
            PublishError: It could not be published.
        """
        again = envelope.model_copy(update={"epoch": ledger_epoch(number)})
        # Not until a time: a receiver whose clock is behind would have it back at once, and again and again.
        return self._backend.publish(
            Publication(
                envelope=again,
                options=self._options(again),
                delay_seconds=delay_seconds,
                counted_by_ledger=self._counted,
            )
        )

    def is_early(self, envelope: Envelope) -> bool:
        """Return whether a delivery has come so far before its time that it has to make another hop."""
        return (
            envelope.not_before_ms is not None and envelope.not_before_ms / 1000 - self._clock() > HOP_TOLERANCE_SECONDS
        )

    def hop(self, envelope: Envelope) -> Write:
        """Publish an early delivery to come again when its time has come, or after the longest possible delay.

        Raises:
            PublishError: It could not be published.
        """
        again = envelope.model_copy(update={"epoch": envelope.epoch + 1})
        return self._backend.publish(
            Publication(envelope=again, options=self._options(again), counted_by_ledger=self._counted)
        )

    def _options(self, envelope: Envelope) -> Mapping[str, Any]:
        return envelope.options.get(self._backend.name, {})
