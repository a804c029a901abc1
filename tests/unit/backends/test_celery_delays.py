"""Delays that are the broker's business, and the queue of safety copies."""

from __future__ import annotations

from typing import Any

import kombu
import pytest
from bridged_celery import MakeWorld
from celery import chain, signals
from celery.app.amqp import AMQP
from recording_qstash import Answer

from queuebridge.backends.celery.delays import queue_at, split_delay, with_delay
from queuebridge.backends.celery.workers import safety_queue
from queuebridge.stages import Stage

FIVE = ".".join(f"{5:028b}") + "."
NONE = ".".join("0" * 28) + "."


def test_delay_is_read_as_kombu_writes_it() -> None:
    kombu_own = pytest.importorskip("kombu.transport.native_delayed_delivery")
    key = kombu_own.calculate_routing_key(5, "shop.eu")

    assert (key, split_delay(key)) == (f"{FIVE}shop.eu", (FIVE, "shop.eu"))
    assert with_delay(key, 300.4) == kombu_own.calculate_routing_key(300, "shop.eu")


@pytest.mark.parametrize("key", ["", "shop", "1.0.shop", FIVE[2:] + "shop"])
def test_other_keys_stay_as_they_are(key: str) -> None:
    assert (split_delay(key), with_delay(key, 3)) == (("", key), key)


def test_time_that_is_over_is_no_delay() -> None:
    assert with_delay(f"{FIVE}shop", -3) == f"{NONE}shop"


def test_delayed_message_belongs_to_the_queue_that_it_will_reach(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.app.amqp.queues.add(kombu.Queue("letters", kombu.Exchange("post", type="topic"), routing_key="post.letters"))

    for key in ("mail", "post.letters"):
        world.app.send_task("t", countdown=5, exchange="celery_delayed_27", routing_key=FIVE + key)

    assert [envelope.queue for envelope in world.pushed()] == ["mail", "letters"]
    assert queue_at(world.app, "unknown") == "unknown"


def test_delayed_retry_of_a_safety_copy_goes_to_everybody_again(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    world.app.amqp.queues.add("mail", routing_key="post.mail")
    keys: list[str] = []

    def note(routing_key: str, **_: Any) -> None:
        keys.append(routing_key)

    signals.before_task_publish.connect(note)
    try:
        # As it is routed where Celery leaves delays to the broker.
        world.app.send_task("t", countdown=5, exchange="celery_delayed_27", routing_key=f"{FIVE}mail.queuebridge")
    finally:
        signals.before_task_publish.disconnect(note)

    assert keys == [f"{FIVE}post.mail"]


def test_queue_of_safety_copies_is_declared_alike_everywhere(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.app.conf.task_queue_max_priority = 7

    made = safety_queue(world.app, "mail")
    # As a worker adds it.
    world.app.amqp.queues.select_add("mail.queuebridge")

    assert (made.name, made.queue_arguments) == ("mail.queuebridge", {"x-max-priority": 7})
    assert world.app.amqp.queues["mail.queuebridge"].queue_arguments == made.queue_arguments
    assert safety_queue(world.app, "mail").queue_arguments == made.queue_arguments


@pytest.mark.skipif(not hasattr(AMQP, "_retry_publish"), reason="Celery before 5.7 does not send a callback again")
def test_callback_that_celery_sends_again_is_the_same_dispatch(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.app.conf.task_publish_retry_policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0}

    @world.app.task(name="shop.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    chain(add.s(1, 2), add.s(3), app=world.app).apply_async()
    (first,) = world.pushed()
    # Accepted by nobody; then perhaps by QStash; then for certain.
    world.server._answers = [Answer(401, b'{"error":"no"}'), Answer(200, b"no JSON")]
    outcome = world.deliver(first)

    _, *attempts = world.pushed()
    assert outcome.result == 3
    assert len(attempts) >= 3
    assert {(one.dispatch_id, one.args[0]) for one in attempts} == {(attempts[0].dispatch_id, 3)}
    assert world.deliver(attempts[-1]).result == 6
