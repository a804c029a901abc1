"""Dead letters of the development server: what a retry keeps, overrides and refuses; and logs past their time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from destinations import Clients, Destination


def dead_letters(clients: Clients, destination: Destination, count: int, **options: Any) -> list[str]:
    """Publish messages that fail at once, and return the ids of their dead letters."""
    url = destination.answer("/dead", *[500] * count)
    for _ in range(count):
        published: Any = clients.sdk.message.publish(url=url, retries=0, **options)
        clients.wait_for_state(published.message_id, "FAILED")
    return [letter.dlq_id for letter in clients.sdk.dlq.list().messages]


def test_retry_keeps_queue_group_and_labels(clients: Clients, destination: Destination) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.answer("/a", 500), "name": "one"}])
    published: Any = clients.sdk.message.enqueue(queue="q", url_group="g", retries=0, label="l", body="b")
    clients.wait_for_state(published[0].message_id, "FAILED")
    (letter,) = clients.sdk.dlq.list(filter={"queue": "q", "url_group": "g", "label": "l"}).messages
    clients.sdk.queue.pause("q")

    answer = clients.http.post(f"/v2/dlq/retry/{letter.dlq_id}", headers={"Upstash-Retries": "5"})

    assert answer.status_code == 201
    message = clients.http.get(f"/v2/messages/{answer.json()['messageId']}").json()
    kept = ("queueName", "topicName", "endpointName", "label", "body", "maxRetries")
    assert [message[name] for name in kept] == ["q", "g", "one", "l", "b", 5]
    assert message["messageId"] != published[0].message_id
    assert clients.sdk.dlq.list().messages == []
    clients.sdk.queue.resume("q")
    again = destination.wait_for(2)[1]
    assert (again.headers["upstash-topic-name"], again.body) == ("g", b"b")


def test_retry_of_a_message_whose_queue_is_gone_creates_the_queue_anew(
    clients: Clients, destination: Destination
) -> None:
    published: Any = clients.sdk.message.enqueue(queue="q", url=destination.answer("/a", 500), retries=0)
    clients.wait_for_state(published.message_id, "FAILED")
    (letter,) = clients.sdk.dlq.list().messages
    clients.sdk.queue.delete("q")

    clients.http.post(f"/v2/dlq/retry/{letter.dlq_id}")

    destination.wait_for(2)
    assert clients.sdk.queue.get("q").parallelism == 1


def test_ids_in_the_body_are_all_that_is_retried_or_deleted(clients: Clients, destination: Destination) -> None:
    first, second, third = dead_letters(clients, destination, 3)

    nothing = clients.http.post("/v2/dlq/retry", json={"dlqIds": []})
    retried = clients.http.post("/v2/dlq/retry", json={"dlqIds": [first, first, "1-1"]})
    deleted = clients.http.request("DELETE", "/v2/dlq", json={"dlqIds": [second, second]})

    assert (nothing.status_code, nothing.json()) == (201, {"responses": [], "cursor": ""})
    assert len(retried.json()["responses"]) == 1
    assert deleted.json() == {"deleted": 1}
    assert [letter.dlq_id for letter in clients.sdk.dlq.list().messages] == [third]


def test_dead_letters_are_retried_by_filter_a_page_at_a_time(clients: Clients, destination: Destination) -> None:
    dead_letters(clients, destination, 3, label="l")
    failed: Any = clients.sdk.message.publish(url=destination.answer("/other", 500), retries=0)
    clients.wait_for_state(failed.message_id, "FAILED")

    first = clients.http.post("/v2/dlq/retry?label=l&count=2&responseStatus=500").json()
    assert (len(first["responses"]), first["cursor"] != "") == (2, True)
    second = clients.http.post("/v2/dlq/retry", params={"label": "l", "count": 2, "cursor": first["cursor"]}).json()
    assert (len(second["responses"]), second["cursor"]) == (1, "")

    (left,) = clients.sdk.dlq.list().messages
    assert left.message_id == failed.message_id


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/v2/dlq/retry", {"Upstash-Deduplication-Id": "d"}, None, 400),
        ("/v2/dlq/retry", {"Upstash-Content-Based-Deduplication": "true"}, None, 400),
        ("/v2/dlq/retry", {"Upstash-Cron": "* * * * *"}, None, 400),
        ("/v2/dlq/retry", {"Upstash-Queue-Name": "q"}, None, 400),
        ("/v2/dlq/retry", {"Upstash-Retries": "101"}, None, 412),
        ("/v2/dlq/retry", {}, {"dlqIds": "1-1"}, 400),
        ("/v2/dlq/retry", {}, {"ids": ["1-1"]}, 400),
        ("/v2/dlq/retry?lable=x", {}, None, 400),
        ("/v2/dlq/retry?host=x", {}, None, 400),
        ("/v2/dlq/retry/ID?label=x", {}, None, 400),
        ("/v2/dlq/retry/1-1", {}, None, 404),
        ("/v2/dlq/retry/", {}, None, 404),
    ],
)
def test_what_a_retry_cannot_do_is_refused_and_keeps_the_entry(
    clients: Clients, destination: Destination, path: str, headers: dict[str, str], body: Any, status: int
) -> None:
    (dlq_id,) = dead_letters(clients, destination, 1)

    answer = clients.http.post(path.replace("ID", dlq_id), headers=headers, json=body)

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert [letter.dlq_id for letter in clients.sdk.dlq.list().messages] == [dlq_id]


@pytest.mark.parametrize(
    "item",
    [
        {"destination": "http://host/", "queueName": "q"},
        {"destination": "http://host/", "headers": {"Upstash-Retries": 3}},
        {"destination": "http://host/", "headers": []},
        {"destination": "http://host/", "body": {}},
    ],
)
def test_batch_item_with_what_it_cannot_have_is_refused_with_the_batch(clients: Clients, item: Any) -> None:
    answer = clients.http.post("/v2/batch", content=json.dumps([{"destination": "http://host/"}, item]))

    assert (answer.status_code, answer.json()["error"].startswith("batch item 1: ")) == (400, True)
    assert clients.http.get("/v2/events").json() == {"events": []}


def test_header_of_a_batch_item_that_would_break_the_request_is_an_error_element(clients: Clients) -> None:
    items = [{"destination": "http://host/", "headers": {"Upstash-Forward-X": "a\r\nY: b"}}]

    (result,) = clients.http.post("/v2/batch", content=json.dumps(items)).json()

    assert "line break" in result["error"]
