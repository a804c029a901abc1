"""A ready Celery app with all tasks: `celery -A queuebridge.backends.celery.app worker`."""

from __future__ import annotations

from typing import Any

from celery.utils.imports import cwd_in_path

from queuebridge.assembly import select_backend
from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.worker import register_tasks
from queuebridge.bridge import Bridge, set_bridge
from queuebridge.errors import ConfigurationError
from queuebridge.routing import RoutingSettings

_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    # Made when it is asked for: importing a module reads no settings and no tasks.
    if name not in ("app", "celery"):
        raise AttributeError(name)
    if "app" not in _made:
        migrating = RoutingSettings.from_environment().legacy == CeleryBackend.name
        bridge = Bridge(kind="worker") if migrating else Bridge(CeleryBackend.name)
        backend = bridge.worker_backend
        if not isinstance(backend, CeleryBackend):
            raise ConfigurationError("The celery backend is not the one of queuebridge.")
        # Celery itself looks for an app in the current folder, and so do we for its tasks.
        with cwd_in_path():
            bridge.load_tasks()
        register_tasks(backend.app, bridge.registry, bridge.runner)
        if migrating or select_backend(bridge.settings) == backend.name:
            # Else this worker drains Celery, while jobs that its tasks enqueue go where the environment says.
            set_bridge(bridge)
        _made["app"] = backend.app
    return _made["app"]
