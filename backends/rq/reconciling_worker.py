"""One of the workers of ours reconciles, in a process beside it; which one, they settle in Redis."""

from __future__ import annotations

import logging
import time
from typing import Any

from queuebridge.reconciling import Companion

logger = logging.getLogger(__name__)

_LOCK = "rq:queuebridge:reconciles"
# Longer than RQ goes between two signs of life while a job runs, which is 30 s by default. Two that reconcile at the
# same time do no harm.
_HELD_SECONDS = 90
_LOOK_SECONDS = 5.0


class ReconcilingHelper:
    """Reconciles beside a worker, as long as no other worker does.

    RQ programs have many workers of one job each, and a process beside each of them would be too many.

    Args:
        connection: RQ's Redis.
        name: The name of the worker.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name
        self._companion = Companion()
        self._look_at = 0.0

    def look(self) -> None:
        """Start or end the process, as the others leave it; called again and again."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        ours = self._hold()
        if self._companion.started and not (ours and self._companion.running):
            if ours:
                logger.error("What reconciles beside worker %s has ended; it is started again.", self._name)
            self._companion.stop()
        if ours:
            self._companion.start({})

    def stop(self) -> None:
        """End the process, and leave it to another worker."""
        if not self._companion.started:
            return
        self._companion.stop()
        if self._holder() == self._name:
            self._connection.delete(_LOCK)

    def _hold(self) -> bool:
        if self._connection.set(_LOCK, self._name, nx=True, ex=_HELD_SECONDS):
            return True
        if self._holder() != self._name:
            return False
        self._connection.expire(_LOCK, _HELD_SECONDS)
        return True

    def _holder(self) -> str | None:
        holder = self._connection.get(_LOCK)
        return holder.decode() if holder is not None else None
