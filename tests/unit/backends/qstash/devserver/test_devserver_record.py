"""Recorded deliveries: bounds, and that no secret is shown."""

from __future__ import annotations

import json
from typing import Any

from multidict import CIMultiDict

from queuebridge.backends.qstash.devserver.admin.record import Record, delivery_view
from queuebridge.backends.qstash.devserver.callback import callback_body
from queuebridge.backends.qstash.devserver.messages import Message, Outcome, Redaction
from queuebridge.backends.qstash.protocol import DEV_USERS

USER = DEV_USERS[0].name


def recorded(message: Message, headers: dict[str, str], outcome: Outcome, fault: str | None = None) -> dict[str, Any]:
    record = Record()
    record.add(1.5, message, CIMultiDict(headers), outcome, fault)
    (found,) = record.of(USER, newest_first=False)
    return delivery_view(found)


def ids(record: Record) -> list[int]:
    return [delivery.seq for delivery in record.of(USER, newest_first=False)]


def test_oldest_is_forgotten_beyond_the_number(world: Any) -> None:
    record, message = Record(max_deliveries=2), world.publish()
    for _ in range(4):
        record.add(1.0, message, CIMultiDict(), Outcome(status=200), None)

    assert ids(record) == [3, 4]
    assert [delivery.seq for delivery in record.of(USER, newest_first=True)] == [4, 3]


def test_oldest_is_forgotten_beyond_the_size(world: Any) -> None:
    record, message = Record(max_bytes=30_000), world.publish()
    for size in (10_000, 10_000, 12_000, 1):
        record.add(1.0, message, CIMultiDict(), Outcome(status=200, body=b"x" * size), None)

    assert ids(record) == [2, 3, 4]
    record.add(1.0, message, CIMultiDict(), Outcome(status=200, body=b"x" * 40_000), None)
    assert ids(record) == []


def test_size_is_free_again_after_forgetting(world: Any) -> None:
    record, message = Record(max_bytes=15_000), world.publish()
    record.add(1.0, message, CIMultiDict(), Outcome(status=200, body=b"x" * 9_000), None)

    assert record.clear("somebody else") == 0
    assert record.clear(USER) == 1

    record.add(1.0, message, CIMultiDict(), Outcome(status=200, body=b"x" * 9_000), None)
    assert ids(record) == [2]


def test_delivery_is_shown_with_its_request_and_answer(world: Any) -> None:
    message = world.publish(method="PUT", labels=("l",))

    found = recorded(message, {"X-Mine": "1"}, Outcome(status=404, headers=(("a-b", "c"),), body=b"\xff"), "duplicate")

    assert found == {
        "id": "1",
        "time": 1500,
        "messageId": message.id,
        "retried": 0,
        "method": "PUT",
        "url": "http://host/x",
        "header": {"X-Mine": ["1"]},
        "body": "body",
        "labels": ["l"],
        "fault": "duplicate",
        "response": {"status": 404, "header": {"A-B": ["c"]}, "bodyBase64": "/w=="},
    }


def test_attempt_without_an_answer_shows_the_error(world: Any) -> None:
    found = recorded(world.publish(), {}, Outcome(error="refused"))

    assert found["error"] == "refused"
    assert "response" not in found


def test_credentials_are_shown_nowhere(world: Any) -> None:
    message = world.publish("http://user:p@s3cret@host/a@b?x=1&api_key=s3cret&y=2")
    names = ("Authorization", "Cookie", "X-Api-Key", "Upstash-Signature", "X-Hub-Token", "Proxy-Authorization")

    found = recorded(message, dict.fromkeys(names, "s3cret"), Outcome(status=200, headers=(("Set-Cookie", "s3cret"),)))

    assert "s3cret" not in json.dumps(found)
    assert found["url"] == "http://REDACTED@host/a@b?x=1&api_key=REDACTED&y=2"
    assert found["header"]["Authorization"] == ["REDACTED"]


def test_body_that_is_to_be_redacted_is_shown_as_its_hash_only(world: Any) -> None:
    message = world.publish(redaction=Redaction(body=True))

    found = recorded(message, {"X-Mine": "1"}, Outcome(status=200, body=b"you sent: body"))

    assert found["body"].startswith("REDACTED:")
    assert found["response"]["body"].startswith("REDACTED:")
    assert found["header"] == {"X-Mine": ["1"]}


def test_headers_that_are_to_be_redacted_are_shown_as_their_hash_only(world: Any) -> None:
    some = recorded(world.publish(redaction=Redaction(headers=frozenset({"x-mine"}))), {"X-Mine": "1", "B": "2"}, OK)
    every = recorded(world.publish(redaction=Redaction(all_headers=True)), {"X-Mine": "1", "B": "2"}, OK)

    assert some["header"]["X-Mine"][0].startswith("REDACTED:")
    assert some["header"]["B"] == ["2"]
    assert all(values[0].startswith("REDACTED:") for values in every["header"].values())


OK = Outcome(status=200)


def test_callback_shows_no_credentials_of_its_message(world: Any) -> None:
    source = world.publish(
        "http://u:s3cret@host/x", headers=(("Authorization", "s3cret"), ("X-Mine", "hidden"), ("B", "2"))
    )
    answer = Outcome(status=200, headers=(("Set-Cookie", "s3cret"),))
    callback = world.publish(redaction=Redaction(headers=frozenset({"x-mine"})))
    callback.body = callback_body(source, answer, dlq_id=None, max_body_bytes=100)

    found = recorded(callback, {}, OK)

    assert "hidden" not in found["body"]
    assert "s3cret" not in found["body"]
    assert json.loads(found["body"])["sourceHeader"]["B"] == ["2"]
