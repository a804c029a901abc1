"""What reconciles beside a worker: how it finds the app, and when there is nothing for it to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import celery
import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import signals

from queuebridge.backends.celery.reconciling import path_of
from queuebridge.reconciling import Companion, companion
from queuebridge.stages import Stage


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """What processes would be started with."""
    found: list[Mapping[str, str]] = []
    monkeypatch.setattr(companion, "start", found.append)
    return found


def ready(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, *, broker: str = "redis") -> None:
    """Tell that a worker is ready, as one of Celery's command does."""
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type=broker))
    monkeypatch.setattr(world.app, "connection_for_write", lambda: connection)
    receivers = list(signals.worker_shutdown.receivers)
    try:
        signals.worker_ready.send(sender=type("Consumer", (), {"app": world.app})())
    finally:
        signals.worker_shutdown.receivers = receivers
        monkeypatch.undo()


def module_with(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """Make a module."""
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


def test_app_is_found_by_the_shortest_name_that_another_process_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    app = celery.Celery("shop", set_as_current=False)
    assert path_of(app) is None
    module_with(monkeypatch, "celery.somewhere", app=app)
    monkeypatch.setattr(sys.modules["__main__"], "shop_app", app, raising=False)
    assert path_of(app) is None

    module_with(monkeypatch, "shop_project.celery", app=app)
    module_with(monkeypatch, "shop_project", app=app)
    module_with(monkeypatch, "shop_other", app=celery.Celery("other", set_as_current=False))

    assert path_of(app) == "shop_project:app"


def test_worker_hands_its_app_on(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, started: list[Mapping[str, str]]
) -> None:
    world = make_world(Stage.LIVE)
    module_with(monkeypatch, "shop_project.celery", app=world.app)

    ready(world, monkeypatch)

    assert started == [{"QUEUEBRIDGE_CELERY_APP": "shop_project.celery:app"}]


def test_name_in_the_environment_goes_first(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, started: list[Mapping[str, str]]
) -> None:
    world = make_world(Stage.LIVE)
    assert world.app.queuebridge.forwarding() is not None
    module_with(monkeypatch, "shop_project.celery", app=world.app)
    monkeypatch.setenv("QUEUEBRIDGE_CELERY_APP", "made:elsewhere")

    ready(world, monkeypatch)

    assert started == [{"QUEUEBRIDGE_CELERY_APP": "made:elsewhere"}]


def test_app_that_cannot_be_found_is_told_of(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    started: list[Mapping[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        ready(make_world(Stage.LIVE), monkeypatch)

    assert started == []
    assert "Set QUEUEBRIDGE_CELERY_APP=package.module:app" in caplog.text


@pytest.mark.parametrize("what", ["no ledger", "broker in memory"])
def test_where_there_is_nothing_to_reconcile_nothing_is_started(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, started: list[Mapping[str, str]], what: str
) -> None:
    world = make_world(Stage.LEGACY, with_ledger=what != "no ledger")
    module_with(monkeypatch, "shop_project.celery", app=world.app)

    ready(world, monkeypatch, broker="memory" if what == "broker in memory" else "redis")

    assert started == []


def test_process_has_one_companion_at_most_and_a_forked_child_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Process:
        def __init__(self, *_: Any, **__: Any) -> None:
            calls.append("start")

        def terminate(self) -> None:
            calls.append("terminate")

        def wait(self, _: float) -> None:
            calls.append("wait")

    monkeypatch.setattr("queuebridge.reconciling.subprocess.Popen", Process)
    ours = Companion()

    assert (ours.start({}), ours.start({})) == (True, False)
    forked = Companion()
    vars(forked).update(vars(ours), _owner=-1)
    forked.stop()
    assert calls == ["start"]
    ours.stop()
    ours.stop()

    assert calls == ["start", "terminate", "wait"]
