"""Connections of a Django project to its databases, where its tasks run in a process that is no worker."""

from __future__ import annotations

import sys
from typing import Any

from celery import signals

_FIXUP = "celery.fixups.django"


def renew_connections() -> None:
    """Have connections closed that are done with, before and after each task of a Django project.

    A worker does so by itself, and Django around its own requests; a receiver would keep them until they break.
    """
    for signal in (signals.task_prerun, signals.task_postrun):
        signal.connect(_close_old, weak=False, dispatch_uid="queuebridge.renew_connections")


def _close_old(sender: Any, **_: Any) -> None:
    # Celery has imported it, if the project is one of Django.
    db: Any = sys.modules.get("django.db")
    if db is None or getattr(sender.request, "is_eager", False):
        return
    if any(type(fixup).__module__ == _FIXUP for fixup in getattr(sender.app, "_fixups", ())):
        db.close_old_connections()
