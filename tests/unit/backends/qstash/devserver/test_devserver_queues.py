from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.messages import FlowControl, LogState, MessageSpec, Recovered
from queuebridge.backends.qstash.devserver.queue_commands import change_queue, delete_queue
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore

MakeWorld = Callable[..., Any]


def change(world: Any, name: str = "q", **settings: Any) -> None:
    change_queue(world.engine, world.account, name, **settings)


def delete(world: Any, name: str = "q") -> None:
    delete_queue(world.engine, world.account, name)


def test_paused_queue_accepts_and_delivers_nothing_until_it_is_resumed(world: Any) -> None:
    change(world, paused=True)
    first, second = world.publish(queue="q"), world.publish(queue="q")
    other = world.publish(queue="other")
    assert world.start() == [other]
    assert world.account.queues["q"].lag == 2

    change(world, paused=False)

    assert world.start() == [first]
    world.finish(first)
    assert world.start() == [second]


def test_message_that_is_in_line_when_its_queue_is_paused_waits(world: Any) -> None:
    message = world.publish(queue="q")

    change(world, paused=True)
    assert world.start() == []
    change(world, paused=False)

    assert world.start() == [message]


def test_retry_and_delay_that_end_while_the_queue_is_paused_wait_in_order(world: Any) -> None:
    change(world, parallelism=2)
    first = world.publish(queue="q", retry_delay="5000")
    second, third = world.publish(queue="q", delay=10), world.publish(queue="q")
    world.start()
    world.finish(first, 500)
    change(world, paused=True)
    assert world.advance(20) == []

    change(world, paused=False)

    assert world.start() == [first, second]
    world.finish(second)
    assert world.start() == [third]


def test_message_with_a_flow_control_key_does_not_block_the_key_while_its_queue_is_paused(world: Any) -> None:
    flow = FlowControl(key="k", parallelism=1)
    queued, free = world.publish(queue="q", flow=flow), world.publish(flow=flow)

    change(world, paused=True)
    assert world.start() == [free]
    change(world, paused=False)
    assert world.start() == []

    world.finish(free)
    assert world.start() == [queued]


def test_attempt_in_flight_may_end_while_its_queue_is_paused(world: Any) -> None:
    first, second = world.publish(queue="q"), world.publish(queue="q")
    world.start()
    change(world, paused=True)

    world.finish(first)

    assert world.states(first)[-1] is LogState.DELIVERED
    assert world.start() == []
    change(world, paused=False)
    assert world.start() == [second]


def test_message_set_aside_can_be_cancelled(world: Any) -> None:
    first, second = world.publish(queue="q"), world.publish(queue="q")
    change(world, paused=True)
    world.start()

    assert world.engine.cancel(world.account, first)
    change(world, paused=False)

    assert world.start() == [second]


def test_raised_parallelism_admits_at_once_and_lowered_waits_for_the_excess(world: Any) -> None:
    messages = [world.publish(queue="q") for _ in range(5)]
    assert world.start() == messages[:1]

    change(world, parallelism=3)
    assert world.start() == messages[1:3]

    change(world, parallelism=1)
    world.finish(messages[0])
    world.finish(messages[1])
    assert world.start() == []
    world.finish(messages[2])
    assert world.start() == messages[3:4]


@pytest.mark.parametrize("state", ["queued", "delayed", "retrying", "aside"])
def test_deleting_a_queue_drops_what_it_has_not_delivered(world: Any, state: str) -> None:
    first = world.publish(queue="q", delay=10 if state == "delayed" else 0, retry_delay="5000")
    second, other = world.publish(queue="q"), world.publish(queue="other")
    if state == "retrying":
        world.start()
        world.finish(first, 500)
    if state == "aside":
        change(world, paused=True)
        world.start()

    delete(world)

    assert first not in world.advance(60)
    assert world.states(first)[-2:] == [LogState.CANCEL_REQUESTED, LogState.CANCELED]
    assert world.states(second) == [LogState.CREATED, LogState.CANCEL_REQUESTED, LogState.CANCELED]
    assert list(world.account.queues) == ["other"]
    assert not other.finished


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("created_anew", [False, True])
def test_message_in_flight_ends_as_it_ends_when_its_queue_is_deleted(
    world: Any, status: int, created_anew: bool
) -> None:
    callback = MessageSpec(url="http://host/callback")
    message = world.publish(queue="q", callback=callback, failure_callback=callback)
    world.start()
    delete(world)
    later = world.publish(queue="q") if created_anew else world.publish()

    assert world.start() == [later]
    world.finish(message, status)

    assert world.states(message)[-1] is (LogState.DELIVERED if status == 200 else LogState.CANCELED)
    started = world.start()
    assert [one.spec.url for one in started] == (["http://host/callback"] if status == 200 else [])
    world.finish(later)
    for one in started:
        world.finish(one)
    assert world.publish(queue="q") in world.start()


def test_callback_outlives_its_queue(world: Any) -> None:
    message = world.publish(queue="q", callback=MessageSpec(url="http://host/callback", max_retries=0))
    world.start()
    world.finish(message)
    (callback,) = world.start()

    delete(world)
    world.finish(callback, 500)

    assert world.states(callback)[-1] is LogState.FAILED
    assert "q" not in world.account.queues


def test_message_that_is_being_stored_creates_the_deleted_queue_anew(world: Any) -> None:
    change(world)
    spec = MessageSpec(url="http://host/x", queue="q")
    _, message = world.engine.accept(world.account, spec, b"", not_before=0.0)

    delete(world)
    world.engine.release(message)

    assert world.start() == [message]
    assert world.account.queues["q"].lag == 1


def in_store(path: Path, action: Callable[[SqliteStore, Recovered], Awaitable[None]]) -> None:
    async def main() -> None:
        store = SqliteStore(path)
        recovered = await store.load()
        try:
            await action(store, recovered)
        finally:
            await store.close()

    asyncio.run(main())


def test_paused_queue_comes_back_paused_with_its_messages_in_order(make_world: MakeWorld, tmp_path: Path) -> None:
    ids = []

    async def before(store: SqliteStore, _recovered: Recovered) -> None:
        world = make_world(store)
        change(world, parallelism=2)
        ids.extend(world.publish(queue="q").id for _ in range(3))
        world.start()  # two are in flight
        change(world, paused=True)
        await store.commit()

    async def after(store: SqliteStore, recovered: Recovered) -> None:
        world = make_world(store)
        recover(world.engine, recovered)
        assert world.start() == []
        assert world.account.queues["q"].record.parallelism == 2
        change(world, paused=False)
        started = world.start()
        assert [message.id for message in started] == ids[:2]

    in_store(tmp_path / "db", before)
    in_store(tmp_path / "db", after)


def test_deleted_queue_stays_deleted_and_its_messages_dropped(make_world: MakeWorld, tmp_path: Path) -> None:
    async def before(store: SqliteStore, _recovered: Recovered) -> None:
        world = make_world(store)
        callback = MessageSpec(url="http://host/callback")
        first = world.publish(queue="q", callback=callback)
        world.publish(queue="q")
        world.start()
        world.finish(first)
        world.start()  # the callback, in flight
        in_flight = world.publish(queue="r")
        assert world.start() == [in_flight]
        delete(world, "q")
        delete(world, "r")
        await store.commit()

    async def after(store: SqliteStore, recovered: Recovered) -> None:
        world = make_world(store)
        recover(world.engine, recovered)
        assert world.account.queues == {}
        (callback,) = world.start()
        assert callback.spec.url == "http://host/callback"
        world.finish(callback)
        assert world.account.queues == {}

    in_store(tmp_path / "db", before)
    in_store(tmp_path / "db", after)
