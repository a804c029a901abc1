"""Advancing the time: every event in its turn, at its time, before the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.admin.travel import LATEST, Traveller
from queuebridge.backends.qstash.devserver.dispatcher import Dispatcher
from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.messages import FlowControl, Message, MessageSpec, Outcome

Script = Callable[["Journey"], Awaitable[None]]


class Journey:
    """A world with a driver whose attempts note when they took place, and answer as told."""

    def __init__(self, world: Any, **settings: Any) -> None:
        self.world = world
        self.engine = world.engine
        self.start = world.clock.now
        self.sent: list[tuple[str, float]] = []
        self.answers: dict[str, list[int]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.republish: set[str] = set()
        self.arrived = asyncio.Event()
        self.dispatcher = Dispatcher(self.engine, self._attempt)
        self.traveller = Traveller(self.engine, self.dispatcher, **settings)

    @property
    def now(self) -> float:
        return float(self.engine.clock() - self.start)

    async def advance(self, seconds: float, timeout: float = 20) -> int:
        return await self.traveller.travel(self.engine.clock() + seconds, timeout_seconds=timeout)

    async def _attempt(self, message: Message, _key: str) -> Outcome:
        url = message.spec.url
        self.sent.append((url, self.now))
        self.arrived.set()
        if url in self.gates:
            await self.gates[url].wait()
        await asyncio.sleep(0)
        if url in self.republish:
            self.world.publish(url)
        answers = self.answers.get(url)
        return Outcome(status=answers.pop(0) if answers else 200)


def travel(world: Any, script: Script, **settings: Any) -> Journey:
    """Run a script with a driver; return what happened."""
    journey = Journey(world, **settings)

    async def main() -> None:
        journey.dispatcher.start()
        try:
            await script(journey)
        finally:
            await journey.dispatcher.stop(grace_seconds=0)

    asyncio.run(main())
    return journey


def test_everything_due_on_the_way_takes_place_at_its_time(world: Any) -> None:
    world.publish("late", delay=3 * 3600)
    world.publish("retried", delay=60, max_retries=2, retry_delay="600000")
    world.publish("too late", delay=24 * 3600)

    async def script(journey: Journey) -> None:
        journey.answers = {"retried": [500, 500]}
        assert await journey.advance(6 * 3600) == 4
        assert journey.now == 6 * 3600

    journey = travel(world, script)

    assert journey.sent == [("retried", 60), ("retried", 660), ("retried", 1260), ("late", 10_800)]


def test_what_a_delivery_starts_takes_place_before_the_time_goes_on(world: Any) -> None:
    called_back = MessageSpec(url="callback", max_retries=1, retry_delay="30000")
    world.publish("first", delay=60, callback=called_back)
    world.publish("second", delay=61)

    async def script(journey: Journey) -> None:
        journey.answers = {"callback": [503]}
        await journey.advance(3600)

    assert travel(world, script).sent == [("first", 60), ("callback", 60), ("second", 61), ("callback", 90)]


def test_queue_and_rate_limit_keep_their_order_and_their_times(world: Any) -> None:
    for number in range(3):
        world.publish(f"queued {number}", delay=10, queue="q")
        world.publish(f"limited {number}", flow=FlowControl(key="k", rate=1, period_seconds=100))

    async def script(journey: Journey) -> None:
        await journey.advance(300)

    sent = travel(world, script).sent

    assert [entry for entry in sent if entry[0].startswith("queued")] == [(f"queued {n}", 10) for n in range(3)]
    assert [entry for entry in sent if entry[0].startswith("limited")] == [(f"limited {n}", 100 * n) for n in range(3)]


@pytest.mark.parametrize("stopped", [True, False])
def test_time_stands_or_runs_afterwards_as_before(world: Any, stopped: bool) -> None:
    async def script(journey: Journey) -> None:
        if stopped:
            journey.traveller.stop()
        world.clock.now += 5  # the machine's time
        before = journey.now
        await journey.advance(100)
        assert journey.now == before + 100
        world.clock.now += 7
        assert journey.now == before + (100 if stopped else 107)
        journey.traveller.resume()
        world.clock.now += 1
        assert journey.now == before + (101 if stopped else 108)

    travel(world, script)


def test_time_never_goes_backwards_or_too_far(world: Any) -> None:
    async def script(journey: Journey) -> None:
        with pytest.raises(Refusal, match="400: the time cannot go backwards"):
            await journey.advance(-1)
        for moment in (LATEST + 1, float("nan"), float("inf")):
            with pytest.raises(Refusal, match="400: the time must stay before"):
                await journey.traveller.travel(moment, timeout_seconds=1)
        assert journey.now == 0

    travel(world, script)


def test_second_journey_is_refused_and_the_first_can_be_cancelled(world: Any) -> None:
    world.publish("held", delay=60)

    async def script(journey: Journey) -> None:
        journey.gates["held"] = asyncio.Event()
        first = asyncio.create_task(journey.advance(3600))
        await journey.arrived.wait()
        assert journey.traveller.travelling
        for refused in (journey.traveller.stop, journey.traveller.resume):
            with pytest.raises(Refusal, match="409: the time is being advanced"):
                refused()
        with pytest.raises(Refusal, match="409: the time is being advanced"):
            await journey.advance(1)

        assert journey.traveller.cancel()

        with pytest.raises(Refusal, match=r"409: .*cancelled; deliveries in flight: 1"):
            await first
        assert not journey.traveller.travelling
        assert not journey.traveller.cancel()
        assert (journey.now, journey.engine.clock.stopped) == (60, False)
        journey.gates["held"].set()
        await journey.advance(3600)

    assert travel(world, script).sent == [("held", 60)]


def test_journey_is_over_after_its_timeout_where_it_got(world: Any) -> None:
    world.publish("held", delay=60)

    async def script(journey: Journey) -> None:
        journey.gates["held"] = asyncio.Event()
        with pytest.raises(Refusal, match=r"409: .*not done within 0\.05 s; deliveries in flight: 1"):
            await journey.advance(3600, timeout=0.05)
        assert journey.now == 60
        with pytest.raises(Refusal, match=r"409: not idle within 0\.05 s: 1 deliveries in flight"):
            await journey.traveller.wait_until_idle(timeout_seconds=0.05)
        journey.gates["held"].set()
        await journey.traveller.wait_until_idle(timeout_seconds=20)
        assert journey.dispatcher.in_flight == 0

    travel(world, script)


def test_receiver_that_publishes_without_end_ends_with_the_timeout(world: Any) -> None:
    world.publish("endless")

    async def script(journey: Journey) -> None:
        journey.republish = {"endless"}
        with pytest.raises(Refusal, match=r"409: .*not done within"):
            await journey.advance(60, timeout=0.1)
        journey.republish = set()
        await journey.advance(60)

    travel(world, script)


def test_number_of_steps_is_bounded(world: Any) -> None:
    for second in range(1, 5):
        world.publish(str(second), delay=second)

    async def script(journey: Journey) -> None:
        with pytest.raises(Refusal, match=r"409: .*something was due at 3 moments"):
            await journey.advance(10)
        assert journey.now == 3

    assert len(travel(world, script, max_steps=3).sent) == 3


def test_alarms_ring_in_their_turn(world: Any) -> None:
    rang: list[float] = []

    def ring(now: float) -> None:
        rang.append(now - world.clock.now)
        if len(rang) < 3:
            world.engine.ring_at(now + 60, ring)
        world.publish(f"triggered {len(rang)}")

    world.engine.ring_at(world.clock.now + 60, ring)

    async def script(journey: Journey) -> None:
        await journey.advance(3600)

    assert travel(world, script).sent == [("triggered 1", 60), ("triggered 2", 120), ("triggered 3", 180)]
    assert rang == [60, 120, 180]


def test_idle_does_not_wait_for_what_is_due_later(world: Any) -> None:
    world.publish("now")
    world.publish("later", delay=60)

    async def script(journey: Journey) -> None:
        await journey.traveller.wait_until_idle(timeout_seconds=20)
        assert journey.sent == [("now", 0)]

    travel(world, script)
