"""Calls of an existing Celery application that say how its broker is reached: with a connection, in what time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery
import kombu
import pytest
from bridged_celery import CeleryWorld, MakeWorld

from queuebridge.backends.celery.brokers import BrokerCheck
from queuebridge.errors import OptionNotSupported
from queuebridge.stages import Stage

BRIDGED = [stage for stage in Stage if stage is not Stage.LEGACY]


def declared(world: CeleryWorld) -> Any:
    """Return a task."""

    @world.app.task(name="shop.add", shared=False)
    def add(x: int) -> int:
        return x

    return add


def pooled(add: Any, connection: Any) -> Any:
    """Publish with a connection out of a pool."""
    with connection.Pool(1).acquire() as one:
        return add.apply_async((1,), connection=one)


GIVEN: dict[str, Callable[[Any, Any], Any]] = {
    "connection": lambda add, connection: add.apply_async((1,), connection=connection),
    "producer": lambda add, connection: add.apply_async((1,), producer=kombu.Producer(connection, auto_declare=False)),
    "publisher": lambda add, connection: add.apply_async((1,), publisher=kombu.Producer(connection)),
    "send_task": lambda add, connection: add.app.send_task(add.name, (1,), connection=connection),
    "signature": lambda add, connection: add.s(1).apply_async(connection=connection),
    "pool": pooled,
}


@pytest.mark.parametrize("way", GIVEN)
@pytest.mark.parametrize("stage", BRIDGED, ids=lambda stage: stage.value)
def test_connection_to_another_broker_is_refused(make_world: MakeWorld, stage: Stage, way: str) -> None:
    world = make_world(stage)
    add = declared(world)

    with pytest.raises(OptionNotSupported, match=r"leads to redis://elsewhere:6379/3, .*'shop' .* memory:///"):
        GIVEN[way](add, kombu.Connection("redis://user:secret@elsewhere/3"))

    assert (world.take(), world.pushed()) == ([], [])


def test_connection_to_another_broker_is_used_in_stage_legacy(make_world: MakeWorld, redis_url: str) -> None:
    world = make_world(Stage.LEGACY)

    with kombu.Connection(redis_url) as connection:
        declared(world).apply_async((1,), connection=connection)
        message = connection.SimpleQueue(world.queue).get(timeout=5)

    assert (message.headers["task"], world.take()) == ("shop.add", [])


@pytest.mark.parametrize("stage", BRIDGED, ids=lambda stage: stage.value)
def test_connection_to_the_broker_of_the_app_is_accepted(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)
    add = declared(world)

    with world.app.connection_for_write() as connection:
        add.apply_async((1,), connection=connection)
        add.apply_async((1,), producer=kombu.Producer(connection, auto_declare=False))
    with world.app.producer_pool.acquire(block=True) as producer:
        add.apply_async((1,), producer=producer)

    assert len(world.take()) + len(world.pushed()) >= 3


def test_names_of_queues_come_from_the_broker_of_the_app_with_any_router(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)

    class Router:
        def route(self, options: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
            return {**options, "queue": world.app.amqp.queues["mail"]}

    declared(world)
    world.app.send_task("shop.add", (1,), router=Router())

    assert [envelope.queue for envelope in world.pushed()] == ["mail"]


SAME = [
    ("redis://localhost:6379/0", "redis://:secret@127.0.0.1"),
    ("redis://localhost:6379/0", "rediss://LOCALHOST:6379//"),
    ("amqp://a:b@host//", "pyamqp://c:d@host:5672"),
    ("amqp://one//;amqp://two//", "amqp://two//"),
    ("amqp://one//", "amqp://two//;amqp://one//"),
    ("sentinel://one:26379/1;sentinel://two:26379/1", "sentinel://two:26379/1"),
    ("memory://", "memory://anything"),
    ("sqla+postgresql://a:b@host/jobs", "sqla+postgresql://c:d@host/jobs"),
]
OTHER = [
    ("redis://localhost:6379/0", "redis://localhost:6379/1"),
    ("redis://localhost:6379/0", "redis://localhost:6380/0"),
    ("redis://localhost:6379/0", "amqp://localhost:6379/0"),
    ("amqp://host//", "amqp://host/other"),
    ("amqp://host/other", "amqp://host/%2Fother"),
    ("amqp://one//;amqp://two//", "amqp://three//;amqp://four//"),
    ("memory://", "redis://localhost"),
    ("sqla+postgresql://host/jobs", "sqla+postgresql://host/other"),
]


def check(own: str, given: str, **options: Any) -> None:
    """Compare the broker of an app with another."""
    app = celery.Celery("shop", broker=own, set_as_current=False)
    app.conf.broker_transport_options = options
    producer = type("Producer", (), {"connection": kombu.Connection(given)})
    # Twice: what was accepted is remembered.
    checks = BrokerCheck(app)
    checks.check(producer)
    checks.check(producer)


@pytest.mark.parametrize(("own", "given"), SAME)
def test_broker_is_the_same_whoever_asks(own: str, given: str) -> None:
    check(own, given)


@pytest.mark.parametrize(("own", "given"), OTHER)
def test_broker_is_another_one(own: str, given: str) -> None:
    with pytest.raises(OptionNotSupported) as raised:
        check(own, given)

    assert "secret" not in str(raised.value)


def test_queues_under_another_prefix_are_others() -> None:
    with pytest.raises(OptionNotSupported, match="global_keyprefix=shop"):
        check("redis://localhost", "redis://localhost", global_keyprefix="shop")


def test_broker_to_read_from_is_the_apps_own_too() -> None:
    app = celery.Celery("shop", set_as_current=False)
    app.conf.update(broker_read_url="amqp://reads//", broker_write_url="amqp://writes//")
    with_read = type("Producer", (), {"connection": app.connection_for_read()})

    BrokerCheck(app).check(with_read)


@pytest.mark.parametrize("option", ["timeout", "confirm_timeout"])
@pytest.mark.parametrize("stage", BRIDGED, ids=lambda stage: stage.value)
def test_shorter_wait_than_that_of_the_bridge_is_refused(make_world: MakeWorld, stage: Stage, option: str) -> None:
    world = make_world(stage, QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS="3")
    add = declared(world)

    with pytest.raises(OptionNotSupported, match=rf"{option}=2.5: .*up to 3 s.*QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS"):
        add.apply_async((1,), **{option: 2.5})
    assert (world.take(), world.pushed()) == ([], [])

    add.apply_async((1,), **{option: 3})
    assert len(world.take()) + len(world.pushed()) >= 1
