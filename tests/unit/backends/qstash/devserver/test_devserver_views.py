from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.filters import DLQ_FILTERS, MESSAGE_FILTERS, Query
from queuebridge.backends.qstash.devserver.history import History
from queuebridge.backends.qstash.devserver.messages import FlowControl, LogState, MessageSpec, Redaction
from queuebridge.backends.qstash.devserver.views import dead_letter_view, log_view, message_view


def entries(world: Any) -> list[Any]:
    return list(world.account.history.oldest_first())


def test_message_object_leaves_out_what_is_absent(world: Any) -> None:
    message = world.publish()

    assert message_view(message) == {
        "messageId": message.id,
        "url": "http://host/x",
        "method": "POST",
        "maxRetries": 3,
        "notBefore": message.not_before_ms,
        "createdAt": message.created_ms,
        "body": "body",
    }


def test_message_object_shows_what_was_set(world: Any) -> None:
    message = world.publish(
        headers=(("x-a", "1"), ("X-A", "2")),
        labels=("one", "two"),
        flow=FlowControl(key="k", rate=5),
        queue="q",
        retry_delay="1000",
        callback=MessageSpec(url="http://cb/", headers=(("X-C", "1"),)),
    )

    shown = message_view(message)

    assert shown["header"] == {"X-A": ["1", "2"]}
    assert (shown["label"], shown["labels"]) == ("one", ["one", "two"])
    assert (shown["flowControlKey"], shown["rate"], shown["period"]) == ("k", 5, 1)
    assert "parallelism" not in shown
    assert (shown["queueName"], shown["retryDelayExpression"]) == ("q", "1000")
    assert (shown["callback"], shown["callbackHeader"]) == ("http://cb/", {"X-C": ["1"]})


def test_body_that_is_no_text_is_shown_as_base64(world: Any) -> None:
    message = world.publish()
    message.body = b"\xff\x00"

    shown = message_view(message)

    assert shown["bodyBase64"] == "/wA="
    assert "body" not in shown


def test_redacted_fields_are_hashes_everywhere(world: Any) -> None:
    redaction = Redaction(body=True, headers=frozenset({"authorization"}))
    message = world.publish(headers=(("Authorization", "secret"), ("X", "plain")), redaction=redaction)

    body_hash = "REDACTED:" + sha256(b"body").hexdigest()
    for shown in (message_view(message), log_view(entries(world)[0], two_ls=False)):
        assert shown["body"] == body_hash
        assert shown["header"] == {
            "Authorization": ["REDACTED:" + sha256(b"secret").hexdigest()],
            "X": ["plain"],
        }


def test_dead_letter_without_an_answer_has_status_zero(world: Any) -> None:
    message = world.publish(max_retries=0)
    world.start()
    world.finish(message, 0, error="refused")
    (letter,) = world.account.dead_letters.values()

    shown = dead_letter_view(letter)

    assert (shown["dlqId"], shown["responseStatus"]) == (letter.dlq_id, 0)
    assert "responseBody" not in shown


def test_log_entry_of_an_error_shows_the_answer_in_both_spellings(world: Any) -> None:
    message = world.publish(retry_delay="1000")
    world.start()
    world.finish(message, 500, headers=(("x-why", "z"),), body=b"no")
    error, retry = entries(world)[-2:]

    shown = log_view(error, two_ls=False)

    assert (shown["state"], shown["responseStatus"], shown["responseBody"]) == ("ERROR", 500, "bm8=")
    assert shown["responseHeader"] == shown["responseHeaders"] == {"X-Why": ["z"]}
    assert shown["retryDelayExpr"] == shown["retryDelayExpression"] == "1000"
    assert shown["body"] == "Ym9keQ=="
    assert log_view(retry, two_ls=False)["nextDeliveryTime"] == int(world.clock.now * 1000) + 1000


def test_cancelled_is_spelt_for_each_endpoint(world: Any) -> None:
    message = world.publish(delay=5)
    world.engine.cancel(world.account, message)
    last = entries(world)[-1]

    assert log_view(last, two_ls=False)["state"] == "CANCELED"
    assert log_view(last, two_ls=True)["state"] == "CANCELLED"


def test_history_drops_the_oldest_beyond_its_bounds(world: Any) -> None:
    message = world.publish()
    by_count, by_bytes = History(max_entries=2), History(max_bytes=450)

    for history in (by_count, by_bytes):
        for moment in range(3):
            history.add(moment, LogState.ACTIVE, message)

        assert [entry.time_ms for entry in history.newest_first()] == [2, 1]


def test_unknown_filter_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        Query("lable=a", MESSAGE_FILTERS)

    assert caught.value.status == 400


@pytest.mark.parametrize("name", ["host", "path"])
def test_dead_letters_cannot_be_filtered_by_host_or_path(name: str) -> None:
    with pytest.raises(Refusal):
        Query(f"{name}=x", DLQ_FILTERS)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("", True),
        ("label=a", True),
        ("label=z", False),
        ("label=z&label=b", True),
        ("label=z,a", True),
        ("label=a&queueName=q", True),
        ("label=a&queueName=other", False),
        ("label=", False),
        ("host=host:81", True),
        ("host=host", False),
        ("path=/x/y", True),
        ("url=http%3A%2F%2Fhost%3A81%2Fx%2Fy%3Fq%3D1%2C2", True),
        ("flowControlKey=k", True),
        ("callerIP=10.0.0.1", True),
        ("scheduleId=s", False),
        ("qstash_token=t", True),
    ],
)
def test_filters_are_alternatives_inside_and_conditions_among_each_other(
    world: Any, query: str, *, matches: bool
) -> None:
    message = world.publish(
        "http://host:81/x/y?q=1,2",
        labels=("a", "b"),
        queue="q",
        flow=FlowControl(key="k", rate=1),
        caller_ip="10.0.0.1",
    )

    assert Query(query, MESSAGE_FILTERS).matches(message) is matches


@pytest.mark.parametrize("query", ["count=x", "count=0", "count=501", "count=-1", "count="])
def test_count_outside_its_bounds_is_refused(query: str) -> None:
    with pytest.raises(Refusal):
        Query(query, frozenset({"count"})).integer("count", 1, low=1, high=500)
