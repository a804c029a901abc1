"""A task that rejects its message with `requeue=True` gets it again, without limit, as from a broker."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any

import celery
import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import signals, states
from celery.exceptions import Ignore, Reject
from recording_qstash import Answer

from queuebridge.backends.celery.message import HEADER
from queuebridge.backends.celery.requeueing import REQUEUED
from queuebridge.ledger import State
from queuebridge.outcome import Outcome, Status
from queuebridge.stages import Stage

# More often than a dispatch may be attempted.
TIMES = 7


@pytest.fixture
def world(make_world: MakeWorld) -> CeleryWorld:
    """An app in stage `dual`, whose jobs run in workers and over push."""
    return make_world(Stage.DUAL)


@pytest.fixture
def pushing(make_world: MakeWorld) -> CeleryWorld:
    """An app that is pushed, without a ledger."""
    return make_world(backend="qstash", with_ledger=False)


def patient(world: CeleryWorld, times: int = TIMES, **options: Any) -> tuple[Any, list[bool]]:
    """Return a task that wants its message again, and the list of what it saw of `redelivered`."""
    seen: list[bool] = []

    @world.app.task(name="shop.patient", bind=True, acks_late=True, shared=False, **options)
    def patient_(self: Any, *_: Any, **__: Any) -> str:
        seen.append(self.request.delivery_info["redelivered"])
        if len(seen) <= times:
            raise Reject("not yet", requeue=True)
        return "at last"

    return patient_, seen


def acknowledged(answer: tuple[int, Any, float]) -> bool:
    """Return whether a worker acknowledges a message without a word to anybody."""
    info = answer[1]
    return isinstance(getattr(info.exception, "exc", info.exception), Ignore)


def test_worker_runs_it_without_limit_as_dispatches_of_one_job(world: CeleryWorld) -> None:
    task, seen = patient(world)
    result = task.delay(1)

    for _ in range(TIMES):
        (message,) = world.take()
        assert acknowledged(world.work(message))
    world.work(world.take()[0])

    assert world.ledger is not None
    ends = [execution.state for execution in world.ledger.executions.of_job(result.id)]
    assert ends == [State.RETRIED] * TIMES + [State.DONE]
    assert seen == [False] + [True] * TIMES
    assert (result.get(timeout=1), world.take()) == ("at last", [])


def test_receiver_runs_it_without_limit(pushing: CeleryWorld) -> None:
    task, seen = patient(pushing)
    result = task.delay(1)

    outcomes = [pushing.deliver(pushing.pushed()[-1]).status for _ in range(TIMES)]
    last = pushing.deliver(pushing.pushed()[-1]).status

    assert (outcomes, last) == ([Status.RETRIED] * TIMES, Status.DONE)
    assert seen == [False] + [True] * TIMES
    jobs = pushing.pushed()
    assert {job.job_id for job in jobs} == {result.id}
    assert len({job.dispatch_id for job in jobs}) == TIMES + 1
    assert result.get(timeout=1) == "at last"


def test_it_waits_a_moment(pushing: CeleryWorld) -> None:
    task, _ = patient(pushing)
    task.apply_async((1,), countdown=3600)

    before = time.time()
    pushing.deliver(pushing.pushed()[-1])
    after = time.time()

    due = pushing.pushed()[-1].not_before_ms
    assert due is not None
    # In whole milliseconds.
    assert before + 0.99 <= due / 1000 <= after + 1.01


def everything(world: CeleryWorld) -> dict[str, Any]:
    """Return options of a call that leave a trace in the message."""
    callback = celery.signature("shop.callback", app=world.app)
    return {
        "link": callback,
        "link_error": callback,
        "chord": celery.signature("shop.body", app=world.app),
        "group_id": "group",
        "group_index": 3,
        "expires": 3600,
        "retries": 2,
        "time_limit": 60,
        "soft_time_limit": 50,
        "shadow": "another name",
        "ignore_result": True,
        "headers": {"tenant": "acme"},
        "stamped_headers": ["stamp"],
        "stamp": "value",
        "root_id": "root",
        "parent_id": "parent",
        "reply_to": "answers",
        "countdown": 3600,
    }


def kept(headers: Any) -> dict[str, Any]:
    """Return the headers of a message that must not change."""
    return {name: value for name, value in headers.items() if name not in (HEADER, REQUEUED, "eta")}


def test_worker_keeps_everything_but_the_eta(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    task, _ = patient(world)
    task.apply_async((1, [2]), {"three": {"3": None}}, priority=5, **everything(world))
    (first,) = world.take()

    world.work(first)
    (again,) = world.take()

    assert kept(again.headers) == kept(first.headers)
    assert again.headers["eta"] < first.headers["eta"]
    assert datetime.fromisoformat(again.headers["eta"]).tzinfo == timezone.utc
    assert json.loads(again.body) == json.loads(first.body)
    for name in ("priority", "correlation_id", "reply_to", "delivery_mode"):
        assert again.properties[name] == first.properties[name]


def test_receiver_keeps_everything_but_the_eta(pushing: CeleryWorld) -> None:
    task, _ = patient(pushing)
    task.apply_async((1, [2]), {"three": {"3": None}}, **everything(pushing))

    pushing.deliver(pushing.pushed()[-1])

    first, again = pushing.pushed()
    assert kept(again.message["headers"]) == kept(first.message["headers"])
    assert again.message["embed"] == first.message["embed"]
    assert (again.args, again.kwargs, again.queue) == (first.args, first.kwargs, first.queue)
    for name in ("correlation_id", "reply_to", "delivery_mode"):
        assert again.message["properties"][name] == first.message["properties"][name]


@pytest.mark.parametrize("where", ["worker", "receiver"])
def test_arguments_are_those_that_came(world: CeleryWorld, where: str) -> None:
    @world.app.task(name="shop.greedy", acks_late=True, shared=False)
    def greedy(order: dict[str, int]) -> None:
        order.clear()
        raise Reject("not yet", requeue=True)

    greedy.delay({"number": 7})
    if where == "worker":
        world.work(world.take()[0])
    else:
        world.deliver(world.pushed()[0])

    assert world.pushed()[-1].args == [{"number": 7}]
    assert len(world.pushed()) == 2


@pytest.mark.parametrize("where", ["worker", "receiver"])
@pytest.mark.parametrize(("serializer", "compression"), [("pickle", None), ("json", "gzip"), ("pickle", "gzip")])
def test_serializer_and_compression_are_kept(
    make_world: MakeWorld, where: str, serializer: str, compression: str | None
) -> None:
    world = make_world(backend="qstash", with_ledger=False) if where == "receiver" else make_world(Stage.LEGACY)
    world.app.conf.update(accept_content=["json", "pickle"])
    task, seen = patient(world, times=1, serializer=serializer)
    result = task.apply_async(({"b": [1]} if serializer == "json" else {2, 3},), compression=compression)

    if where == "worker":
        (first,) = world.take()
        world.work(first)
        (again,) = world.take()
        world.work(again)
        assert (again.content_type, again.headers.get("compression")) == (
            first.content_type,
            first.headers.get("compression"),
        )
    else:
        for _ in range(2):
            world.deliver(world.pushed()[-1])
        one, two = world.pushed()
        assert one.message["content_type"] == two.message["content_type"]
        assert one.message["headers"].get("compression") == two.message["headers"].get("compression")

    assert (seen, result.get(timeout=1)) == ([False, True], "at last")


def test_retry_after_it_is_no_redelivery(pushing: CeleryWorld) -> None:
    seen: list[tuple[int, bool]] = []

    @pushing.app.task(name="shop.both", bind=True, acks_late=True, shared=False)
    def both(self: Any) -> None:
        seen.append((self.request.retries, self.request.delivery_info["redelivered"]))
        if len(seen) == 1:
            raise Reject("not yet", requeue=True)
        if len(seen) == 2:
            raise self.retry(countdown=0)

    both.delay()
    for _ in range(3):
        pushing.deliver(pushing.pushed()[-1])

    assert seen == [(0, False), (0, True), (1, False)]


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery takes what a hook raises for an error of its own.")
def test_reject_of_a_hook_after_the_body_counts_too(world: CeleryWorld) -> None:
    class Base(celery.Task):
        def on_success(self, *_: Any) -> None:
            raise Reject("not yet", requeue=True)

    @world.app.task(name="shop.hook", base=Base, acks_late=True, shared=False)
    def hook() -> None: ...

    hook.delay()
    worked = world.work(world.take()[0])
    pushed = world.deliver(world.pushed()[-1]).status

    assert (acknowledged(worked), pushed, len(world.take())) == (True, Status.RETRIED, 2)


def refuse(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody take a message."""

    def nobody(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("no")

    monkeypatch.setattr(world.app.amqp, "send_task_message", nobody)


def test_message_goes_back_to_the_broker_if_it_cannot_be_published(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, seen = patient(world, times=1)
    result = task.delay(1)
    (message,) = world.take()
    refuse(world, monkeypatch)

    failed, info, _ = world.work(message)
    rejected: Any = getattr(info.exception, "exc", info.exception)
    assert (failed, type(rejected), rejected.requeue) == (1, Reject, True)
    assert "its message goes back" in caplog.text
    assert world.ledger is not None
    assert world.ledger.executions.of_job(result.id)[0].state is State.WAITING
    # Nothing holds it any more when the broker brings it again.
    world.ledger._clock.move(2)
    world.work(message)

    assert (seen, result.get(timeout=1)) == ([False, True], "at last")


def test_sender_brings_it_again_if_it_cannot_be_published(
    pushing: CeleryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = patient(pushing, times=1)
    result = task.delay(1)
    refuse(pushing, monkeypatch)

    first: Outcome = pushing.deliver(pushing.pushed()[-1])
    second = pushing.deliver(pushing.pushed()[-1], attempt=2)

    assert (first.status, first.retry_delay_seconds, second.status) == (Status.RETRY, 1.0, Status.DONE)
    assert (seen, result.get(timeout=1)) == ([False, True], "at last")


def test_unreachable_push_side_is_such_a_case(pushing: CeleryWorld) -> None:
    task, _ = patient(pushing)
    task.delay(1)
    (envelope,) = pushing.pushed()
    pushing.server._otherwise = lambda _: Answer(500, {"error": "down"})

    assert pushing.deliver(envelope).status is Status.RETRY


def test_job_whose_end_cannot_be_recorded_does_not_go_back_beside_its_successor(
    world: CeleryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = patient(world)
    task.delay(1)
    (message,) = world.take()
    assert world.ledger is not None
    assert world.bridge is not None
    assert world.bridge.runner.claims is not None
    moments = iter(range(0, 10_000, 100))
    monkeypatch.setattr(world.bridge.runner.claims, "_clock", lambda: next(moments))
    world.ledger.away = {"settle"}

    answer = world.work(message)

    assert (acknowledged(answer), len(world.take())) == (True, 1)


def test_it_comes_back_to_the_queue_and_exchange_that_it_came_from(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    task, _ = patient(world)
    sent: list[Any] = []

    def note(exchange: str, routing_key: str, **_: Any) -> None:
        sent.append((exchange, routing_key))

    for _ in range(2):
        task.apply_async((1,), queue=f"{world.queue}.other")
    first, second = world.take(f"{world.queue}.other")
    signals.before_task_publish.connect(note)
    try:
        world.work(first, queue=f"{world.queue}.other")
        world.work(second, queue="order.new", exchange="orders")
    finally:
        signals.before_task_publish.disconnect(note)

    assert sent == [("", f"{world.queue}.other"), ("orders", "order.new")]


def test_without_a_ledger_a_worker_leaves_it_to_the_broker(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY, with_ledger=False)
    task, _ = patient(world)
    result = task.delay(1)

    _, info, _ = world.work(world.take()[0])

    rejected: Any = getattr(info.exception, "exc", info.exception)
    assert (type(rejected), rejected.requeue, world.take(), result.state) == (Reject, True, [], states.PENDING)
