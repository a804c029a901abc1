"""The main process of a worker settles what it ended in one of its own."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from queuebridge.backends.celery.endings import _note_received, note_failure
from queuebridge.backends.celery.workers import note_revoked
from queuebridge.claims import owning_process
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import Execution, State
from queuebridge.outcome import Status
from queuebridge.stages import Stage

CHILD = 4711


class Request(SimpleNamespace):
    """What a worker has received; equal to itself only, as Celery's."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Running:
    """A job that a process of a worker runs."""

    def __init__(
        self, world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, *, pid: int = CHILD, **options: Any
    ) -> None:
        self.world = world
        self.during: list[Any] = []

        @world.app.task(name="shop.hold", shared=False, **options)
        def hold() -> None:
            # The other process looks at it, and ends it, while it runs.
            self.during[-1]()

        self.task = hold
        self.id = hold.delay().id
        self.request = Request(id=self.id, worker_pid=CHILD)
        _note_received(request=self.request)
        (self.message,), (self.envelope,) = world.take(), world.pushed()
        monkeypatch.setattr("queuebridge.claims.owner", lambda: f"{owning_process(pid)}MainThread")

    def execution(self) -> Execution:
        """Return what the ledger knows of it."""
        assert self.world.ledger is not None
        return self.world.ledger.executions.of_job(self.id)[0]

    def while_it_runs(self, act: Any) -> Execution:
        """Run it, do something meanwhile, and return what the ledger knew then."""
        known: list[Execution] = []
        self.during.append(lambda: (act(), known.append(self.execution())))
        self.world.work(self.message)
        return known[0]

    def fail(self, error: Exception) -> None:
        """Have the main process hear of a failure."""
        note_failure(sender=self.task, task_id=self.id, exception=error)

    def terminate(self) -> None:
        """Have the main process hear of its end by request."""
        note_revoked(sender=self.task, request=Context(id=self.id), terminated=True, signum=15, expired=False)


@pytest.fixture
def world(make_world: MakeWorld) -> CeleryWorld:
    """An app in stage `dual`."""
    return make_world(Stage.DUAL)


def test_terminated_job_is_cancelled_and_runs_nowhere_else(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(world, monkeypatch)

    execution = running.while_it_runs(running.terminate)

    assert execution.state is State.CANCELLED
    assert "Ended by request" in (execution.error or "")
    assert world.deliver(running.envelope).status is Status.DUPLICATE
    assert len(running.during) == 1


def test_job_beyond_its_hard_time_limit_has_failed(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(world, monkeypatch)

    execution = running.while_it_runs(lambda: running.fail(TimeLimitExceeded(5)))

    assert (execution.state, execution.error) == (State.FAILED, "TimeLimitExceeded: TimeLimitExceeded(5,)")
    assert world.deliver(running.envelope).status is Status.DUPLICATE


@pytest.mark.parametrize("kept", [True, False])
def test_job_that_celery_gives_back_to_the_broker_is_left_to_its_lease(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    running = Running(world, monkeypatch, acks_late=True, acks_on_failure_or_timeout=kept)

    execution = running.while_it_runs(lambda: running.fail(TimeLimitExceeded(5)))

    assert execution.state is (State.FAILED if kept else State.RUNNING)


@pytest.mark.parametrize("error", [WorkerLostError("gone"), SoftTimeLimitExceeded(), ValueError("no")], ids=repr)
def test_other_failures_are_left_to_the_process_that_ran_it_or_to_its_lease(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    running = Running(world, monkeypatch)

    assert running.while_it_runs(lambda: running.fail(error)).state is State.RUNNING


@pytest.mark.parametrize("how", ["terminate", "limit"])
def test_execution_of_another_process_is_left_alone(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    running = Running(world, monkeypatch, pid=CHILD + 1)
    act = running.terminate if how == "terminate" else lambda: running.fail(TimeLimitExceeded(5))

    assert running.while_it_runs(act).state is State.RUNNING
    assert running.execution().state is State.DONE


def test_greenlet_of_this_process_is_found(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(world, monkeypatch, pid=os.getpid())
    running.request.worker_pid = id(running)

    assert running.while_it_runs(running.terminate).state is State.CANCELLED


def test_job_that_is_ended_before_it_has_its_claim_cannot_get_it(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(world, monkeypatch)

    running.terminate()
    world.work(running.message)

    assert (running.execution().state, running.execution().attempts) == (State.CANCELLED, 0)


@pytest.mark.parametrize("how", ["terminate", "limit"])
def test_ledger_that_is_away_does_not_disturb_the_worker(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    running = Running(world, monkeypatch)
    assert world.ledger is not None

    def away(_: str) -> Any:
        raise LedgerUnavailable("no answer")

    monkeypatch.setattr(world.ledger.executions, "of_job", away)
    if how == "terminate":
        running.terminate()
    else:
        running.fail(TimeLimitExceeded(5))

    assert "may run" in caplog.text
    assert "no answer" in caplog.text


def test_app_without_a_bridge_or_ledger_is_left_alone(make_world: MakeWorld) -> None:
    world = make_world()

    @world.app.task(name="shop.plain", shared=False)
    def plain() -> None: ...

    note_failure(sender=plain, task_id="a", exception=TimeLimitExceeded(5))
    note_revoked(sender=plain, request=Context(id="a"), terminated=True)
    del world.app.queuebridge
    note_failure(sender=plain, task_id="a", exception=TimeLimitExceeded(5))
    note_revoked(sender=plain, request=Context(id="a"), terminated=True)
