from __future__ import annotations

from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.clock import Clock


class Source:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_clock_follows_its_source_until_it_is_stopped() -> None:
    source = Source()
    clock = Clock(source)
    source.now += 5
    assert (clock(), clock.stopped) == (1005.0, False)

    clock.stop()
    source.now += 5

    assert (clock(), clock.stopped) == (1005.0, True)


def test_moved_clock_goes_on_from_there() -> None:
    source = Source()
    clock = Clock(source)

    clock.move_to(5000.0)
    source.now += 2

    assert clock() == 5002.0


def test_stopped_clock_that_is_moved_stands_there_until_it_is_resumed() -> None:
    source = Source()
    clock = Clock(source)
    clock.stop()
    clock.move_to(5000.0)
    source.now += 2
    assert clock() == 5000.0

    clock.resume()
    source.now += 3

    assert clock() == 5003.0
    assert not clock.stopped


def test_alarm_rings_once_at_its_time(world: Any) -> None:
    rung: list[float] = []
    world.engine.ring_at(world.clock.now + 10, rung.append)
    world.advance(9)
    assert rung == []

    world.advance(1)
    world.advance(100)

    assert rung == [pytest.approx(world.clock.now - 100)]


def test_cancelled_alarm_does_not_ring_and_nothing_waits_for_it(world: Any) -> None:
    rung: list[float] = []
    alarm = world.engine.ring_at(world.clock.now + 10, rung.append)

    alarm.cancel()

    assert world.engine.next_due() is None
    world.advance(20)
    assert rung == []
