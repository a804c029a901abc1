from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import FlowControl, MessageSpec

MakeWorld = Callable[..., Any]


def test_queue_sends_the_next_only_after_the_one_before_is_delivered(world: Any) -> None:
    first, second = world.publish(queue="q"), world.publish(queue="q")
    assert world.start() == [first]
    assert world.start() == []

    world.finish(first)

    assert world.start() == [second]


def test_retrying_message_holds_up_its_queue(world: Any) -> None:
    first, second = world.publish(queue="q", max_retries=1, retry_delay="5000"), world.publish(queue="q")
    world.start()
    world.finish(first, 500)
    assert world.start() == []
    assert world.advance(5) == [first]

    world.finish(first, 500)

    assert world.start() == [second]


def test_delayed_message_holds_up_its_queue(world: Any) -> None:
    first, second = world.publish(queue="q", delay=30), world.publish(queue="q")
    assert world.start() == []
    assert world.advance(30) == [first]
    world.finish(first)
    assert world.start() == [second]


def test_callback_holds_up_the_queue_until_it_is_finished(world: Any) -> None:
    first = world.publish(queue="q", callback=MessageSpec(url="http://host/callback", max_retries=0))
    second = world.publish(queue="q")
    world.start()
    world.finish(first)

    (callback,) = world.start()
    assert callback.spec.url == "http://host/callback"
    assert world.start() == []
    world.finish(callback, 500)

    assert world.start() == [second]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_cancelled_message_does_not_block_its_queue(world: Any, cancelled: int) -> None:
    messages = [world.publish(queue="q", delay=10) for _ in range(3)]

    world.engine.cancel(world.account, messages.pop(cancelled))

    assert world.advance(10) == [messages[0]]
    world.finish(messages[0])
    assert world.start() == [messages[1]]


def test_queues_do_not_wait_for_each_other(world: Any) -> None:
    first, second = world.publish(queue="a"), world.publish(queue="b")

    assert world.start() == [first, second]


def test_lag_counts_what_is_not_delivered(world: Any) -> None:
    messages = [world.publish(queue="q") for _ in range(3)]
    world.start()
    assert world.account.queues["q"].lag == 3

    world.finish(messages[0])
    world.engine.cancel(world.account, messages[2])

    assert world.account.queues["q"].lag == 1


def test_flow_key_bounds_parallel_calls(world: Any) -> None:
    flow = FlowControl(key="k", parallelism=2)
    first, second, third = (world.publish(flow=flow) for _ in range(3))
    assert world.start() == [first, second]

    world.finish(second)

    assert world.start() == [third]


def test_flow_key_bounds_calls_per_period(world: Any) -> None:
    flow = FlowControl(key="k", rate=2, period_seconds=10)
    messages = [world.publish(flow=flow) for _ in range(5)]
    assert world.start() == messages[:2]
    for message in messages[:2]:
        world.finish(message)
    assert world.advance(9.9) == []
    assert world.engine.next_due() == pytest.approx(world.clock.now + 0.1)

    assert world.advance(0.2) == messages[2:4]


def test_message_waiting_for_a_retry_is_not_active(world: Any) -> None:
    flow = FlowControl(key="k", parallelism=1)
    first, second = world.publish(flow=flow, retry_delay="5000"), world.publish(flow=flow)
    assert world.start() == [first]

    world.finish(first, 500)

    assert world.start() == [second]


def test_retries_count_against_the_rate(world: Any) -> None:
    flow = FlowControl(key="k", rate=1, period_seconds=10)
    message = world.publish(flow=flow, retry_delay="1000")
    world.start()
    world.finish(message, 500)

    assert world.advance(1) == []
    assert world.advance(9) == [message]


def test_keys_do_not_hold_up_each_other_or_messages_without_one(world: Any) -> None:
    flow = FlowControl(key="k", parallelism=1)
    first, waiting = world.publish(flow=flow), world.publish(flow=flow)
    other, plain = world.publish(flow=FlowControl(key="other", parallelism=1)), world.publish()

    assert world.start() == [first, other, plain]
    world.finish(first)
    assert world.start() == [waiting]


def test_waiting_messages_of_a_key_start_in_order_of_arrival(world: Any) -> None:
    flow = FlowControl(key="k", parallelism=1)
    messages = [world.publish(flow=flow) for _ in range(4)]
    world.engine.cancel(world.account, messages[1])

    order = []
    while started := world.start():
        order += started
        world.finish(started[0])

    assert order == [messages[0], messages[2], messages[3]]


def test_newer_setting_replaces_the_key_s_limits(world: Any) -> None:
    narrow = FlowControl(key="k", parallelism=1)
    messages = [world.publish(flow=narrow) for _ in range(3)]
    assert world.start() == messages[:1]

    last = world.publish(flow=FlowControl(key="k", parallelism=4))

    assert world.start() == [*messages[1:], last]


def test_idle_key_is_forgotten_after_a_while_and_a_busy_one_is_not(world: Any) -> None:
    idle = world.publish(flow=FlowControl(key="idle", parallelism=1))
    world.publish(flow=FlowControl(key="busy", parallelism=1))
    world.start()
    world.finish(idle)

    world.clock.now += 599
    sweep(world.engine)
    assert set(world.account.flows) == {"busy", "idle"}

    world.clock.now += 1
    sweep(world.engine)
    assert set(world.account.flows) == {"busy"}


def test_too_many_idle_keys_are_forgotten_at_once(world: Any) -> None:
    for number in range(10_020):
        message = world.publish(flow=FlowControl(key=str(number), parallelism=1))
        world.start()
        world.finish(message)
    world.clock.now += 1

    while sweep(world.engine):
        pass

    assert len(world.account.flows) <= 10_000
    assert "10019" in world.account.flows


def test_shorter_period_wakes_the_key_earlier(world: Any) -> None:
    long, short = (FlowControl(key="k", rate=1, period_seconds=seconds) for seconds in (3600, 2))
    first, second = world.publish(flow=long), world.publish(flow=long)
    assert world.start() == [first]
    third = world.publish(flow=short)

    assert world.start() == []
    assert world.advance(2) == [second]
    assert world.advance(2) == [third]


def test_rate_is_kept_when_the_account_is_saturated(make_world: MakeWorld) -> None:
    world = make_world(max_parallelism=1)
    blocker = world.publish()
    flow = FlowControl(key="k", rate=1, period_seconds=10)
    messages = [world.publish(flow=flow) for _ in range(2)]
    assert world.start() == [blocker]

    assert world.advance(100) == []
    world.finish(blocker)

    assert world.start() == messages[:1]
    world.finish(messages[0])
    assert world.start() == []
