"""Reconcile beside `celery worker`: what `queuebridge worker` does for tasks of its own."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import signals

from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.settings import environment_or, read_settings

logger = logging.getLogger(__name__)

# They know every app, and have it under names that mean something else in another process.
_NOT_IN = ("__main__", "__mp_main__", "celery", "queuebridge")


def reconcile_beside_workers() -> None:
    """Have workers that Celery's command runs reconcile, if they have a bridge and a ledger."""
    signals.worker_ready.connect(_start, weak=False, dispatch_uid="queuebridge.reconcile")


def path_of(app: Any) -> str | None:
    """Return where another process finds an app, as `package.module:attribute`; None if nowhere."""
    found = [
        f"{name}:{attribute}"
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in _NOT_IN
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is app
    ]
    return min(found, key=lambda path: (len(path), path), default=None)


def _start(sender: Any, **_: Any) -> None:
    app = sender.app
    forwarding = getattr(app, "queuebridge", None)
    chosen = forwarding.forwarding() if forwarding is not None else None
    if chosen is None or chosen.bridge.ledger is None:
        return
    if app.connection_for_write().transport.driver_type == "memory":
        # Nobody else could put anything there.
        return
    path = read_settings(CelerySettings, environment_or(None)).app or path_of(app)
    if path is None:
        logger.warning(
            "This worker cannot tell another process where its app is, so that it does not reconcile. Set "
            "QUEUEBRIDGE_CELERY_APP=package.module:app, or run `queuebridge reconcile --loop` beside it."
        )
        return
    # Only in workers.
    from queuebridge.reconciling import companion

    def stop(**_: Any) -> None:
        companion.stop()

    companion.start({"QUEUEBRIDGE_CELERY_APP": path})
    signals.worker_shutdown.connect(stop, weak=False, dispatch_uid="queuebridge.reconcile")
