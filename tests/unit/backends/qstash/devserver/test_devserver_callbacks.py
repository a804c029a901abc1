from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from queuebridge.backends.qstash.devserver.messages import MessageSpec

CALLBACK = MessageSpec(url="http://host/callback", max_retries=0)
FAILURE = MessageSpec(url="http://host/failure", max_retries=0)


def payloads(world: Any) -> list[tuple[str, dict[str, Any]]]:
    """Deliver every callback that is due; return their URLs and bodies."""
    found = []
    for message in world.start():
        found.append((message.spec.url, json.loads(message.body)))
        world.finish(message)
    return found


def test_callback_tells_of_a_delivery(world: Any) -> None:
    source = world.publish(callback=CALLBACK, caller_ip="10.0.0.1", headers=(("X-Mine", "1"),), method="PUT")
    world.start()
    world.finish(source, 201, headers=(("content-type", "text/plain"),), body=b"done")

    ((url, body),) = payloads(world)

    assert url == CALLBACK.url
    assert body == {
        "status": 201,
        "header": {"Content-Type": ["text/plain"]},
        "body": b64encode(b"done").decode(),
        "retried": 0,
        "maxRetries": 3,
        "sourceMessageId": source.id,
        "url": source.spec.url,
        "method": "PUT",
        "sourceHeader": {"X-Mine": ["1"]},
        "sourceBody": b64encode(b"body").decode(),
        "notBefore": source.not_before_ms,
        "createdAt": source.created_ms,
        "callerIP": "10.0.0.1",
    }


def test_callback_follows_every_attempt(world: Any) -> None:
    source = world.publish(callback=CALLBACK, max_retries=1, retry_delay="1000")
    world.start()
    world.finish(source, 500)
    first = payloads(world)
    assert world.advance(1) == [source]
    world.finish(source, 502)
    last = payloads(world)

    assert [(body["status"], body["retried"]) for _, body in first + last] == [(500, 0), (502, 1)]


def test_failure_callback_comes_once_with_the_dlq_id(world: Any) -> None:
    source = world.publish(failure_callback=FAILURE, max_retries=1, retry_delay="0")
    world.start()
    world.finish(source, 500)
    assert world.start() == [source]
    world.finish(source, 500)

    ((url, body),) = payloads(world)

    assert url == FAILURE.url
    assert [body["dlqId"]] == list(world.account.dead_letters)


def test_attempt_without_an_answer_has_status_zero_and_no_body(world: Any) -> None:
    source = world.publish(callback=CALLBACK, max_retries=0)
    world.start()
    world.finish(source, 0, error="refused")

    ((_, body),) = payloads(world)

    assert body["status"] == 0
    assert "body" not in body


def test_callback_has_its_own_id_and_can_become_a_dead_letter(world: Any) -> None:
    source = world.publish(callback=CALLBACK)
    world.start()
    world.finish(source)
    (callback,) = world.start()

    world.finish(callback, 500)

    (letter,) = world.account.dead_letters.values()
    assert letter.message is callback
    assert callback.id != source.id


def test_cancelled_message_calls_nobody_back(world: Any) -> None:
    source = world.publish(callback=CALLBACK, failure_callback=FAILURE)
    world.start()
    world.engine.cancel(world.account, source)
    world.finish(source, 500)

    assert payloads(world) == []
