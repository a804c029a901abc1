"""Which bridge `task.delay` uses."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from queuebridge import Bridge, ConfigurationError, TaskRegistry, get_bridge, set_bridge, task


@pytest.fixture
def other(make_recorder: Any, registry: TaskRegistry) -> Bridge:
    """A second bridge."""
    return Bridge(make_recorder(), registry=registry, environ={})


def test_bridge_is_made_from_the_environment_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")

    assert get_bridge().backend.name == "inline"


def test_bridge_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")
    barrier = threading.Barrier(8)
    found: list[Bridge] = []

    def get() -> None:
        barrier.wait()
        found.append(get_bridge())

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert {id(bridge) for bridge in found} == {id(get_bridge())}


def test_wrong_environment_is_reported_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "nonsense")

    with pytest.raises(ConfigurationError):
        get_bridge()


def test_bridge_of_the_process_can_be_set(bridge: Bridge) -> None:
    set_bridge(bridge)

    assert get_bridge() is bridge


def test_forgotten_bridge_is_made_anew(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")
    set_bridge(bridge)

    set_bridge(None)

    assert get_bridge() is not bridge


def test_activated_bridge_comes_before_the_one_of_the_process(bridge: Bridge, other: Bridge) -> None:
    set_bridge(other)

    with bridge.activate() as active:
        assert active is bridge
        assert get_bridge() is bridge

    assert get_bridge() is other


def test_activations_nest(bridge: Bridge, other: Bridge) -> None:
    with bridge.activate():
        with other.activate():
            assert get_bridge() is other
        assert get_bridge() is bridge


def test_activation_ends_with_an_error(bridge: Bridge, other: Bridge) -> None:
    set_bridge(other)

    with pytest.raises(ZeroDivisionError), bridge.activate():
        _ = 1 / 0

    assert get_bridge() is other


def test_activation_does_not_reach_other_threads(bridge: Bridge, other: Bridge) -> None:
    set_bridge(other)
    found: list[Bridge] = []

    with bridge.activate():
        thread = threading.Thread(target=lambda: found.append(get_bridge()))
        thread.start()
        thread.join()

    # Python builds without a lock for all threads let threads inherit the context.
    assert found == [other]


def test_activation_does_not_reach_other_asyncio_tasks(bridge: Bridge, other: Bridge) -> None:
    async def use(mine: Bridge, entered: asyncio.Event, proceed: asyncio.Event) -> bool:
        with mine.activate():
            entered.set()
            await proceed.wait()
            return get_bridge() is mine

    async def main() -> list[bool]:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(use(bridge, events[0], events[1]))
        second = asyncio.create_task(use(other, events[2], events[3]))
        await events[0].wait()
        await events[2].wait()
        events[1].set()
        events[3].set()
        return [await first, await second]

    assert asyncio.run(main()) == [True, True]


def test_delay_uses_the_activated_bridge(bridge: Bridge, recorder: Any, registry: TaskRegistry) -> None:
    declared = task(name="t", registry=registry)(lambda number: None)

    with bridge.activate():
        receipt = declared.delay(5)

    assert (recorder.envelope.job_id, recorder.envelope.args) == (receipt.job_id, [5])


def test_aenqueue_uses_the_activated_bridge(bridge: Bridge, recorder: Any, registry: TaskRegistry) -> None:
    declared = task(name="t", registry=registry)(lambda number: None)

    async def main() -> None:
        with bridge.activate():
            await declared.aenqueue(5)

    asyncio.run(main())

    assert recorder.envelope.args == [5]


def test_making_the_bridge_may_ask_for_the_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the user's Celery app, which the bridge imports, enqueues at import: no deadlock."""
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")
    inner: list[Bridge] = []
    loading: list[bool] = []

    from queuebridge import assembly as module

    load = module.load_backend

    def load_backend(*args: Any, **kwargs: Any) -> Any:
        if not loading:
            loading.append(True)
            inner.append(get_bridge())
        return load(*args, **kwargs)

    monkeypatch.setattr(module, "load_backend", load_backend)

    assert get_bridge().backend.name == "inline"
    assert len(inner) == 1
