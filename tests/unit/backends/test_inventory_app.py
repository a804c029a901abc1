"""Reading an app as it is once everything is loaded: settings, queues, schedules, options and routes of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import celery
import pytest
from celery.app.amqp import AMQP
from celery.schedules import crontab
from kombu import Queue
from kombu.common import Broadcast

from queuebridge.backends.celery import Celery
from queuebridge.backends.celery.inventory.app_reading import load_app, names_in_modules, read_app, read_tasks
from queuebridge.backends.celery.inventory.facts import AppFacts, TaskFacts
from queuebridge.errors import ConfigurationError

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _no_tasks_of_other_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep those that other tests share with every app of the process, as `@app.task` does, out of these apps."""
    finalizers = celery._state._on_app_finalizers
    builtin = {one for one in finalizers if one.__module__ == "celery.app.builtins"}
    monkeypatch.setattr("celery._state._on_app_finalizers", builtin)


def make_app(kind: type[celery.Celery] = celery.Celery, **settings: Any) -> celery.Celery:
    app = kind("shop", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


def facts(app: celery.Celery) -> AppFacts:
    return read_app(app, "shop:app")


def task_of(app: celery.Celery, **options: Any) -> TaskFacts:
    @app.task(name="shop.work", shared=False, **options)
    def work(number: int) -> None: ...

    app.finalize()
    # Tasks of other tests' apps may be shared with this one.
    (task,) = [task for task in read_tasks(app) if task.name.startswith("shop.")]
    return task


def test_only_what_differs_from_celery_is_noted() -> None:
    assert facts(make_app()).settings == {}
    assert facts(make_app(task_acks_late=True, worker_pool="gevent")).settings == {
        "task_acks_late": True,
        "worker_pool": "gevent",
    }


def test_addresses_have_no_passwords() -> None:
    app = make_app(
        broker_url=f"redis://me:{SECRET}@broker:6379/0;redis://me:{SECRET}@other:6379/0",
        result_backend=f"db+postgresql://me:{SECRET}@db/results",
        task_queues=[Queue("one", queue_arguments={"x-note": f"amqp://me:{SECRET}@broker"})],
        beat_schedule={"a": {"task": "shop.work", "schedule": 3, "options": {"reply_to": f"amqp://x:{SECRET}@y"}}},
        task_routes={"shop.*": {"routing_key": f"amqp://me:{SECRET}@broker"}},
    )
    found = facts(app)

    assert found.broker_kind == "redis"
    assert found.visibility_timeout_seconds == 3600
    assert found.result_backend == "db+postgresql://***@db/results"
    assert SECRET not in json.dumps([repr(found), repr(task_of(app))])


@pytest.mark.parametrize("backend", [None, "disabled://"])
def test_app_without_results_has_no_result_backend(backend: str | None) -> None:
    assert facts(make_app(result_backend=backend)).result_backend is None


def test_queues_have_the_names_that_tasks_are_routed_to() -> None:
    app = make_app(
        task_queues=[Broadcast("everybody"), Queue("bulk", queue_arguments={"x-max-priority": 9})],
        task_routes={"shop.work": {"queue": "everybody", "priority": 3}},
    )

    assert task_of(app).route == {"queue": "everybody", "priority": 3}
    queues = facts(app).queues
    assert {name: queue.broadcast for name, queue in queues.items()} == {"everybody": True, "bulk": False}
    assert queues["bulk"].arguments == {"x-max-priority": 9}


def test_router_that_fails_is_no_failure_of_the_inventory() -> None:
    def route(name: str, args: Any, kwargs: Any, options: Any, **more: Any) -> Any:
        raise KeyError(args[0] if args else "no arguments")

    assert task_of(make_app(task_routes=[route])).route == {"unknown": "KeyError"}


def test_schedules_are_told_in_words() -> None:
    app = make_app(
        beat_schedule={
            "often": {"task": "shop.work", "schedule": 30},
            "nightly": {"task": "shop.work", "schedule": crontab(hour=3, minute=0), "options": {"priority": 3}},
        }
    )
    nightly, often = facts(app).schedules

    assert (often.name, often.task, often.when) == ("often", "shop.work", "every 30 s")
    assert nightly.when.startswith("crontab: 0 3 * * *")
    assert nightly.options == {"priority": 3}


def test_periodic_tasks_that_are_added_later_are_schedules_too() -> None:
    app = make_app()

    def add(sender: celery.Celery, **more: Any) -> None:
        sender.add_periodic_task(10, sender.signature("shop.work"), name="every ten")

    app.on_after_configure.connect(add)
    task_of(app)

    assert [entry.task for entry in facts(app).schedules] == ["shop.work"]


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({}, {}, {"serializer": "json"}),
        ({"task_serializer": "yaml"}, {}, {"serializer": "yaml"}),
        ({"task_default_priority": 3}, {}, {"serializer": "json", "priority": 3}),
        ({"task_annotations": {"shop.work": {"rate_limit": "1/m"}}}, {}, {"serializer": "json", "rate_limit": "1/m"}),
        ({"task_soft_time_limit": 5}, {"soft_time_limit": 9}, {"serializer": "json", "soft_time_limit": 9}),
        ({}, {"max_retries": None}, {"serializer": "json", "max_retries": "unlimited"}),
        (
            {},
            {"autoretry_for": (OSError,), "retry_backoff": True},
            {"serializer": "json", "autoretry_for": ["OSError"], "retry_backoff": True},
        ),
    ],
)
def test_options_of_a_task_are_those_that_count(
    settings: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert task_of(make_app(**settings), **options).options == expected


def test_classes_of_ones_own_are_named() -> None:
    class Base(celery.Task):
        Request = "shop.requests:Request"
        Strategy = "shop.strategies:own"

    task = task_of(make_app(), base=Base, bind=False)

    assert [name.rpartition(".")[2] for name in task.bases] == ["Base"]
    assert (task.request, task.strategy) == ("shop.requests:Request", "shop.strategies:own")
    assert not task.bound
    assert task_of(make_app()).bases == ()


def test_task_that_is_a_class_has_the_place_of_its_class() -> None:
    class Work(celery.Task):
        name = "shop.work"

        def run(self, number: int) -> None: ...

    app = make_app()
    app.register_task(Work())
    app.finalize()
    # Tasks of other tests' apps may be shared with this one.
    (task,) = [task for task in read_tasks(app) if task.name.startswith("shop.")]

    assert task.bound
    assert task.place is not None
    assert task.place.file.endswith("test_inventory_app.py")


class OwnQueues(AMQP):
    """Changes something that the bridge leaves alone."""


class OwnSending(AMQP):
    """Changes what the bridge replaces."""

    send_task_message = None


@pytest.mark.parametrize(
    ("kind", "parts", "custom", "own_sending"),
    [
        (celery.Celery, {}, {}, False),
        (Celery, {}, {}, False),
        (celery.Celery, {"amqp": OwnQueues}, {"amqp_cls": "OwnQueues"}, False),
        (celery.Celery, {"amqp": OwnSending}, {"amqp_cls": "OwnSending"}, True),
    ],
)
def test_parts_of_celery_that_an_app_replaces_are_named(
    kind: Callable[..., celery.Celery], parts: dict[str, Any], custom: dict[str, str], own_sending: bool
) -> None:
    found = facts(kind("shop", broker="memory://", set_as_current=False, **parts))

    assert {name: part.rpartition(":")[2] for name, part in found.custom.items()} == custom
    assert found.own_sending is own_sending


def test_names_of_tasks_are_those_of_the_running_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    app = make_app()

    @app.task(name="shop.work", shared=False)
    def work() -> None: ...

    app.finalize()
    module = ModuleType("shop_views")
    vars(module).update(job=work, number=3, current=celery.current_task, other=celery.current_app)
    monkeypatch.setitem(__import__("sys").modules, "shop_views", module)

    found = names_in_modules(["shop_views", "not_imported"], app)

    assert found["shop_views.job"] == "shop.work"
    assert {name for name in found if name.startswith("shop_views.")} == {"shop_views.job"}


def test_what_is_no_app_is_refused_with_the_option_that_named_it() -> None:
    with pytest.raises(ConfigurationError, match="--celery='json:dumps' is a function, not a Celery app"):
        load_app("json:dumps", option="--celery")
