from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.flow_control import FlowControlCommands
from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import FlowControl
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.views import flow_view

MakeWorld = Callable[..., Any]


class Keys:
    """Short forms of what is done to the key `k` of a world."""

    def __init__(self, world: Any) -> None:
        self._account = world.account
        self._commands = FlowControlCommands(world.engine)
        self._clock = world.engine.clock

    @property
    def flow(self) -> Any:
        return self._commands.key(self._account, "k")

    def pause(self) -> None:
        self._commands.set_paused(self._account, self.flow, paused=True)

    def resume(self) -> None:
        self._commands.set_paused(self._account, self.flow, paused=False)

    def pin(self, parallelism: int | None = None, rate: int | None = None, period: int | None = None) -> None:
        self._commands.pin(self._account, self.flow, parallelism=parallelism, rate=rate, period=period)

    def unpin(self, *, parallelism: bool = False, rate: bool = False) -> None:
        self._commands.unpin(self._account, self.flow, parallelism=parallelism, rate=rate)

    def reset_rate(self) -> None:
        self._commands.reset_rate(self._account, self.flow)

    def view(self) -> dict[str, Any]:
        return flow_view(self.flow, self._clock())


@pytest.fixture
def keys(world: Any) -> Keys:
    """The key of the world."""
    return Keys(world)


def publish(world: Any, count: int, **limits: Any) -> list[Any]:
    return [world.publish(flow=FlowControl(key="k", **limits)) for _ in range(count)]


def test_paused_key_holds_back_old_and_new_messages_until_it_is_resumed(world: Any, keys: Keys) -> None:
    first, second = publish(world, 2, parallelism=1)
    assert world.start() == [first]
    keys.pause()
    world.finish(first)
    (third,) = publish(world, 1, parallelism=5)

    assert world.advance(3600) == []
    assert keys.view()["waitListSize"] == 2

    keys.resume()
    assert world.start() == [second, third]


def test_pausing_stops_no_call_in_flight_and_other_keys(world: Any, keys: Keys) -> None:
    (active,) = publish(world, 1, parallelism=1)
    world.start()
    keys.pause()
    other = world.publish(flow=FlowControl(key="other", parallelism=1))

    assert world.start() == [other]
    world.finish(active, 500)
    assert (keys.view()["parallelismCount"], keys.view()["waitListSize"]) == (0, 0)


def test_rate_window_runs_on_while_the_key_is_paused(world: Any, keys: Keys) -> None:
    first, second, third = publish(world, 3, rate=1, period_seconds=10)
    assert world.start() == [first]
    keys.pause()
    world.clock.now += 4
    keys.resume()

    assert (keys.view()["rateCount"], world.start()) == (1, [])
    keys.pause()
    assert world.advance(7) == []
    assert keys.view()["rateCount"] == 0
    keys.resume()

    assert world.start() == [second]
    assert world.advance(10) == [third]


def test_pinned_limits_are_not_replaced_by_messages(world: Any, keys: Keys) -> None:
    keys.pin(parallelism=2)
    messages = publish(world, 5, parallelism=5, rate=3, period_seconds=60)

    assert world.start() == messages[:2]
    view = keys.view()
    assert (view["parallelismMax"], view["rateMax"], view["ratePeriod"]) == (2, 3, 60)
    assert (view["isPinnedParallelism"], view["isPinnedRate"]) == (True, False)
    for message in messages[:2]:
        world.finish(message)
    assert world.start() == messages[2:3]


def test_pinned_rate_holds_with_its_period(world: Any, keys: Keys) -> None:
    keys.pin(rate=1, period=10)
    messages = publish(world, 3, parallelism=3, rate=100)

    assert world.start() == messages[:1]
    assert world.advance(9) == []
    assert world.advance(1) == messages[1:2]
    view = keys.view()
    assert (view["parallelismMax"], view["rateMax"], view["ratePeriod"]) == (3, 1, 10)


def test_pinning_restarts_the_rate_window_and_takes_effect_at_once(world: Any, keys: Keys) -> None:
    messages = publish(world, 5, rate=1, period_seconds=3600)
    assert world.start() == messages[:1]
    world.clock.now += 5

    keys.pin(rate=2, period=10)

    assert (keys.view()["rateCount"], keys.view()["ratePeriodStart"]) == (0, int(world.clock.now))
    assert world.start() == messages[1:3]
    assert world.advance(10) == messages[3:5]


def test_unpinned_limit_stays_until_the_next_message_brings_another(world: Any, keys: Keys) -> None:
    keys.pin(parallelism=1, rate=1, period=10)
    keys.unpin(parallelism=True)
    view = keys.view()
    assert (view["parallelismMax"], view["isPinnedParallelism"], view["isPinnedRate"]) == (1, False, True)

    publish(world, 1, parallelism=7, rate=7)
    keys.unpin(rate=True)

    view = keys.view()
    assert (view["parallelismMax"], view["rateMax"], view["ratePeriod"]) == (7, 1, 10)
    publish(world, 1, parallelism=7, rate=8, period_seconds=9)
    assert (keys.view()["rateMax"], keys.view()["ratePeriod"]) == (8, 9)


def test_reset_of_the_rate_lets_messages_go_at_once(world: Any, keys: Keys) -> None:
    messages = publish(world, 3, rate=1, period_seconds=100)
    assert world.start() == messages[:1]
    assert world.advance(50) == []

    keys.reset_rate()

    assert world.start() == messages[1:2]
    assert world.advance(99) == []
    assert world.advance(1) == messages[2:]


def test_cancelled_messages_do_not_wait(world: Any, keys: Keys) -> None:
    keys.pause()
    messages = publish(world, 3, parallelism=1)
    world.start()
    world.engine.cancel(world.account, messages[1])

    assert keys.view()["waitListSize"] == 2
    keys.resume()
    assert world.start() == messages[:1]
    assert keys.view()["waitListSize"] == 1


def test_many_cancelled_messages_of_a_paused_key_are_let_go(world: Any, keys: Keys) -> None:
    keys.pause()
    kept, *rest = publish(world, 2500, parallelism=1)
    for message in rest:
        world.engine.cancel(world.account, message)

    assert keys.flow.waiting.kept < 1500
    assert keys.view()["waitListSize"] == 1
    keys.resume()
    assert world.start() == [kept]


@pytest.mark.parametrize("keep", ["pause", "pin"])
def test_housekeeping_forgets_no_key_that_is_paused_or_pinned(world: Any, keys: Keys, keep: str) -> None:
    keys.pause() if keep == "pause" else keys.pin(parallelism=1)

    world.clock.now += 10 * 86_400
    sweep(world.engine)
    assert "k" in world.account.flows

    keys.resume()
    keys.unpin(parallelism=True)
    world.clock.now += 601
    sweep(world.engine)
    assert "k" not in world.account.flows


def test_paused_and_pinned_keys_survive_a_restart_and_others_leave_nothing(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    async def reopened() -> Any:
        store = SqliteStore(tmp_path / "db", durable=False)
        recovered = await store.load()
        world = make_world(store)
        recover(world.engine, recovered)
        return world, store, recovered.documents

    async def main() -> None:
        world, store, _ = await reopened()
        keys = Keys(world)
        keys.pin(parallelism=2, rate=3, period=60)
        keys.pause()
        messages = publish(world, 4, parallelism=9, rate=9)
        view = keys.view()
        await store.close()

        world, store, _ = await reopened()
        keys = Keys(world)
        assert keys.view() == view | {"ratePeriodStart": keys.view()["ratePeriodStart"]}
        assert world.start() == []
        assert keys.view()["waitListSize"] == 4
        keys.resume()
        assert [message.id for message in world.start()] == [message.id for message in messages[:2]]
        keys.unpin(parallelism=True, rate=True)
        await store.close()

        world, store, documents = await reopened()
        assert documents == []
        await store.close()

    asyncio.run(main())
