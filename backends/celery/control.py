"""Remote control of an app with a bridge: what is revoked must not run on the push side either."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery.app.control import Control

from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.outcome import describe
from queuebridge.stages import Side

logger = logging.getLogger(__name__)


class BridgedControl(Control):
    """Celery's remote control."""

    def revoke(
        self,
        task_id: Any,
        destination: Any = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **options: Any,
    ) -> Any:
        """Tell workers to ignore a task or several, and keep their dispatches from starting anywhere.

        An execution that is under way on the push side is not ended, whatever `terminate` says.
        """
        app: Any = self.app
        forwarding = app.queuebridge.forwarding()
        if forwarding is not None and forwarding.bridge.ledger is not None:
            self._cancel(forwarding.bridge, [task_id] if isinstance(task_id, str) else task_id)
        if forwarding is not None and Side.LEGACY not in forwarding.bridge.backends:
            # There are no workers to tell.
            return None
        return super().revoke(task_id, destination=destination, terminate=terminate, signal=signal, **options)

    def _cancel(self, bridge: Any, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            try:
                cancelled, running = bridge.cancel(task_id)
            except QueueBridgeError as error:
                logger.error("Task %s is revoked in workers only: %s", task_id, redact(describe(error)))
                continue
            if cancelled and not running:
                # As a worker does that meets a revoked message: whoever waits for the result is told.
                self.app.backend.mark_as_revoked(task_id, reason="revoked", request=None, store_result=True)
