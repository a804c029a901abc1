"""Pushed messages of an existing Celery application run as in a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery
import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import signals, states
from celery.app import trace
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.worker import state

from queuebridge import current_job
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError
from queuebridge.outcome import Outcome, Status
from queuebridge.stages import Role, Stage


@pytest.fixture
def world(make_world: MakeWorld) -> CeleryWorld:
    """An app that is pushed, without a ledger."""
    return make_world(backend="qstash", with_ledger=False)


def run(world: CeleryWorld, task: Any, *args: Any, **options: Any) -> tuple[Outcome, Any]:
    """Send a job, deliver it, and return how that ended and what the producer can see of it."""
    result = task.apply_async(args, **options)
    return world.deliver(world.pushed()[-1]), result


@contextmanager
def noted(*names: str) -> Iterator[list[str]]:
    """Note which signals are sent."""
    seen: list[str] = []
    receivers: dict[str, Any] = {}
    for name in names:

        def note(name: str = name, **_: Any) -> None:
            seen.append(name)

        receivers[name] = note
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    try:
        yield seen
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)


def test_result_is_where_the_producer_looks_for_it(world: CeleryWorld) -> None:
    @world.app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    outcome, result = run(world, add, 1, 2)

    assert (outcome.status, outcome.result) == (Status.DONE, 3)
    assert (result.get(timeout=1), result.state) == (3, states.SUCCESS)


def test_signals_of_a_worker_are_sent_in_its_order(world: CeleryWorld) -> None:
    @world.app.task(shared=False)
    def work() -> None: ...

    with noted("task_received", "task_prerun", "task_postrun", "task_success", "task_failure") as seen:
        run(world, work)

    assert seen == ["task_received", "task_prerun", "task_success", "task_postrun"]


def test_arrival_is_logged_as_a_worker_does(
    world: CeleryWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    @world.app.task(shared=False)
    def work(value: int) -> None: ...

    with caplog.at_level("INFO"):
        _, result = run(world, work, 7, shadow="another name")
    (record,) = [record for record in caplog.records if record.name == "celery.worker.strategy"]
    assert record.getMessage() == f"Task another name[{result.id}] received"
    assert (record.data["args"], record.data["kwargs"]) == ("(7,)", "{}")  # type: ignore[attr-defined]

    # As applications do that want to see more.
    monkeypatch.setattr(trace, "LOG_RECEIVED", "%(name)s came with %(args)s")
    with caplog.at_level("INFO"):
        run(world, work, 8)
    assert f"{work.name} came with (8,)" in caplog.text


def test_arrival_is_not_logged_where_nobody_wants_it(world: CeleryWorld, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.task(shared=False)
    def work() -> None: ...

    with caplog.at_level("WARNING", logger="celery"):
        run(world, work)

    assert "received" not in caplog.text


def test_failure_is_final_and_told_to_everybody(world: CeleryWorld) -> None:
    told: list[Any] = []

    class Base(celery.Task):
        def on_failure(self, exc: Exception, task_id: str, *_: Any) -> None:
            told.append((str(exc), task_id))

    @world.app.task(base=Base, shared=False)
    def fail() -> None:
        raise ValueError("no")

    with noted("task_failure") as seen:
        outcome, result = run(world, fail)

    assert (outcome.status, str(outcome.error)) == (Status.FAILED, "no")
    assert (told, seen, result.state) == ([("no", result.id)], ["task_failure"], states.FAILURE)


def test_retry_is_published_as_a_dispatch_of_the_same_job(world: CeleryWorld) -> None:
    @world.app.task(bind=True, max_retries=2, shared=False)
    def flaky(self: Any, tenant: str) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=30)
        return int(self.request.retries)

    outcome, result = run(world, flaky, "a", headers={"tenant": "a"})
    assert (outcome.status, result.state) == (Status.RETRIED, states.RETRY)
    first, second = world.pushed()
    assert (second.job_id, second.dispatch_id == first.dispatch_id) == (first.job_id, False)
    assert second.not_before_ms is not None
    assert second.message["headers"]["tenant"] == "a"

    world.deliver(second)
    world.deliver(world.pushed()[-1])

    assert (result.get(timeout=1), len(world.pushed())) == (2, 3)


def test_chain_and_callbacks_go_on_over_push(world: CeleryWorld) -> None:
    @world.app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    celery.chain(add.s(1, 2), add.s(10), app=world.app).apply_async(link=add.s(100))
    for number in range(3):
        world.deliver(world.pushed()[number])

    assert [envelope.args for envelope in world.pushed()] == [[1, 2], [3, 10], [13, 100]]


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (Ignore(), Status.DONE, states.PENDING),
        (Reject("no", requeue=False), Status.FAILED, states.FAILURE if celery.VERSION >= (5, 7) else states.PENDING),
    ],
    ids=["ignore", "reject"],
)
def test_what_a_task_says_about_its_message_is_done(
    world: CeleryWorld, error: Exception, status: Status, state: str
) -> None:
    @world.app.task(acks_late=True, shared=False)
    def work() -> None:
        raise error

    outcome, result = run(world, work)

    assert (outcome.status, result.state) == (status, state)


def test_started_is_tracked_and_request_is_that_of_a_worker(world: CeleryWorld) -> None:
    seen: dict[str, Any] = {}

    @world.app.task(bind=True, track_started=True, shared=False)
    def work(self: Any) -> None:
        request = self.request
        seen.update(
            state=self.AsyncResult(request.id).state,
            id=request.id,
            headers=request.headers["tenant"],
            direct=request.called_directly,
            eager=request.is_eager,
            routing_key=request.delivery_info["routing_key"],
            backend=current_job().backend,
        )

    _, result = run(world, work, headers={"tenant": "a"})

    assert seen == {
        "state": states.STARTED,
        "id": result.id,
        "headers": "a",
        "direct": False,
        "eager": False,
        "routing_key": world.queue,
        "backend": "qstash",
    }


def test_expired_message_is_revoked_and_not_run(world: CeleryWorld) -> None:
    ran: list[bool] = []

    @world.app.task(shared=False)
    def work() -> None:
        ran.append(True)

    result = work.apply_async(expires=0.001)
    time.sleep(0.01)
    with noted("task_revoked") as seen:
        outcome = world.deliver(world.pushed()[-1])

    assert (outcome.status, ran, seen, result.state) == (Status.DONE, [], ["task_revoked"], states.REVOKED)


def test_task_that_is_revoked_by_its_stamps_is_done_with(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []

    @world.app.task(shared=False)
    def work() -> None:
        ran.append(True)

    monkeypatch.setitem(state.revoked_stamps, "tenant", ["a"])
    outcome, result = run(world, work, stamped_headers=["tenant"], tenant="a")

    assert (outcome.status, result.state, ran) == (Status.DONE, states.REVOKED, [])


def test_soft_time_limit_can_be_caught(world: CeleryWorld) -> None:
    @world.app.task(soft_time_limit=0.05, shared=False)
    def work() -> str:
        try:
            time.sleep(20)
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "never"

    assert run(world, work)[0].result == "cleaned up"


def test_hard_time_limit_fails_the_task(world: CeleryWorld) -> None:
    @world.app.task(time_limit=0.05, shared=False)
    def work() -> None:
        time.sleep(20)

    outcome, result = run(world, work)

    assert (outcome.status, type(outcome.error)) == (Status.FAILED, TimeLimitExceeded)
    assert result.state == states.FAILURE


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
def test_every_accepted_serializer_arrives(world: CeleryWorld, serializer: str, compression: str | None) -> None:
    if serializer == "yaml":
        pytest.importorskip("yaml")
    world.app.conf.accept_content = ["json", "yaml", "pickle"]

    @world.app.task(shared=False)
    def first(value: Any) -> Any:
        return value["a"][0]

    outcome, _ = run(world, first, {"a": [1]}, serializer=serializer, compression=compression)

    assert outcome.result == 1


def test_serializer_that_is_not_accepted_is_never_read(world: CeleryWorld) -> None:
    @world.app.task(shared=False)
    def work(value: Any) -> None: ...

    world.app.conf.accept_content = ["json", "pickle"]
    work.apply_async((1,), serializer="pickle")
    world.app.conf.accept_content = ["json"]

    outcome = world.deliver(world.pushed()[-1])

    assert outcome.status is Status.INVALID_ARGUMENTS
    assert "ContentDisallowed" in outcome.reason


@pytest.mark.parametrize(
    "change",
    [
        {"message": {}},
        {"message": {"headers": 7}},
        {"message": {"headers": {}, "properties": {}, "body": "no base64!", "content_type": "x"}},
    ],
    ids=["none", "wrong type", "wrong body"],
)
def test_envelope_without_a_message_never_runs(world: CeleryWorld, change: dict[str, Any]) -> None:
    @world.app.task(shared=False)
    def work() -> None: ...

    work.delay()
    envelope = world.pushed()[-1]

    assert world.deliver(envelope.model_copy(update=change)).status is Status.INVALID_ARGUMENTS


def test_message_cannot_name_another_task_than_its_envelope(world: CeleryWorld) -> None:
    ran: list[str] = []

    @world.app.task(name="good", shared=False)
    def good() -> None:
        ran.append("good")

    @world.app.task(name="evil", shared=False)
    def evil() -> None:
        ran.append("evil")

    world.app.send_task("good")
    envelope = world.pushed()[-1]
    headers = {**envelope.message["headers"], "task": "evil"}

    world.deliver(envelope.model_copy(update={"message": {**envelope.message, "headers": headers}}))

    assert ran == ["good"]


def test_unknown_task_may_be_known_to_a_newer_deployment(world: CeleryWorld) -> None:
    world.app.send_task("of.tomorrow")

    assert world.deliver(world.pushed()[-1]).status is Status.UNKNOWN_TASK


def test_receiver_without_an_app_leaves_the_job_to_a_better_one(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuebridge.backends.celery.receiver_app._attached", [])
    world.app.send_task("shop.add")

    outcome = world.deliver(world.pushed()[-1])

    assert (outcome.status, type(outcome.error)) == (Status.DEFERRED, ConfigurationError)
    assert "QUEUEBRIDGE_CELERY_APP" in outcome.reason


def test_shadow_copy_is_checked_and_never_run(make_world: MakeWorld) -> None:
    world = make_world(Stage.SHADOW)
    ran: list[int] = []

    @world.app.task(shared=False)
    def work(value: int) -> None:
        ran.append(value)

    work.delay(1)
    (good,) = world.pushed()
    bad = good.model_copy(update={"dispatch_id": "other", "args": [1, 2, 3]})
    outcomes = [world.deliver(envelope).status for envelope in (good, bad)]

    assert (good.role, outcomes, ran) == (Role.SHADOW, [Status.SHADOWED] * 2, [])
    assert world.ledger is not None
    problems = [world.ledger.executions.deliveries([one.dispatch_id])[one.dispatch_id] for one in (good, bad)]
    assert [bool(deliveries[0].problem) for deliveries in problems] == [False, True]


def test_envelope_survives_the_wire(world: CeleryWorld) -> None:
    @world.app.task(shared=False)
    def echo(value: Any, **more: Any) -> Any:
        return [value, more]

    echo.apply_async(("Grüße",), {"d": {"é": [None, 1.5]}})
    envelope = Envelope.decode(world.pushed()[-1].encode())

    assert world.deliver(envelope).result == ["Grüße", {"d": {"é": [None, 1.5]}}]
