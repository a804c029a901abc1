"""What happens where features of the server meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import (
    FlowControl,
    LogState,
    Message,
    MessageSpec,
    Phase,
    Redaction,
)
from queuebridge.backends.qstash.devserver.queue_commands import change_queue, delete_queue
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.schedules import Definition
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.views import flow_view, message_view
from queuebridge.backends.qstash.devserver.workflow import accepting
from queuebridge.backends.qstash.devserver.workflow.part import WorkflowPart
from queuebridge.backends.qstash.protocol import DEDUPLICATION_WINDOW_SECONDS

MakeWorld = Callable[..., Any]
FLOW = FlowControl(key="k", parallelism=1)


def pause(world: Any, *, paused: bool = True) -> None:
    change_queue(world.engine, world.account, "q", paused=paused)


def waiting_for_key(world: Any) -> int:
    size = flow_view(world.account.flows["k"], world.clock())["waitListSize"]
    assert isinstance(size, int)
    return size


# Paused queues and flow-control keys


@pytest.mark.parametrize("end", ["cancel", "delete the queue"])
def test_message_of_a_paused_queue_and_of_a_forgotten_key_can_be_cancelled(world: Any, end: str) -> None:
    message = world.publish(queue="q", flow=FLOW, delay=10)
    pause(world)
    assert world.advance(20) == []
    world.clock.now += 1000
    sweep(world.engine)
    assert "k" not in world.account.flows

    if end == "cancel":
        assert world.engine.cancel(world.account, message)
    else:
        delete_queue(world.engine, world.account, "q")

    assert message.phase is Phase.CANCELED


def test_cancelling_what_a_paused_queue_holds_back_leaves_the_count_of_the_key_right(world: Any) -> None:
    message = world.publish(queue="q", flow=FLOW, delay=10)
    pause(world)
    world.advance(20)

    world.engine.cancel(world.account, message)

    assert waiting_for_key(world) == 0
    free = world.publish(flow=FLOW)
    assert world.start() == [free]
    world.publish(flow=FLOW)
    world.start()
    assert waiting_for_key(world) == 1


@pytest.mark.parametrize("paused", [True, False])
def test_many_cancelled_messages_of_a_queue_that_does_not_move_are_let_go(world: Any, paused: bool) -> None:
    first = world.publish(queue="q")
    assert world.start() == [first]
    pause(world, paused=paused)
    messages = [world.publish(queue="q") for _ in range(2500)]
    for message in messages[1:]:
        world.engine.cancel(world.account, message)

    queue = world.account.queues["q"]
    assert queue._waiting.kept < 1500
    assert queue.lag == 2
    pause(world, paused=False)
    world.finish(first)
    assert world.start() == messages[:1]
    assert queue.lag == 1


# Schedules


def schedule(world: Any, destination: str = "http://host/x", **spec: Any) -> Any:
    definition = Definition(
        cron="* * * * *", destination=destination, spec=MessageSpec(url=destination, **spec), body=b"tick"
    )
    return world.engine.schedules.put(world.account, "s", definition)


def trigger(world: Any, seconds: float) -> list[Any]:
    """Advance the time, and let go what schedules made, as the driver does."""
    started = world.advance(seconds)
    for message in world.engine.schedules.take_staged():
        world.engine.release(message)
    return [*started, *world.start()]


def test_schedule_into_a_paused_queue_keeps_its_order(world: Any) -> None:
    made = schedule(world, queue="q")
    pause(world)
    for _ in range(3):
        assert trigger(world, 60) == []
    assert world.account.queues["q"].lag == 3
    assert list(made.states.values()) == ["IN_PROGRESS"]

    pause(world, paused=False)

    seen = []
    while started := world.start():
        (message,) = started
        seen.append(message.seq)
        world.finish(message)
    assert len(seen) == 3
    assert seen == sorted(seen)
    assert list(made.states.values()) == ["SUCCESS"]


def test_schedule_makes_its_deleted_queue_anew_and_the_deletion_ends_what_waits(world: Any) -> None:
    made = schedule(world, queue="q")
    pause(world)
    trigger(world, 60)
    delete_queue(world.engine, world.account, "q")
    assert list(made.states.values()) == ["FAIL"]

    (message,) = trigger(world, 60)

    assert (message.spec.queue, world.account.queues["q"].record.paused) == ("q", False)


def test_pinned_limit_holds_for_what_schedules_make(world: Any) -> None:
    world.account.configure_flow(FlowControl(key="k", parallelism=1), world.clock())
    world.account.flows["k"].pinned_parallelism = True
    schedule(world, flow=FlowControl(key="k", parallelism=5))

    (first,) = trigger(world, 60)
    assert trigger(world, 60) == []
    assert waiting_for_key(world) == 1

    world.finish(first)
    assert len(world.start()) == 1


# Workflow runs

RUN = WorkflowPart(run_id="wfr_1", url="http://app/")


def submit(world: Any, body: bytes, part: WorkflowPart = RUN, **spec: Any) -> Message:
    """Stage a message of a run."""
    wanted = MessageSpec(url="http://app/", workflow=part, **spec)
    _, message = accepting.accept(world.engine, world.account, part, wanted, body, not_before=0)
    assert message is not None
    return message


def test_run_whose_last_message_could_not_be_stored_is_forgotten_like_others(world: Any) -> None:
    first = submit(world, b"", replace(RUN, init=True))
    world.engine.release(first)
    assert world.start() == [first]
    refused = submit(world, b'{"stepId": 1}')
    world.finish(first)
    world.engine.discard(refused)

    world.clock.now += 8 * 86_400
    sweep(world.engine)

    assert list(world.account.runs) == []


@pytest.mark.parametrize("held_by", ["queue", "key"])
def test_end_of_a_run_takes_along_what_a_pause_holds_back(world: Any, held_by: str) -> None:
    submit(world, b"", replace(RUN, init=True))
    due, waiting = (submit(world, b'{"stepId": %d}' % number, queue="q", flow=FLOW) for number in (1, 2))
    world.engine.release(due)
    world.engine.release(waiting)
    if held_by == "queue":
        pause(world)
    else:
        world.account.flows["k"].paused = True
    assert world.start() == []
    assert (due.phase, waiting.phase) == (Phase.ASIDE if held_by == "queue" else Phase.READY, Phase.QUEUED)

    world.engine.end_run(world.account, world.account.runs.get("wfr_1"))

    assert {due.phase, waiting.phase} == {Phase.CANCELED}
    assert world.account.queues["q"].lag == 0
    assert waiting_for_key(world) == 0
    pause(world, paused=False)
    assert world.start() == []


# Restarts


def test_retry_of_a_dead_letter_makes_its_deleted_queue_anew_in_the_same_transaction(world: Any) -> None:
    message = world.publish(queue="q", max_retries=0)
    world.start()
    world.finish(message, 500)
    delete_queue(world.engine, world.account, "q")
    (letter,) = world.account.dead_letters.values()

    again = world.engine.retry_dead_letter(world.account, letter, message.spec, not_before=0)

    assert "q" in world.account.queues
    world.engine.release(again)
    assert world.start() == [again]


def restarted(database: Path, make_world: MakeWorld, act: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        store = SqliteStore(database)
        world = make_world(store)
        recover(world.engine, await store.load())
        result = act(world)
        await store.commit()
        await store.close()
        return result

    return asyncio.run(run())


def test_memory_of_a_publish_in_a_moved_time_does_not_outlive_the_window(
    tmp_path: Path, make_world: MakeWorld
) -> None:
    def in_a_year(world: Any) -> None:
        world.clock.now += 365 * 86_400
        world.publish(dedup_key="id:1")

    def now(world: Any) -> int:
        before = len(world.account.deduplication)
        world.clock.now += DEDUPLICATION_WINDOW_SECONDS + 1
        sweep(world.engine)
        assert before == 1
        return len(world.account.deduplication)

    restarted(tmp_path / "db", make_world, in_a_year)
    assert restarted(tmp_path / "db", make_world, now) == 0


def test_cancellation_of_a_message_that_is_gone_does_not_befall_the_next_of_its_number(
    tmp_path: Path, make_world: MakeWorld
) -> None:
    def cancel_when_it_does_not_matter_any_more(world: Any) -> int:
        message = world.publish()
        assert world.start() == [message]
        world.engine.store.remove_message(message)  # as the end of its run does
        world.engine.cancel(world.account, message)
        return int(message.seq)

    def publish(world: Any) -> int:
        return int(world.publish().seq)

    def states(world: Any) -> list[Phase]:
        return [message.phase for message in world.account.messages.values()]

    first = restarted(tmp_path / "db", make_world, cancel_when_it_does_not_matter_any_more)
    assert restarted(tmp_path / "db", make_world, publish) == first
    assert restarted(tmp_path / "db", make_world, states) == [Phase.READY]


# What is shown and remembered


def test_what_could_not_be_stored_is_not_in_the_log(world: Any) -> None:
    before = world.publish()
    world.start()
    _, refused = world.engine.accept(world.account, MessageSpec(url="http://host/x"), b"b", not_before=0)
    world.finish(before)
    world.engine.discard(refused)

    assert world.states(refused) == []
    assert world.states(before) == [LogState.CREATED, LogState.ACTIVE, LogState.DELIVERED]


def test_headers_of_callbacks_are_redacted_with_those_of_the_message(world: Any) -> None:
    redaction = Redaction(headers=frozenset({"x-secret"}))
    secret = (("X-Secret", "s3cret"), ("X-Open", "yes"))
    callback = MessageSpec(url="http://host/cb", headers=secret, redaction=redaction)
    message = world.publish(headers=secret, redaction=redaction, callback=callback, failure_callback=callback)

    shown = message_view(message)

    assert "s3cret" not in repr(shown)
    assert shown["callbackHeader"]["X-Open"] == shown["failureCallbackHeader"]["X-Open"] == ["yes"]


def test_rate_window_opens_with_the_first_call_and_not_with_a_delayed_publish(world: Any) -> None:
    limit = FlowControl(key="k", rate=1, period_seconds=10)
    first, second = world.publish(flow=limit, delay=9), world.publish(flow=limit, delay=9)
    assert world.advance(9) == [first]
    assert world.advance(9) == []

    assert world.advance(1) == [second]
