"""Where the publications of an existing Celery application go, by every way there is to publish."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import celery
import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import chain, chord, group, signals
from celery.app.amqp import AMQP
from celery.app.registry import TaskRegistry
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from kombu.exceptions import OperationalError
from recording_qstash import Answer

from queuebridge.backends.celery import attach
from queuebridge.backends.celery.forwarding import short_header
from queuebridge.backends.celery.message import HEADER, encode_header
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, InvalidOption, OptionNotSupported
from queuebridge.stages import Role, Side, Stage


def declared(world: CeleryWorld) -> Any:
    """Return a task that adds."""
    if "shop.add" in world.app.tasks:
        return world.app.tasks["shop.add"]

    @world.app.task(name="shop.add", shared=False)
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


WAYS: dict[str, Callable[[Any, celery.Celery], Any]] = {
    "delay": lambda add, _: add.delay(1, y=2),
    "apply_async": lambda add, _: add.apply_async((1,), {"y": 2}),
    "send_task": lambda _, app: app.send_task("shop.add", (1,), {"y": 2}),
    "signature": lambda add, _: add.s(1, y=2).apply_async(),
    "signature by name": lambda _, app: app.signature("shop.add", (1,), {"y": 2}).delay(),
    "group": lambda add, app: group([add.s(1, y=2)], app=app).apply_async(),
    "chain": lambda add, app: chain(add.s(1, y=2), add.s(3), app=app).apply_async(),
    "chord": lambda add, app: chord([add.s(1, y=2)], add.s(), app=app).apply_async(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", [*Stage, None], ids=lambda stage: stage.value if stage else "qstash alone")
def test_publication_goes_where_the_stage_says(make_world: MakeWorld, way: str, stage: Stage | None) -> None:
    world = make_world(stage, backend=None if stage else "qstash")

    WAYS[way](declared(world), world.app)
    messages, envelopes = world.take(), world.pushed()

    roles = dict(stage.plan.copies) if stage is not None else {Side.PUSH: Role.PREFERRED}
    # A safety copy for the old backend waits in the ledger.
    assert len(messages) == (Side.LEGACY in roles and roles[Side.LEGACY] is not Role.SAFETY)
    assert len(envelopes) == (Side.PUSH in roles)
    for message in messages:
        assert (message.headers["task"], world.arguments(message)[:2]) == ("shop.add", [[1], {"y": 2}])
        assert HEADER in message.headers
    for envelope in envelopes:
        assert (envelope.kind, envelope.task, envelope.args, envelope.kwargs) == ("celery", "shop.add", [1], {"y": 2})
        assert (envelope.stage, envelope.queue) == (stage, world.queue)
    if stage is not None and stage.plan.needs_ledger:
        assert world.ledger is not None
        (execution,) = [world.ledger.executions.get(envelope.dispatch_id) for envelope in envelopes]
        assert execution is not None
        assert {copy.side: copy.role for copy in execution.copies} == roles


MORE_WAYS: dict[str, tuple[Callable[[Any, celery.Celery], Any], list[str]]] = {
    "map": (lambda add, _: add.map([(1,), (2,)]).apply_async(), ["celery.map"]),
    "starmap": (lambda add, _: add.starmap([(1, 2)]).apply_async(), ["celery.starmap"]),
    "chunks": (lambda add, _: add.chunks([(1, 2), (3, 4)], 1).apply_async(), ["celery.starmap"] * 2),
    "beat": (
        lambda _, app: Scheduler(app, lazy=True).apply_async(
            ScheduleEntry("often", "shop.add", schedule=schedule(10), args=(1,), app=app), advance=False
        ),
        ["shop.add"],
    ),
    "stamped": (lambda add, _: stamped(add.s(1)).apply_async(), ["shop.add"]),
}


def stamped(signature: Any) -> Any:
    """Return a signature with a stamp."""
    signature.stamp(tenant="a")
    return signature


@pytest.mark.parametrize("way", MORE_WAYS)
def test_rarer_ways_to_publish_go_through_the_bridge_too(make_world: MakeWorld, way: str) -> None:
    world = make_world(Stage.PUSH)
    publish, expected = MORE_WAYS[way]

    publish(declared(world), world.app)

    assert [envelope.task for envelope in world.pushed()] == expected
    assert world.take() == []
    if way == "stamped":
        assert world.pushed()[0].message["headers"]["stamps"] == {"tenant": "a"}


def test_what_a_task_publishes_while_it_runs_goes_through_the_bridge(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    add = declared(world)

    @world.app.task(name="shop.replaced", bind=True, shared=False)
    def replaced(self: Any) -> None:
        raise self.replace(add.s(1))

    @world.app.task(name="shop.unsteady", autoretry_for=(ValueError,), default_retry_delay=3, shared=False)
    def unsteady() -> None:
        raise ValueError

    @world.app.task(name="shop.failing", shared=False)
    def failing() -> None:
        raise KeyError

    # One that takes more than the id Celery calls at once, where the task failed.
    @world.app.task(name="shop.told", shared=False)
    def told(task_id: str) -> None: ...

    replaced.delay()
    unsteady.delay()
    failing.apply_async(link_error=told.s())
    for envelope in world.pushed():
        world.deliver(envelope)

    names = [envelope.task for envelope in world.pushed()]
    assert names == ["shop.replaced", "shop.unsteady", "shop.failing", "shop.add", "shop.unsteady", "shop.told"]
    assert world.take() == []


def test_nothing_changes_where_the_environment_says_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    # Automatic choices of our own are for tasks of our own.
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    declared(world).delay(1)
    (message,) = world.take()

    assert (HEADER in message.headers, world.pushed()) == (False, [])


@pytest.mark.parametrize("attached", [False, True], ids=["made by us", "attached"])
def test_message_of_stage_legacy_is_that_of_celery_and_one_header(make_world: MakeWorld, attached: bool) -> None:
    def make(*args: Any, **kwargs: Any) -> Any:
        return attach(celery.Celery(*args, **kwargs))

    def send(world: CeleryWorld) -> Any:
        later = datetime(2030, 1, 1, tzinfo=timezone.utc)
        options: dict[str, Any] = {"task_id": "id", "eta": later, "headers": {"tenant": "a"}, "reply_to": "r"}
        declared(world).apply_async(("a",), {"y": [1, {"b": None}]}, shadow="s", **options)
        (message,) = world.take()
        return message

    plain = send(make_world())
    ours = send(make_world(Stage.LEGACY, make=make) if attached else make_world(Stage.LEGACY))

    assert ours.headers.pop(HEADER)
    ours.properties.pop("delivery_info"), plain.properties.pop("delivery_info")
    ours.properties.pop("delivery_tag"), plain.properties.pop("delivery_tag")
    assert ours == plain


def test_header_of_stage_legacy_is_the_one_that_envelopes_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuebridge.backends.celery.forwarding.time.time", lambda: 1.5)
    monkeypatch.setattr("queuebridge.backends.celery.forwarding.new_dispatch_id", lambda: "d")
    envelope = Envelope(
        version=2,
        kind="celery",
        job_id="j",
        dispatch_id="d",
        task="t",
        queue='a "queue"',
        enqueued_at_ms=1500,
        stage=Stage.LEGACY,
    )

    assert short_header('a "queue"', Stage.LEGACY) == encode_header(envelope)


def test_every_publication_is_a_dispatch_of_its_own(make_world: MakeWorld) -> None:
    # `retry` sends the headers of the message again that it got.
    world = make_world(Stage.PUSH)
    declared(world).apply_async((1,), task_id="one")
    first = world.pushed()[0]
    header = encode_header(first)

    declared(world).apply_async((1,), task_id="one", headers={HEADER: str(header)})

    second = world.pushed()[1]
    assert (second.job_id, second.dispatch_id == first.dispatch_id) == ("one", False)
    assert HEADER not in second.message["headers"]


def test_signals_are_sent_as_ever_and_may_change_the_message(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    seen: list[tuple[str, Any]] = []

    def before(sender: str, headers: dict[str, Any], **_: Any) -> None:
        headers["tenant"] = "a"
        seen.append(("before", sender))

    def after(sender: str, headers: dict[str, Any], **_: Any) -> None:
        seen.append(("after", headers["tenant"]))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        declared(world).delay(1)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    assert seen == [("before", "shop.add"), ("after", "a")]
    assert world.pushed()[0].message["headers"]["tenant"] == "a"


def test_options_reach_the_push_side(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    eta = datetime.now(timezone.utc) + timedelta(hours=1)

    declared(world).apply_async(
        (1,),
        eta=eta,
        expires=timedelta(hours=2).total_seconds(),
        time_limit=90,
        soft_time_limit=60,
        queue="mail",
        headers={"user_id": 7, "tenant": "a"},
        ignore_result=True,
        shadow="shown",
        link=declared(world).s(),
    )

    (envelope,) = world.pushed()
    assert (envelope.queue, envelope.timeout_seconds, envelope.metadata) == ("mail", 90.0, {"user_id": 7})
    assert envelope.not_before_ms == int(eta.timestamp() * 1000)
    headers = envelope.message["headers"]
    assert (headers["shadow"], headers["ignore_result"], headers["timelimit"]) == ("shown", True, [90, 60])
    assert headers["expires"]
    assert envelope.message["embed"]["callbacks"][0]["task"] == "shop.add"


@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE, Stage.PUSH], ids=lambda stage: stage.value)
def test_priority_is_refused_where_the_push_side_may_run_the_job(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)

    with pytest.raises(OptionNotSupported, match="priority"):
        declared(world).apply_async((1,), priority=5)

    assert (world.take(), world.pushed()) == ([], [])


def test_what_no_executor_could_read_is_refused(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)

    with pytest.raises(InvalidOption, match="accept_content"):
        declared(world).apply_async((1,), serializer="pickle")


def test_pickle_travels_if_the_app_accepts_it(make_world: MakeWorld) -> None:
    world = make_world(backend="qstash", with_ledger=False)
    world.app.conf.accept_content = ["pickle", "json"]

    declared(world).apply_async(({1, 2}.pop(),), serializer="pickle")

    (envelope,) = world.pushed()
    assert envelope.message["content_type"] == "application/x-python-serialize"
    assert world.deliver(envelope).result == 1


def test_arguments_that_nobody_can_look_into_need_a_key_for_the_ledger(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)

    with pytest.raises(InvalidOption, match="QUEUEBRIDGE_LEDGER_KEY"):
        declared(world).apply_async((1,), compression="gzip")

    assert (world.take(), world.pushed()) == ([], [])


def test_id_that_is_too_long_is_refused(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)

    with pytest.raises(InvalidOption, match="task_id"):
        declared(world).apply_async((1,), task_id="x" * 201)


@pytest.mark.parametrize("stage", [Stage.PUSH, Stage.DUAL])
def test_message_of_the_old_protocol_travels_as_one_of_the_new(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)
    world.app.conf.task_protocol = 1
    add = declared(world)
    eta = datetime(2030, 1, 2, tzinfo=timezone.utc)

    result = chain(add.s(1).set(eta=eta, time_limit=50, soft_time_limit=40), add.s(2)).apply_async()

    (envelope,) = world.pushed()
    headers = envelope.message["headers"]
    assert (envelope.task, envelope.args, envelope.timeout_seconds) == (add.name, [1], 50)
    assert (headers["eta"], headers["timelimit"]) == (eta.isoformat(), [50, 40])
    assert (envelope.job_id, headers["id"]) == (result.parent.id, result.parent.id)
    assert [one["options"]["task_id"] for one in envelope.message["embed"]["callbacks"]] == [result.id]
    assert [message.headers["id"] for message in world.take()] == ([envelope.job_id] if stage is Stage.DUAL else [])


def test_message_of_the_old_protocol_stays_so_in_stage_legacy(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    world.app.conf.task_protocol = 1

    result = declared(world).delay(1)

    (message,) = world.take()
    assert world.arguments(message)["id"] == result.id


def test_push_side_that_fails_is_an_error_that_programs_expect_of_a_broker(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.server._answers = [Answer(401, b'{"error":"no"}')]

    with pytest.raises(OperationalError):
        declared(world).delay(1)


def test_app_with_messages_of_its_own_is_not_bridged() -> None:
    class Special(AMQP):
        def send_task_message(self) -> None: ...  # type: ignore[override]

    app = celery.Celery("own", set_as_current=False, amqp=Special)

    with pytest.raises(ConfigurationError, match="send_task_message"):
        attach(app)


def test_attaching_twice_changes_nothing() -> None:
    app = celery.Celery("own", set_as_current=False)

    assert attach(attach(app)) is app
    assert type(app.amqp).__mro__.count(AMQP) == 1


def test_part_that_exists_already_is_bridged(make_world: MakeWorld) -> None:
    def make(*args: Any, **kwargs: Any) -> Any:
        app = celery.Celery(*args, **kwargs)
        # Both made and used before the bridge comes.
        _ = app.amqp.send_task_message, app.amqp.create_task_message
        return attach(app)

    world = make_world(Stage.PUSH, make=make)
    declared(world).delay(1)

    assert (world.take(), len(world.pushed())) == ([], 1)


def test_registry_of_the_apps_own_keeps_what_it_does() -> None:
    class Listing(TaskRegistry):
        def listed(self) -> list[str]:
            # Apps share tasks that any module of the process declares with `shared_task`.
            return sorted(name for name in self if name.startswith("own."))

    class Own(celery.Celery):
        registry_cls = Listing

    app = attach(Own("own", set_as_current=False))

    @app.task(name="own.task", shared=False)
    def task() -> None:
        return None

    # Not a task, and none of our business.
    app.tasks["own.other"] = "text"
    assert (isinstance(app.tasks, Listing), app.tasks.listed()) == (True, ["own.other", "own.task"])


def test_something_else_cannot_be_attached() -> None:
    with pytest.raises(ConfigurationError, match="not str"):
        attach("proj.celery")


def test_other_legacy_backend_is_refused_with_the_reason(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "rq")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    with pytest.raises(ConfigurationError, match="says rq"):
        declared(world).delay(1)
