from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.dispatcher import Dispatcher
from queuebridge.backends.qstash.devserver.messages import Message, MessageSpec, Outcome, Phase
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.schedules import Definition, Schedule
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.store import MemoryStore, Store, StoreError
from queuebridge.backends.qstash.devserver.views import schedule_view
from queuebridge.backends.qstash.protocol import PLANS

World = Any  # of conftest.py
MakeWorld = Callable[..., World]
START = 1_800_000_000.0  # a full hour
MINUTE = 60.0
HOUR = 3600.0
URL = "http://host/x"


def put(
    world: World, cron: str = "* * * * *", schedule_id: str = "s", *, delay: int = 0, url: str = URL, **spec: Any
) -> Schedule:
    definition = Definition(
        cron=cron, destination=url, spec=MessageSpec(url=url, **spec), body=b"body", delay_seconds=delay
    )
    return world.engine.schedules.put(world.account, schedule_id, definition)


def release(world: World) -> list[Message]:
    """Do what the driver does after the commit; return what the triggers made."""
    staged = world.engine.schedules.take_staged()
    for message in staged:
        world.engine.release(message)
    return staged


def test_trigger_makes_a_message_of_the_schedule_at_each_time(world: World) -> None:
    schedule = put(world, labels=("l",))
    assert world.clock.now == START
    assert schedule.next_due == START + MINUTE
    assert world.advance(MINUTE - 1) == []
    assert release(world) == []

    assert world.advance(1) == []
    (made,) = release(world)

    assert (made.spec.url, made.spec.schedule_id, made.spec.labels, made.body) == (URL, "s", ("l",), b"body")
    assert world.start() == [made]
    assert (schedule.last_ms, schedule.next_due) == (int((START + MINUTE) * 1000), START + 2 * MINUTE)


def test_message_waits_for_its_release(world: World) -> None:
    put(world)

    assert world.advance(MINUTE) == []
    assert world.start() == []

    (made,) = release(world)
    assert made.phase is Phase.READY


def test_moving_the_clock_by_an_hour_fires_each_minute_between(world: World) -> None:
    put(world)

    world.advance(HOUR)

    made = release(world)
    assert len(made) == 60
    assert world.engine.next_due() == START + HOUR + MINUTE


def test_delay_holds_the_messages_and_not_the_schedule(world: World) -> None:
    schedule = put(world, delay=90)
    world.advance(MINUTE + 1)
    (made,) = release(world)

    assert made.due == START + MINUTE + 90
    assert schedule.next_due == START + 2 * MINUTE
    assert world.start() == []
    assert made in world.advance(89)


def test_paused_schedule_makes_nothing_and_nothing_is_made_up_for(world: World) -> None:
    schedule = put(world)
    world.engine.schedules.set_paused(schedule, paused=True)
    world.engine.schedules.set_paused(schedule, paused=True)
    world.advance(10 * MINUTE)
    assert release(world) == []
    assert schedule_view(schedule)["isPaused"] is True
    assert "nextScheduleTime" not in schedule_view(schedule)

    world.engine.schedules.set_paused(schedule, paused=False)
    world.start()
    assert release(world) == []
    assert schedule.next_due == START + 11 * MINUTE

    world.advance(MINUTE)
    assert len(release(world)) == 1


def test_resuming_what_is_not_paused_changes_nothing(world: World) -> None:
    schedule = put(world)
    world.advance(30)

    world.engine.schedules.set_paused(schedule, paused=False)
    world.advance(30)

    assert len(release(world)) == 1


def test_overwriting_replaces_the_definition_and_keeps_creation_and_pause(world: World) -> None:
    first = put(world, labels=("old",))
    world.engine.schedules.set_paused(first, paused=True)
    world.advance(10)

    second = put(world, "@hourly", url="http://host/y")

    assert second is first
    assert (second.created_ms, second.paused, second.next_due) == (int(START * 1000), True, None)
    assert (second.definition.cron, second.definition.spec) == ("@hourly", MessageSpec(url="http://host/y"))


def test_overwritten_schedule_fires_at_its_new_times_only(world: World) -> None:
    put(world)
    put(world, "30 * * * *")

    world.advance(HOUR)

    assert [message.not_before_ms for message in release(world)] == [int((START + HOUR) * 1000)]
    assert len(world.account.messages) == 1


def test_deleting_stops_the_schedule_and_not_its_messages(world: World) -> None:
    schedule = put(world)
    world.advance(MINUTE)
    world.engine.schedules.remove(world.account, schedule)

    (made,) = release(world)
    assert world.start() == [made]
    world.finish(made)

    assert world.account.schedules == {}
    world.advance(HOUR)
    assert release(world) == []


@pytest.mark.parametrize(("status", "state"), [(200, "SUCCESS"), (500, "FAIL")])
def test_states_are_those_of_the_last_run(world: World, status: int, state: str) -> None:
    schedule = put(world, max_retries=0)
    world.advance(MINUTE)
    (first,) = release(world)
    assert schedule_view(schedule)["lastScheduleStates"] == {first.id: "IN_PROGRESS"}
    world.start()
    world.finish(first, status)
    assert schedule.states == {first.id: state}

    world.advance(MINUTE)
    (second,) = release(world)

    assert schedule.states == {second.id: "IN_PROGRESS"}


def test_cancelled_message_counts_as_failed(world: World) -> None:
    schedule = put(world)
    world.advance(MINUTE)
    (made,) = release(world)

    world.engine.cancel(world.account, made)

    assert schedule.states == {made.id: "FAIL"}


def test_late_end_of_an_earlier_run_leaves_the_states_alone(world: World) -> None:
    schedule = put(world)
    world.advance(MINUTE)
    (first,) = release(world)
    world.start()
    world.advance(MINUTE)
    (second,) = release(world)

    world.finish(first)

    assert schedule.states == {second.id: "IN_PROGRESS"}


def test_queue_gets_the_messages_in_order_and_keeps_its_parallelism(world: World) -> None:
    put(world, queue="q")
    queue = world.engine.queue_for(world.account, "q")
    queue.record = replace(queue.record, parallelism=2)

    world.advance(3 * MINUTE)
    made = release(world)

    assert queue.record.parallelism == 2
    assert world.start() == made[:2]


def test_trigger_beyond_the_number_of_queues_is_an_error_of_the_schedule(make_world: MakeWorld) -> None:
    world = make_world(plan=replace(PLANS["free"], max_queues=0))
    schedule = put(world, queue="q")

    world.advance(MINUTE)

    assert release(world) == []
    assert schedule_view(schedule)["error"] == "quota maxQueues exceeded, current limit: 0"
    assert schedule.next_due == START + 2 * MINUTE


def test_unknown_destination_at_a_trigger_is_an_error_of_the_schedule(world: World) -> None:
    schedule = put(world, url="group-that-was-deleted")

    world.advance(MINUTE)

    assert release(world) == []
    assert "not found" in schedule_view(schedule)["error"]
    put(world)
    assert schedule.error is None


def test_callbacks_of_scheduled_messages_belong_to_no_schedule(world: World) -> None:
    schedule = put(world, callback=MessageSpec(url="http://host/callback"))
    world.advance(MINUTE)
    (made,) = release(world)
    world.start()
    world.finish(made)

    (callback,) = world.start()

    assert callback.spec.schedule_id is None
    assert schedule.states == {made.id: "SUCCESS"}


def test_schedules_that_come_and_go_leave_nothing_behind(world: World) -> None:
    world.publish(delay=30 * MINUTE)
    for _ in range(3000):
        world.engine.schedules.remove(world.account, put(world, "@yearly"))

    assert len(world.engine._timetable) < 1100
    world.advance(HOUR)
    assert world.engine.next_due() is None
    assert len(world.engine._timetable) == 0


# Restarts. Each step of a trigger is one at which the server may be killed.


async def reopened(make_world: MakeWorld, path: Path, now: float) -> tuple[World, SqliteStore]:
    """Return a world at a time with what a database holds."""
    store = SqliteStore(path, durable=False)
    recovered = await store.load()
    world = make_world(store)
    world.clock.now = now
    recover(world.engine, recovered)
    return world, store


def killed(path: Path, name: str) -> Path:
    """Return a copy of a database as a kill at this moment would leave it."""
    copy = path.with_name(name)
    for suffix in ("", "-wal"):
        source = Path(f"{path}{suffix}")
        if source.exists():
            Path(f"{copy}{suffix}").write_bytes(source.read_bytes())
    return copy


async def messages_of_trigger(make_world: MakeWorld, path: Path, now: float) -> tuple[list[str], float | None]:
    """Restart from a database; return the ids of all messages then on their way, and the next time."""
    world, store = await reopened(make_world, path, now)
    started = world.start()
    made = release(world)
    started += world.start()
    assert set(made) <= set(started)
    await store.close()
    return [message.id for message in started], world.account.schedules["s"].next_due


@pytest.mark.parametrize("away", [1.0, 5 * HOUR])
def test_trigger_makes_one_message_wherever_the_server_is_killed(
    make_world: MakeWorld, tmp_path: Path, away: float
) -> None:
    async def main() -> None:
        world, store = await reopened(make_world, tmp_path / "db", START)
        put(world, "@hourly")
        await store.commit()
        world.advance(HOUR)
        before_commit = killed(tmp_path / "db", "before")
        await store.commit()
        after_commit = killed(tmp_path / "db", "after")
        (made,) = release(world)
        assert world.start() == [made]
        in_flight = killed(tmp_path / "db", "flight")
        world.finish(made)
        await store.commit()
        delivered = killed(tmp_path / "db", "delivered")
        await store.close()

        now = START + HOUR + away
        following = START + HOUR + (away // HOUR + 1) * HOUR
        ids, due = await messages_of_trigger(make_world, before_commit, now)
        assert (len(ids), due) == (1, following)
        for copy in (after_commit, in_flight):
            ids, due = await messages_of_trigger(make_world, copy, now)
            # The message itself, and one for all the times that were missed meanwhile.
            assert ids[0] == made.id
            assert (len(ids), due) == (1 + (away >= HOUR), following)
        ids, due = await messages_of_trigger(make_world, delivered, now)
        assert (len(ids), due) == (int(away >= HOUR), following)

    asyncio.run(main())


def test_schedule_is_the_same_after_a_restart(make_world: MakeWorld, tmp_path: Path) -> None:
    async def main() -> None:
        world, store = await reopened(make_world, tmp_path / "db", START)
        schedule = put(world, "CRON_TZ=Europe/Berlin 0 * * * *", "b", delay=5, queue="q", labels=("l",))
        paused = put(world, "@daily", "a")
        world.engine.schedules.set_paused(paused, paused=True)
        world.advance(HOUR)
        release(world)
        world.engine.schedules.remove(world.account, put(world, "@daily", "gone"))
        await store.commit()
        expected = [schedule_view(schedule), schedule_view(paused)]
        await store.close()

        world, store = await reopened(make_world, tmp_path / "db", START + HOUR + 1)
        found = world.account.schedules

        assert [schedule_view(found["b"]), schedule_view(found["a"])] == expected
        assert set(found) == {"a", "b"}
        await store.close()

    asyncio.run(main())


def test_clock_that_was_ahead_before_the_restart_does_not_silence_the_schedule(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    async def main() -> None:
        world, store = await reopened(make_world, tmp_path / "db", START + 365 * 24 * HOUR)
        put(world)
        await store.close()

        world, store = await reopened(make_world, tmp_path / "db", START)

        assert world.account.schedules["s"].next_due == START + MINUTE
        await store.close()

    asyncio.run(main())


def test_schedule_whose_time_zone_is_gone_rests_with_an_error(make_world: MakeWorld, tmp_path: Path) -> None:
    async def main() -> None:
        world, store = await reopened(make_world, tmp_path / "db", START)
        schedule = put(world, "CRON_TZ=Atlantis/Capital 0 * * * *")
        assert schedule.next_due is None
        await store.close()

        world, store = await reopened(make_world, tmp_path / "db", START)

        assert "unknown time zone" in schedule_view(world.account.schedules["s"])["error"]
        await store.close()

    asyncio.run(main())


class FailingStore(MemoryStore):
    """A store whose first commits fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def commit(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("disk full")


@pytest.mark.parametrize("store", [MemoryStore(), FailingStore(2)])
def test_driver_sends_what_a_trigger_made_once_it_is_durable(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr("queuebridge.backends.qstash.devserver.dispatcher._COMMIT_AGAIN_SECONDS", 0.001)
    world = make_world(store)
    put(world)
    sent: list[Message] = []

    async def main() -> None:
        done = asyncio.Event()

        async def attempt(message: Message, _key: str) -> Outcome:
            assert not isinstance(store, FailingStore) or store.failures == 0
            sent.append(message)
            done.set()
            return Outcome(status=200)

        driver = Dispatcher(world.engine, attempt)
        driver.start()
        world.clock.now += MINUTE
        driver.wake()
        await asyncio.wait_for(done.wait(), 10)
        await driver.stop(grace_seconds=1)

    asyncio.run(main())

    assert [message.spec.schedule_id for message in sent] == ["s"]
    assert list(world.account.schedules["s"].states.values()) == ["SUCCESS"]
