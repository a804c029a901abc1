"""Remote control of an app with a bridge: what is revoked must not run on the push side either."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from celery.app.control import Control

from queuebridge.backends.celery.stamps import note_revoked_stamps
from queuebridge.errors import LedgerUnavailable, OptionNotSupported, QueueBridgeError
from queuebridge.failures import redact
from queuebridge.outcome import describe
from queuebridge.stages import PUSH_BACKEND, Role, Side

logger = logging.getLogger(__name__)

_BY_ID, _BY_STAMPS = "revoke", "revoke_by_stamped_headers"
_REVOKING = (_BY_ID, _BY_STAMPS)


class BridgedControl(Control):
    """Celery's remote control."""

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Any = None,
        connection: Any = None,
        reply: bool = False,
        *positional: Any,
        **options: Any,
    ) -> Any:
        """Tell workers something, as `revoke` and all other commands do; see `celery.app.control.Control.broadcast`.

        The dispatches of a job that is revoked are kept from starting anywhere. An execution that is under way on the
        push side is not ended, whatever `terminate` says.

        Returns:
            The answers of workers, if `reply`; else None.

        Raises:
            OptionNotSupported: Jobs are pushed, and cannot be revoked, because there is no ledger. Nobody was told
                anything.
            InvalidOption: What is revoked is not in a form that Celery knows.
            LedgerUnavailable: There are no workers to tell, and the ledger cannot be reached.
        """
        app: Any = self.app
        forwarding = app.queuebridge.forwarding()
        if forwarding is not None and command in _REVOKING:
            bridge = forwarding.bridge
            has_workers = Side.LEGACY in bridge.backends
            # Whoever names workers wants to tell those.
            if bridge.ledger is None and not (has_workers and destination) and _is_pushing(bridge):
                raise OptionNotSupported(
                    PUSH_BACKEND,
                    command,
                    "without a ledger nothing keeps a pushed job from running. Set QUEUEBRIDGE_LEDGER. Or tell workers "
                    "alone, by their names in `destination`.",
                )
            if bridge.ledger is not None:
                self._reach_push(command, bridge, {**(arguments or {}), **options}, only=not has_workers)
            if not has_workers:
                return [] if reply else None
        return super().broadcast(command, arguments, destination, connection, reply, *positional, **options)

    def _reach_push(self, command: str, bridge: Any, arguments: Mapping[str, Any], *, only: bool) -> None:
        if command == _BY_ID:
            self._cancel(bridge, _ids(arguments), only=only)
            return
        try:
            note_revoked_stamps(bridge.ledger, arguments.get("headers"))
        except LedgerUnavailable as error:
            if only:
                raise
            logger.error("Stamps are revoked in workers only: %s", redact(describe(error)))

    def _cancel(self, bridge: Any, task_ids: Iterable[str], *, only: bool) -> None:
        for task_id in task_ids:
            try:
                cancelled, running = bridge.cancel(task_id)
            except QueueBridgeError as error:
                if only:
                    raise
                logger.error("Task %s is revoked in workers only: %s", task_id, redact(describe(error)))
                continue
            if cancelled and not running:
                # As a worker does that meets a revoked message: whoever waits for the result is told.
                self.app.backend.mark_as_revoked(task_id, reason="revoked", request=None, store_result=True)


def _is_pushing(bridge: Any) -> bool:
    """Return whether jobs that are written now may run on the push side."""
    if bridge.stages is None:
        return bool(bridge.backend.name == PUSH_BACKEND)
    settings = bridge.stages.settings()
    stages = {stage for rule in (settings.default, *settings.rules) for stage in rule.stages}
    return any(stage.plan.copies.get(Side.PUSH, Role.SHADOW) is not Role.SHADOW for stage in stages)


def _ids(arguments: Mapping[str, Any]) -> list[str]:
    given = arguments.get("task_id")
    return [given] if isinstance(given, str) else list(given or ())
