"""Workers of an existing Celery application claim each job before they run it."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import signals, states
from celery.app.task import Context
from celery.exceptions import Ignore
from recording_qstash import Answer

from queuebridge import current_job
from queuebridge.backends.celery import attach
from queuebridge.backends.celery.message import HEADER
from queuebridge.backends.celery.workers import note_revoked
from queuebridge.envelope import Envelope
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import ClaimRequest, Granted, State
from queuebridge.outcome import Status
from queuebridge.stages import Side, Stage

# What a pool hands back to the worker: (failed, value, runtime).
SUCCEEDED, FAILED = 0, 1


@pytest.fixture
def world(make_world: MakeWorld) -> CeleryWorld:
    """An app in stage `dual`."""
    return make_world(Stage.DUAL)


def counting(world: CeleryWorld, **options: Any) -> tuple[Any, list[Any]]:
    """Return a task, and the list of its executions."""
    ran: list[Any] = []

    @world.app.task(name="shop.count", shared=False, **options)
    def count(value: int) -> int:
        ran.append(value)
        return value

    return count, ran


def raised(info: Any) -> Any:
    """Return the exception that a pool hands back."""
    return getattr(info.exception, "exc", info.exception)


def executions(world: CeleryWorld, job_id: str) -> list[Any]:
    assert world.ledger is not None
    return list(world.ledger.executions.of_job(job_id))


def test_job_runs_once_of_its_copies_and_redeliveries(world: CeleryWorld) -> None:
    count, ran = counting(world)
    result = count.delay(7)
    (message,), (envelope,) = world.take(), world.pushed()

    answers = [world.work(message)[0] for _ in range(3)]
    pushed = world.deliver(envelope).status

    # The value handed back for a duplicate makes the worker acknowledge it and say nothing.
    assert (ran, answers, pushed) == ([7], [SUCCEEDED, FAILED, FAILED], Status.DUPLICATE)
    assert isinstance(raised(world.work(message)[1]), Ignore)
    assert (result.get(timeout=1), result.state) == (7, states.SUCCESS)
    (execution,) = executions(world, result.id)
    assert (execution.state, execution.result, execution.executed_by) == (State.DONE, "7", "celery")


def test_nothing_is_signalled_for_a_duplicate(world: CeleryWorld) -> None:
    count, _ = counting(world)
    count.delay(7)
    (message,) = world.take()
    world.work(message)
    seen: list[str] = []

    def note(**_: Any) -> None:
        seen.append("signal")

    for signal in (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure):
        signal.connect(note)
    try:
        world.work(message)
    finally:
        for signal in (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure):
            signal.disconnect(note)

    assert seen == []


def test_other_copy_that_runs_first_suppresses_the_worker(world: CeleryWorld) -> None:
    count, ran = counting(world)
    count.delay(7)

    pushed = world.deliver(world.pushed()[0]).status
    answer = world.work(world.take()[0])

    assert (pushed, answer[0], ran) == (Status.DONE, FAILED, [7])


def test_job_that_another_execution_holds_is_put_off_under_the_same_dispatch(world: CeleryWorld) -> None:
    count, ran = counting(world)
    result = count.delay(7)
    (message,) = world.take()
    (execution,) = executions(world, result.id)
    claim_elsewhere(world, execution)

    world.work(message)
    (again,) = world.take()

    assert ran == []
    assert again.headers[HEADER] == message.headers[HEADER]
    assert (again.headers["id"], again.headers["retries"]) == (result.id, 0)
    assert again.headers["eta"] is not None


def claim_elsewhere(world: CeleryWorld, execution: Any) -> None:
    assert world.ledger is not None
    request = ClaimRequest(
        dispatch_id=execution.dispatch_id,
        job_id=execution.job_id,
        task=execution.task,
        queue=execution.queue,
        stage=execution.stage,
        backend="qstash",
        message_id="msg",
        body=b"",
        payload="{}",
        user_id=None,
        organization_id=None,
        enqueued_at_ms=execution.enqueued_at_ms,
        not_before_ms=None,
        expires_at_ms=None,
        max_attempts=4,
        deadline_in_ms=60_000,
        digest="",
        side=Side.PUSH,
        role=None,
        owner="elsewhere",
        lease_ms=60_000,
    )
    assert isinstance(world.ledger.claim(request, grace_ms=1000), Granted)


def test_failure_is_settled_with_its_traceback(world: CeleryWorld) -> None:
    @world.app.task(name="shop.fail", shared=False)
    def fail() -> None:
        raise ValueError("no")

    result = fail.delay()

    assert world.work(world.take()[0])[0] == FAILED
    (execution,) = executions(world, result.id)
    assert (execution.state, result.state) == (State.FAILED, states.FAILURE)
    assert "ValueError: no" in (execution.traceback or "")


def test_retry_is_a_new_dispatch_and_runs(world: CeleryWorld) -> None:
    ran: list[int] = []

    @world.app.task(name="shop.flaky", bind=True, max_retries=3, shared=False)
    def flaky(self: Any) -> None:
        ran.append(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=0)

    result = flaky.delay()
    for _ in range(3):
        (message,) = world.take()
        world.work(message)

    assert (ran, world.take()) == ([0, 1, 2], [])
    dispatches = executions(world, result.id)
    assert [execution.state for execution in dispatches] == [State.RETRIED, State.RETRIED, State.DONE]
    assert len({execution.dispatch_id for execution in dispatches}) == 3


def test_job_is_put_off_while_the_ledger_is_away(world: CeleryWorld) -> None:
    count, ran = counting(world)
    count.delay(7)
    (message,) = world.take()
    assert world.ledger is not None
    world.ledger.away = {"claim", "record"}

    world.work(message)
    (again,) = world.take()
    world.ledger.away = set()
    world.work(again)

    assert (ran, again.headers[HEADER]) == ([7], message.headers[HEADER])


def test_message_of_a_program_without_the_bridge_is_claimed_too(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    count, ran = counting(world)
    count.delay(7)
    (message,) = world.take()
    del message.headers[HEADER]

    answers = [world.work(message)[0] for _ in range(2)]

    assert (answers, ran) == ([SUCCEEDED, FAILED], [7])


def test_compressed_message_that_only_a_worker_has_seen_can_be_published_again(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    kept: list[bytes] = []

    @world.app.task(name="shop.look", shared=False)
    def look(value: int) -> int:
        # Once it has ended, the ledger forgets it.
        if not kept:
            kept.extend(row.body for row in world.ledger._tables.rows.values())  # type: ignore[union-attr]
        return value

    look.apply_async((7,), compression="gzip")
    world.work(world.take()[0])
    envelope = Envelope.decode(kept[0]).model_copy(update={"dispatch_id": "another"})

    assert world.deliver(envelope).result == 7


def test_body_knows_its_claim(world: CeleryWorld) -> None:
    seen: list[Any] = []

    @world.app.task(name="shop.who", shared=False)
    def who() -> None:
        job = current_job()
        seen.append((job.backend, job.attempt, job.fence is not None))

    who.delay()
    world.work(world.take()[0])

    assert seen == [("celery", 1, True)]


def test_task_that_runs_eagerly_inside_another_claims_nothing(world: CeleryWorld) -> None:
    count, ran = counting(world)

    @world.app.task(name="shop.outer", shared=False)
    def outer() -> None:
        count.apply((1,))

    outer.delay()
    world.work(world.take()[0])
    outer.delay()
    world.deliver(world.pushed()[-1])

    assert ran == [1, 1]


@pytest.mark.parametrize("how", ["decorated before", "decorated after", "registered class"])
def test_tasks_of_an_attached_app_are_guarded_whenever_they_were_made(make_world: MakeWorld, how: str) -> None:
    ran: list[int] = []

    def count(value: int) -> None:
        ran.append(value)

    class Count(celery.Task):
        name = "shop.count"

        def run(self, value: int) -> None:
            ran.append(value)

    def make(*args: Any, **kwargs: Any) -> Any:
        app = celery.Celery(*args, **kwargs)
        if how == "decorated before":
            _ = app.task(name="shop.count", shared=False)(count).name
        if how == "registered class":
            app.register_task(Count())
        attach(app)
        if how == "decorated after":
            app.task(name="shop.count", shared=False)(count)
        return app

    world = make_world(Stage.DUAL, make=make)
    world.app.tasks["shop.count"].delay(7)
    (message,) = world.take()
    answers = [world.work(message)[0] for _ in range(2)]

    assert (answers, ran) == ([SUCCEEDED, FAILED], [7])


def test_safety_copy_goes_where_only_workers_with_claims_look(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.server._otherwise = lambda _: Answer(500, {"error": "down"})

    @world.app.task(name="shop.flaky", bind=True, shared=False)
    def flaky(self: Any) -> None:
        raise self.retry(countdown=0)

    flaky.apply_async(retry=False)
    assert world.take() == []
    (message,) = world.take(f"{world.queue}.queuebridge")
    world.work(message, queue=f"{world.queue}.queuebridge")

    # Its retry is a message of the same queue, and not of one beside the one beside it.
    assert len(world.take(f"{world.queue}.queuebridge")) == 1


def test_tracer_can_be_taken_from_a_task_as_from_any_other(world: CeleryWorld) -> None:
    count, ran = counting(world)
    count.__trace__ = lambda *_: ran.append("traced")
    del count.__trace__

    assert count.__trace__ is None


def test_revoked_job_starts_nowhere_and_whoever_waits_is_told(
    world: CeleryWorld, caplog: pytest.LogCaptureFixture
) -> None:
    count, ran = counting(world)
    result = count.delay(7)
    (message,), (envelope,) = world.take(), world.pushed()

    result.revoke()
    assert "stay with qstash" not in caplog.text
    assert world.server.requests.pop().method == "DELETE"
    world.work(message)
    pushed = world.deliver(envelope).status

    assert (ran, pushed, result.state) == ([], Status.DUPLICATE, states.REVOKED)


def test_what_a_worker_discards_runs_nowhere_else(world: CeleryWorld) -> None:
    # Revoked by a stamp, or expired: the worker never comes to the tracer.
    count, ran = counting(world)
    result = count.delay(7)
    (envelope,) = world.pushed()

    note_revoked(sender=count, request=Context(id=result.id), terminated=False)

    assert (world.deliver(envelope).status, ran) == (Status.DUPLICATE, [])


def test_ledger_that_is_away_does_not_disturb_a_worker_that_discards(
    world: CeleryWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, _ = counting(world)
    result = count.delay(7)

    def away(job_id: str) -> None:
        raise LedgerUnavailable("no answer")

    monkeypatch.setattr(world.bridge, "cancel", away)

    note_revoked(sender=count, request=Context(id=result.id))

    assert "its other copy may run" in caplog.text


def test_revoking_what_runs_leaves_it_alone(world: CeleryWorld) -> None:
    count, _ = counting(world)
    result = count.delay(7)
    claim_elsewhere(world, executions(world, result.id)[0])

    world.app.control.revoke([result.id])

    assert executions(world, result.id)[0].state is State.RUNNING
    assert result.state == states.PENDING
