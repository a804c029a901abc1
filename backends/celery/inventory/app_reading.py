"""Read an app and its tasks, as they are once everything is imported. Nothing is published or connected to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import celery
import celery.app.base
from celery.app.task import Task
from celery.local import Proxy
from celery.utils.imports import symbol_by_name

from queuebridge.backends.celery.configured_app import import_app, longest_delay
from queuebridge.backends.celery.inventory.facts import UNLIMITED, AppFacts, QueueFacts, ScheduleFacts, TaskFacts
from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.files import shown
from queuebridge.failures import redact

# Settings that rules look at; those that have Celery's default are not noted.
_SETTINGS = (
    *("accept_content", "beat_scheduler", "event_serializer", "result_accept_content", "result_serializer"),
    *("task_acks_late", "task_always_eager", "task_compression", "task_default_priority", "task_default_queue"),
    *("task_default_exchange_type", "task_default_queue_type", "task_default_rate_limit", "task_ignore_result"),
    *("task_inherit_parent_priority", "task_protocol", "task_queue_max_priority", "task_reject_on_worker_lost"),
    *("task_send_sent_event", "task_serializer", "task_soft_time_limit", "task_time_limit", "task_track_started"),
    *("worker_direct", "worker_max_memory_per_child", "worker_max_tasks_per_child", "worker_pool"),
    *("worker_send_task_events",),
)
# Options of a task -> Celery's default, None among them.
_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("serializer", "compression", "priority", "rate_limit", "time_limit", "soft_time_limit"), None),
    **dict.fromkeys(("expires", "queue", "exchange", "routing_key", "delivery_mode"), None),
    **dict.fromkeys(("mandatory", "immediate"), False),
    **dict.fromkeys(("acks_late", "reject_on_worker_lost", "retry_on_worker_lost"), False),
    **dict.fromkeys(("ignore_result", "track_started"), False),
    **dict.fromkeys(("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout", "typing"), True),
    **dict.fromkeys(("autoretry_for", "dont_autoretry_for", "throws"), ()),
    "max_retries": 3,
    "default_retry_delay": 180,
    "retry_backoff": False,
    "retry_backoff_max": 600,
    "retry_jitter": True,
    "retry_kwargs": {},
}
_PARTS = {
    "amqp_cls": "celery.app.amqp:AMQP",
    "control_cls": "celery.app.control:Control",
    "events_cls": "celery.app.events:Events",
    "registry_cls": "celery.app.registry:TaskRegistry",
    "task_cls": "celery.app.task:Task",
}
_OURS = "queuebridge.backends.celery."
_REQUEST = "celery.worker.request:Request"
_STRATEGY = "celery.worker.strategy:default"


def load_app(path: str, *, option: str) -> celery.Celery:
    """Import an app and all modules of its tasks.

    Args:
        path: The app, as `package.module:attribute`.
        option: What named it, for errors.

    Raises:
        ConfigurationError: There is none, or what is there is no Celery app.
    """
    app = import_app(path, variable=option)
    app.loader.import_default_modules()
    app.finalize()
    return app


def read_app(app: celery.Celery, path: str) -> AppFacts:
    """Return what matters of an app."""
    conf = app.conf
    broker = str(conf.broker_write_url or conf.broker_url or "amqp://")
    backend = conf.result_backend
    return AppFacts(
        name=str(app.main or path.partition(":")[0]),
        path=path,
        broker=redact(broker),
        broker_kind=broker.partition("://")[0].partition("+")[0],
        visibility_timeout_seconds=longest_delay(app),
        result_backend=None if backend is None or str(backend).startswith("disabled") else redact(str(backend)),
        accept_content=tuple(map(str, conf.accept_content or ())),
        settings=_settings(app),
        queues=dict(_queues(app)),
        schedules=tuple(_schedules(app)),
        custom=_custom(app),
        own_sending=_sends_itself(app),
    )


def read_tasks(app: celery.Celery) -> list[TaskFacts]:
    """Return the tasks of an app but for Celery's own, in the order of their names."""
    return [_task(app, task) for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")]


def names_in_modules(module_names: Iterable[str], app: celery.Celery) -> dict[str, str]:
    """Return which global of which imported module is which task: full name -> name of the task."""
    found: dict[str, str] = {}
    for module_name in module_names:
        for attribute, value in list(vars(sys.modules.get(module_name, object)).items()):
            if _is_task(value) and str(value.name) in app.tasks:
                found[f"{module_name}.{attribute}"] = str(value.name)
    for name, task in app.tasks.items():
        found.setdefault(f"{task.__module__}.{getattr(task, '__qualname__', type(task).__qualname__)}", name)
    return {full: name for full, name in found.items() if not name.startswith("celery.")}


def apps_in_modules(module_names: Iterable[str]) -> frozenset[str]:
    """Return which globals of imported modules are Celery apps."""
    return frozenset(
        f"{module_name}.{attribute}"
        for module_name in module_names
        for attribute, value in list(vars(sys.modules.get(module_name, object)).items())
        if issubclass(type(value), celery.Celery)
    )


def _custom(app: celery.Celery) -> dict[str, str]:
    parts = {name: _named(getattr(app, name)) for name in _PARTS}
    # An app that has the bridge already is no special case.
    return {
        name: part for name, part in parts.items() if part != _PARTS[name] and not part.startswith(_OURS)
    }


def _sends_itself(app: celery.Celery) -> bool:
    part: Any = app.amqp_cls
    return "amqp_cls" in _custom(app) and "send_task_message" in vars(symbol_by_name(part))


def _is_task(value: Any) -> bool:
    # By the type, which does not evaluate what is lazy and no task.
    if not issubclass(type(value), Proxy):
        return issubclass(type(value), Task)
    try:
        return isinstance(value._get_current_object(), Task)
    except Exception:  # noqa: BLE001 - a proxy of something that is not there, such as the current task
        return False


def _settings(app: celery.Celery) -> dict[str, Any]:
    from celery.app.defaults import DEFAULTS

    found = {}
    for name in _SETTINGS:
        value = app.conf.get(name)
        if value != DEFAULTS.get(name):
            found[name] = _plain(value)
    if app.conf.task_routes:
        found["task_routes"] = _plain(app.conf.task_routes)
    return found


def _queues(app: celery.Celery) -> Iterator[tuple[str, QueueFacts]]:
    for queue in (app.amqp.queues or {}).values():
        name, exchange = _queue_name(queue), queue.exchange
        yield (
            name,
            QueueFacts(
                name=name,
                exchange=str(exchange.name if exchange is not None else ""),
                exchange_type=str(exchange.type if exchange is not None else "direct"),
                routing_key=str(queue.routing_key or ""),
                broadcast=exchange is not None and exchange.type == "fanout",
                arguments=_plain(queue.queue_arguments or {}),
            ),
        )


def _schedules(app: celery.Celery) -> Iterator[ScheduleFacts]:
    for name, entry in sorted((app.conf.beat_schedule or {}).items()):
        # A mapping, or an object of a scheduler.
        fields = entry if isinstance(entry, Mapping) else vars(entry)
        schedule = fields.get("schedule")
        when = f"every {schedule:g} s" if isinstance(schedule, int | float) else str(schedule).strip("<>")
        yield ScheduleFacts(
            name=str(name),
            task=str(fields.get("task")),
            when=redact(when),
            options=_plain(fields.get("options") or {}),
        )


def _task(app: celery.Celery, task: Any) -> TaskFacts:
    written = getattr(task, "_orig_run", task.run)
    # Celery 5.7 keeps the function as it was decorated; before, the wrapper for pydantic leads to it.
    function = inspect.unwrap(getattr(task, "_decorated_fun", None) or written)
    decorated = bool(getattr(type(task), "_decorated", False))
    run = vars(type(task)).get("run")
    classes = type(task).__mro__[1:]
    ours = [one for one in classes if one.__module__ != "builtins" and not one.__module__.startswith("celery.")]
    request, strategy = _named(task.Request), _named(task.Strategy)
    return TaskFacts(
        name=task.name,
        module=task.__module__,
        qualname=getattr(task, "__qualname__", type(task).__qualname__),
        place=_place(function if decorated else type(task)),
        bound=not isinstance(run, staticmethod) if decorated else True,
        pydantic=getattr(getattr(written, "__code__", None), "co_filename", None) == celery.app.base.__file__,
        bases=tuple(f"{one.__module__}.{one.__qualname__}" for one in ours),
        request=request if request != _REQUEST else None,
        strategy=strategy if strategy != _STRATEGY else None,
        options=_options(task),
        route=_route(app, task.name),
        own_backend=type(task).__dict__.get("backend") is not None,
    )


def _options(task: Any) -> dict[str, Any]:
    found = {
        name: _plain(value)
        for name, usual in _OPTIONS.items()
        if (value := getattr(task, name, usual)) is not None and value != usual
    }
    if getattr(task, "max_retries", 3) is None:
        found["max_retries"] = UNLIMITED
    return found


def _route(app: celery.Celery, name: str) -> dict[str, Any]:
    try:
        route = app.amqp.router.route({}, name)
    except Exception as error:  # noqa: BLE001 - a router is code of the project, which may want more than a name
        return {"unknown": type(error).__name__}
    found = {key: _plain(value) for key, value in route.items() if key != "queue"}
    queue = route.get("queue")
    if queue is not None:
        found["queue"] = _queue_name(queue)
    return found


def _queue_name(queue: Any) -> str:
    # The queue of a broadcast has another name in each process.
    return str(getattr(queue, "alias", None) or getattr(queue, "name", queue))


def _place(defined: Any) -> Place | None:
    code = getattr(defined, "__code__", None)
    if code is not None:
        return Place(shown(code.co_filename), code.co_firstlineno)
    try:
        return Place(shown(inspect.getsourcefile(defined) or ""), inspect.getsourcelines(defined)[1])
    except (OSError, TypeError):
        return None


def _named(part: Any) -> str:
    return part if isinstance(part, str) else f"{part.__module__}:{part.__qualname__}"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; classes by their names, everything else as text without passwords."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return value.__qualname__
    return redact(str(value))
