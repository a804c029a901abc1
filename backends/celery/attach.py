"""Put a bridge below an existing Celery application: its publications and its executions."""

from __future__ import annotations

from typing import Any

import celery
from celery.app.registry import TaskRegistry
from celery.utils.imports import symbol_by_name

from queuebridge.backends.celery.amqp import BridgedAMQP
from queuebridge.backends.celery.control import BridgedControl
from queuebridge.backends.celery.databases import renew_connections
from queuebridge.backends.celery.execution import guard_executions
from queuebridge.backends.celery.forwarding import AppForwarding
from queuebridge.backends.celery.receiver_app import note_attached
from queuebridge.backends.celery.reconciling import reconcile_beside_workers
from queuebridge.backends.celery.workers import introduce_workers
from queuebridge.errors import ConfigurationError

_AMQP = "celery.app.amqp:AMQP"
_CONTROL = "celery.app.control:Control"


class BridgedTaskRegistry(TaskRegistry):
    """The tasks of an app, whose executions claim their jobs."""

    def __setitem__(self, name: str, task: Any) -> None:
        _guard(task)
        super().__setitem__(name, task)


class Celery(celery.Celery):
    """Celery's own class, with a bridge below it; its arguments are those of `celery.Celery`.

    As long as neither QUEUEBRIDGE_BACKEND nor QUEUEBRIDGE_LEGACY nor QUEUEBRIDGE_STAGE is set nothing changes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before anything that asks for it.
        self.queuebridge = AppForwarding(self)
        super().__init__(*args, **kwargs)
        _replace_parts(self)


def attach(app: Any) -> Any:
    """Put a bridge below an app that was made elsewhere, and return it. May be repeated.

    Raises:
        ConfigurationError: It is no Celery app, or makes its messages in a way of its own.
    """
    if not isinstance(app, celery.Celery):
        # `current_app` is a proxy of one.
        resolve = getattr(app, "_get_current_object", None)
        app = resolve() if resolve is not None else app
    if not isinstance(app, celery.Celery):
        raise ConfigurationError(f"attach() takes a Celery app, not {type(app).__name__}.")
    bridged: Any = app
    if "queuebridge" not in vars(app):
        bridged.queuebridge = AppForwarding(app)
        _replace_parts(app)
    return app


def attached_forwarding(app: celery.Celery) -> AppForwarding | None:
    """Return what sends the messages of an app; None if there is no bridge below it."""
    found = vars(app).get("queuebridge")
    return found if isinstance(found, AppForwarding) else None


def _replace_parts(app: Any) -> None:
    app.amqp_cls = _bridged(app.amqp_cls, _AMQP, BridgedAMQP)
    app.control_cls = _bridged(app.control_cls, _CONTROL, BridgedControl)
    # Those that exist already are changed, not made anew: others may hold them.
    for name, part in (("amqp", app.amqp_cls), ("control", app.control_cls)):
        made = vars(app).get(name)
        if made is not None:
            made.__class__ = symbol_by_name(part)
    if "amqp" in vars(app):
        vars(app.amqp).pop("send_task_message", None)
        app.amqp.task_protocols = {**app.amqp.task_protocols, 2: app.amqp.as_task_v2}
        vars(app.amqp).pop("create_task_message", None)
    app._tasks.__class__ = _bridged_class(type(app._tasks), BridgedTaskRegistry)
    for task in list(app._tasks.values()):
        _guard(task)
    note_attached(app)
    introduce_workers(app)
    renew_connections()
    reconcile_beside_workers()


def _bridged(present: Any, original: str, bridged: type) -> Any:
    """Return the bridged form of a part of an app: ours, or a subclass of the app's own."""
    if present == original:
        return f"{bridged.__module__}:{bridged.__qualname__}"
    own = symbol_by_name(present)
    if issubclass(own, bridged):
        return present
    if "send_task_message" in vars(own):
        raise ConfigurationError(
            f"The app has a class {own.__qualname__} with a send_task_message of its own, which a bridge replaces."
        )
    return _bridged_class(own, bridged)


def _bridged_class(own: type, bridged: type) -> type:
    """Return the bridged form of a class: ours, or a subclass of the app's own, which keeps what it does."""
    if issubclass(own, bridged):
        return own
    if issubclass(bridged, own):
        return bridged
    return type(f"Bridged{own.__name__}", (bridged, own), {"__doc__": own.__doc__, "__module__": own.__module__})


def _guard(task: Any) -> None:
    # A registry takes anything; only tasks run.
    if isinstance(task, celery.Task) or (isinstance(task, type) and issubclass(task, celery.Task)):
        guard_executions(task)
