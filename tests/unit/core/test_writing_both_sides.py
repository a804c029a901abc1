"""Writes to both sides at once, and the breaker that spares a caller the waiting for a dead one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest
from staging import Clock, SideBackend, World, failed, rejected, unknown

from queuebridge import Bridge, TaskRegistry
from queuebridge.backend import Publication
from queuebridge.breaker import FAILURES_TO_OPEN, OPEN_SECONDS, Breaker
from queuebridge.errors import BackendUnavailable
from queuebridge.publishing.writing import Writer
from queuebridge.receipt import Write
from queuebridge.stages import Side, Stage

MakeWorld = Callable[..., World]
GUARDED = {Side.LEGACY: True, Side.PUSH: True}


def batches(world: World, count: int = 1) -> dict[Side, list[Publication]]:
    """Return the same jobs for both sides."""
    jobs = [Publication(envelope=world.draft().envelope) for _ in range(count)]
    return {Side.LEGACY: jobs, Side.PUSH: jobs}


# Both at once


def test_both_sides_are_written_at_the_same_time(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    met = threading.Barrier(2)

    def meet(publication: Publication) -> None:
        # Passes only when the other side is being written too.
        met.wait(30)

    world.legacy.answer = world.push.answer = meet

    assert {write.backend for write in world.enqueue().writes} == {"celery", "qstash"}


def test_context_of_the_caller_reaches_both_sides(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    variable: ContextVar[str] = ContextVar("variable")
    seen: list[str] = []
    world.legacy.answer = world.push.answer = lambda publication: seen.append(variable.get())
    variable.set("trace")

    world.enqueue()

    assert seen == ["trace", "trace"]


@pytest.mark.parametrize("count", [1, 3])
def test_what_one_side_raises_does_not_hide_what_the_other_wrote(
    make_world: MakeWorld, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Stage.DUAL)
    bug = ValueError("a bug of the adapter")

    def explode(self: SideBackend, publications: object) -> None:
        raise bug

    for name in ("publish", "publish_many"):
        monkeypatch.setattr(world.push, name, explode.__get__(world.push))

    results = world.writer.write(batches(world, count), guarded=GUARDED)

    assert results[Side.PUSH] == [bug] * count
    assert all(isinstance(result, Write) for result in results[Side.LEGACY])


def test_single_job_is_published_and_several_go_as_a_batch(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)

    world.writer.write(batches(world, 1), guarded=GUARDED)
    world.writer.write(batches(world, 2), guarded=GUARDED)

    assert world.legacy.calls == world.push.calls == ["publish", "publish_many"]


def test_nothing_to_write_starts_no_thread(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)

    assert world.writer.write({Side.LEGACY: [], Side.PUSH: []}, guarded=GUARDED) == {}
    world.writer.write({**batches(world), Side.LEGACY: []}, guarded=GUARDED)
    assert world.writer._pool is None


def test_closed_writer_ends_its_threads_and_can_be_used_again(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.enqueue()
    pool = world.writer._pool

    world.close()

    assert pool is not None
    assert all(not thread.is_alive() for thread in pool._threads)
    assert len(world.enqueue().writes) == 2


def test_writer_whose_threads_cannot_be_used_writes_one_side_after_the_other(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.enqueue()
    assert world.writer._pool is not None
    # As when another thread closes the bridge, or the interpreter is ending.
    world.writer._pool.shutdown()

    assert len(world.enqueue().writes) == 2


def test_forked_process_writes_in_threads_of_its_own(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(Stage.DUAL)
    world.enqueue()
    parents = world.writer._pool
    assert parents is not None

    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        receipt = world.enqueue()
        own = world.writer._pool
        world.close()

    assert len(receipt.writes) == 2
    assert own is not parents
    parents.shutdown()


def test_closing_a_bridge_ends_its_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = Bridge(SideBackend("celery"), registry=TaskRegistry(), environ={})
    closed: list[bool] = []
    monkeypatch.setattr(bridge.publisher, "close", lambda: closed.append(True))

    bridge.close()

    assert closed == [True]


# The breaker


@pytest.fixture
def clock() -> Clock:
    """The breaker's clock."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """A closed breaker."""
    return Breaker("qstash", clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.enter()
        breaker.failed("it cannot be reached.")


def test_breaker_opens_after_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, FAILURES_TO_OPEN - 1)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open

    with pytest.raises(BackendUnavailable, match=r"not tried for another 10 s.*it cannot be reached"):
        breaker.enter()


def test_success_in_between_keeps_it_closed(breaker: Breaker) -> None:
    fail(breaker, FAILURES_TO_OPEN - 1)
    breaker.succeeded()
    fail(breaker, FAILURES_TO_OPEN - 1)

    breaker.enter()
    assert not breaker.is_open


def test_one_probe_is_let_through_when_the_time_has_come(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN)
    clock.move(OPEN_SECONDS)

    breaker.enter()

    with pytest.raises(BackendUnavailable):
        breaker.enter()


def test_probe_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN)
    clock.move(OPEN_SECONDS)
    breaker.enter()
    breaker.succeeded()

    fail(breaker, FAILURES_TO_OPEN - 1)
    assert not breaker.is_open


def test_probe_that_fails_opens_it_again_for_the_whole_time(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN)
    clock.move(OPEN_SECONDS)
    breaker.enter()
    clock.move(3)
    breaker.failed("still away.")
    clock.move(OPEN_SECONDS - 0.5)

    with pytest.raises(BackendUnavailable, match="still away"):
        breaker.enter()


def test_probe_that_never_reports_is_followed_by_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN)
    clock.move(OPEN_SECONDS)
    breaker.enter()
    clock.move(OPEN_SECONDS)

    breaker.enter()


def test_of_many_threads_one_is_the_probe(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN)
    clock.move(OPEN_SECONDS)
    start, let_through = threading.Barrier(8), []

    def enter() -> None:
        start.wait(30)
        try:
            breaker.enter()
        except BackendUnavailable:
            return
        let_through.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert let_through == [1]


@pytest.mark.parametrize(("answer", "opens"), [(failed, True), (unknown, True), (rejected, False)])
def test_breaker_counts_what_says_that_a_backend_is_away(make_world: MakeWorld, answer: object, opens: bool) -> None:
    world = make_world(Stage.SHADOW)
    assert callable(answer)
    world.push.answer = answer("qstash")

    for _ in range(FAILURES_TO_OPEN + 2):
        world.enqueue()

    assert len(world.push.sent) == FAILURES_TO_OPEN + (0 if opens else 2)


def test_dead_backend_is_not_asked_while_the_other_can_take_the_job(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.push.answer = failed("qstash")
    for _ in range(FAILURES_TO_OPEN):
        world.enqueue()
    asked = len(world.push.sent)

    assert world.enqueue().backend == "celery"
    assert len(world.push.sent) == asked
    world.clock.move(OPEN_SECONDS)
    world.push.answer = None
    assert world.enqueue().backend == "qstash"


@pytest.mark.parametrize("stage", [Stage.LEGACY, Stage.SHADOW, Stage.PUSH])
def test_only_backend_of_a_job_is_always_asked(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)
    backend = world.side(stage.plan.preferred)
    backend.answer = failed(backend.name)
    for _ in range(FAILURES_TO_OPEN + 3):
        with pytest.raises(BackendUnavailable):
            world.enqueue()
    backend.answer = None

    assert world.enqueue().backend == backend.name


def test_each_side_has_a_breaker_of_its_own() -> None:
    made: list[str] = []
    backends = {Side.LEGACY: SideBackend("celery"), Side.PUSH: SideBackend("qstash")}

    Writer(backends, make_breaker=lambda name: made.append(name) or Breaker(name))  # type: ignore[func-returns-value]

    assert made == ["celery", "qstash"]
