"""URL groups of the development server, through the official SDK and plain HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from destinations import Clients, Destination, connected, running

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import PLANS


def endpoints(clients: Clients, name: str) -> list[tuple[str, str | None]]:
    return [(one.url, one.name) for one in clients.sdk.url_group.get(name).endpoints]


def test_message_to_a_group_goes_to_each_endpoint_on_its_own(clients: Clients, destination: Destination) -> None:
    first, second = destination.url("/a"), destination.answer("/b", 500)
    clients.sdk.url_group.upsert_endpoints("g", [{"url": first, "name": "one"}, {"url": second}])

    published: Any = clients.sdk.message.publish(url_group="g", body="b", retries=0)

    assert [(one.url, one.deduplicated) for one in published] == [(first, False), (second, False)]
    clients.wait_for_state(published[0].message_id, "DELIVERED")
    clients.wait_for_state(published[1].message_id, "FAILED")
    arrived = {arrival.path: arrival for arrival in destination.wait_for(2)}
    for path, one in zip(("/a", "/b"), published, strict=True):
        assert arrived[path].headers["upstash-topic-name"] == "g"
        assert arrived[path].headers["upstash-message-id"] == one.message_id
        assert arrived[path].body == b"b"
    named, unnamed = (clients.sdk.message.get(one.message_id) for one in published)
    assert (named.url_group, unnamed.url_group) == ("g", "g")
    shown = [clients.http.get(f"/v2/messages/{one.message_id}").json() for one in published]
    assert [one.get("endpointName") for one in shown] == ["one", None]
    (letter,) = clients.sdk.dlq.list(filter={"url_group": "g"}).messages
    assert letter.message_id == published[1].message_id
    assert clients.sdk.dlq.list(filter={"url_group": "other"}).messages == []


def test_upsert_changes_the_endpoint_of_the_same_name_or_url(clients: Clients) -> None:
    group = clients.sdk.url_group
    group.upsert_endpoints("g", [{"url": "http://a/", "name": "x"}, {"url": "http://b/"}])

    group.upsert_endpoints("g", [{"url": "http://a2/", "name": "x"}, {"url": "http://b/", "name": "y"}])
    assert endpoints(clients, "g") == [("http://a2/", "x"), ("http://b/", "y")]

    group.upsert_endpoints("g", [{"url": "http://b/"}, {"url": "http://c/"}])
    assert endpoints(clients, "g") == [("http://a2/", "x"), ("http://b/", "y"), ("http://c/", None)]

    group.upsert_endpoints("g", [{"url": "http://b/", "name": "x"}])
    assert endpoints(clients, "g") == [("http://b/", "x"), ("http://c/", None)]


def test_endpoints_are_removed_by_url_or_name_and_the_last_one_takes_the_group_along(clients: Clients) -> None:
    group = clients.sdk.url_group
    group.upsert_endpoints("g", [{"url": "http://a/", "name": "x"}, {"url": "http://b/"}, {"url": "http://c/"}])

    group.remove_endpoints("g", [{"name": "x"}, {"url": "http://unknown/"}])
    assert endpoints(clients, "g") == [("http://b/", None), ("http://c/", None)]
    group.remove_endpoints("g", [{"url": "http://b/", "name": "another"}])
    assert endpoints(clients, "g") == [("http://b/", None), ("http://c/", None)]

    group.remove_endpoints("g", [{"url": "http://b/"}, {"url": "http://c/"}])
    assert group.list() == []
    assert clients.http.get("/v2/topics/g").status_code == 404


def test_groups_are_listed_and_deleted_even_when_missing(clients: Clients) -> None:
    group = clients.sdk.url_group
    for name in ("one", "two"):
        group.upsert_endpoints(name, [{"url": "http://a/"}])

    group.delete("one")
    group.delete("one")
    group.remove_endpoints("one", [{"url": "http://a/"}])

    (left,) = group.list()
    assert left.name == "two"
    assert left.created_at == left.updated_at > 0


def test_messages_survive_the_deletion_of_their_group(clients: Clients, destination: Destination) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.answer("/a", 500)}])
    published: Any = clients.sdk.message.publish(url_group="g", retry_delay="1000 * 1000")
    clients.wait_for_state(published[0].message_id, "RETRY")

    clients.sdk.url_group.delete("g")

    clients.wait_for_state(published[0].message_id, "DELIVERED")
    assert destination.wait_for(2)[1].headers["upstash-topic-name"] == "g"


def test_duplicates_are_recognised_for_each_endpoint(clients: Clients) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://127.0.0.1:1/a"}])

    def publish(**options: str) -> tuple[int, list[Any]]:
        headers = {"Upstash-Delay": "1h", **options}
        answer = clients.http.post("/v2/publish/g", headers=headers, content="b")
        return answer.status_code, answer.json()

    for option in ({"Upstash-Deduplication-Id": "d"}, {"Upstash-Content-Based-Deduplication": "true"}):
        clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://127.0.0.1:1/a"}])
        status, (first,) = publish(**option)
        assert (status, first.get("deduplicated")) == (200, None)
        assert publish(**option) == (202, [{**first, "deduplicated": True}])

        clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://127.0.0.1:1/b"}])
        status, (again, new) = publish(**option)
        assert (status, again["deduplicated"], "deduplicated" in new) == (200, True, False)
        alone = clients.http.post(
            "/v2/publish/http://127.0.0.1:1/a", headers={**option, "Upstash-Delay": "1h"}, content="b"
        )
        assert alone.status_code == 200
        clients.sdk.url_group.delete("g")


def test_group_in_a_queue_keeps_the_order_of_its_endpoints(clients: Clients, destination: Destination) -> None:
    paths = ["/a", "/b", "/c"]
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.url(path)} for path in paths])

    clients.sdk.message.enqueue(queue="q", url_group="g")
    clients.sdk.message.enqueue(queue="q", url_group="g")

    assert [arrival.path for arrival in destination.wait_for(6)] == paths * 2


def test_batch_answers_a_group_with_a_list(clients: Clients) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://127.0.0.1:1/a"}, {"url": "http://127.0.0.1:1/b"}])
    delay = {"Upstash-Delay": "1h"}
    items = [
        {"destination": "g", "headers": delay, "queue": "q"},
        {"destination": "unknown"},
        {"destination": "http://127.0.0.1:1/c", "headers": delay},
    ]

    group, unknown, alone = clients.http.post("/v2/batch", content=json.dumps(items)).json()

    assert [one["url"] for one in group] == ["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"]
    assert "url group unknown not found" in unknown["error"]
    assert alone["url"] == "http://127.0.0.1:1/c"
    assert clients.sdk.queue.get("q").lag == 2


def test_callback_tells_group_and_endpoint(clients: Clients, destination: Destination) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.url("/a"), "name": "one"}])

    clients.sdk.message.publish(url_group="g", callback=destination.url("/callback"))

    callback = destination.wait_for(2)[1]
    body = json.loads(callback.body)
    assert (body["topicName"], body["endpointName"]) == ("g", "one")
    assert "upstash-topic-name" not in callback.headers


def test_default_headers_hold_for_every_publish_that_does_not_override_them(
    clients: Clients, destination: Destination
) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.url("/a")}])
    defaults = {
        "Upstash-Header-Forward": ["true"],
        "Upstash-Retries": "7",
        "Upstash-Label": ["one", "two"],
        "Upstash-Forward-X-Default": "d",
        "Content-Type": "text/default",
    }
    assert clients.http.patch("/v2/topics/g", json={"headers": defaults}).status_code == 200

    (first,) = clients.http.post("/v2/publish/g", headers={"X-Plain": "p"}, content="b").json()
    headers = {"Upstash-Retries": "2", "Content-Type": "text/own", "Upstash-Header-Forward": "false", "X-Plain": "p"}
    (second,) = clients.http.post("/v2/publish/g?upstash-label=three", headers=headers, content="b").json()

    by_id = {arrival.headers["upstash-message-id"]: arrival.headers for arrival in destination.wait_for(2)}
    assert by_id[first["messageId"]]["content-type"] == "text/default"
    assert by_id[first["messageId"]]["x-plain"] == "p"
    assert by_id[second["messageId"]]["content-type"] == "text/own"
    assert by_id[second["messageId"]]["x-default"] == "d"
    assert "x-plain" not in by_id[second["messageId"]]
    shown = [clients.http.get(f"/v2/messages/{one['messageId']}").json() for one in (first, second)]
    assert [(one["maxRetries"], one["labels"]) for one in shown] == [(7, ["one", "two"]), (2, ["three"])]

    clients.http.patch("/v2/topics/g", json={"headers": {}})
    (third,) = clients.http.post("/v2/publish/g", content="b").json()
    assert clients.http.get(f"/v2/messages/{third['messageId']}").json()["maxRetries"] == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/topics/g/endpoints", {"endpoints": []}, 400),
        ("POST", "/v2/topics/g/endpoints", {"endpoints": [{"name": "x"}]}, 400),
        ("POST", "/v2/topics/g/endpoints", {"endpoints": [{"url": "other-group"}]}, 400),
        ("POST", "/v2/topics/g/endpoints", {"endpoints": [{"url": "http://a/", "nmae": "x"}]}, 400),
        ("POST", "/v2/topics/g/endpoints", {"endpoints": [{"url": 1}]}, 400),
        ("POST", "/v2/topics/g/endpoints", {"endpoints": {"url": "http://a/"}}, 400),
        ("POST", "/v2/topics/g/endpoints", [], 400),
        ("POST", "/v2/topics/a%20b/endpoints", {"endpoints": [{"url": "http://a/"}]}, 400),
        ("DELETE", "/v2/topics/g/endpoints", {}, 400),
        ("DELETE", "/v2/topics/g/endpoints", {"endpoints": [{}]}, 400),
        ("PATCH", "/v2/topics/g", {"headers": {"Upstash-Retries": "many"}}, 400),
        ("PATCH", "/v2/topics/g", {"headers": {"Upstash-Retries": 3}}, 400),
        ("PATCH", "/v2/topics/g", {"headers": {"Upstash-Cron": "* * * * *"}}, 400),
        ("PATCH", "/v2/topics/g", {"headers": {"Upstash-Forward-X": "a\nb"}}, 400),
        ("PATCH", "/v2/topics/g", {"header": {}}, 400),
        ("PATCH", "/v2/topics/g", {"headers": {"Upstash-Retries": "101"}}, 412),
        ("PATCH", "/v2/topics/none", {"headers": {}}, 404),
        ("DELETE", "/v2/topics/", None, 404),
        ("PUT", "/v2/topics/g", None, 404),
        ("POST", "/v2/publish/none", None, 404),
        ("POST", "/v2/enqueue/q/none", None, 404),
        ("POST", "/v2/publish/g?a=b", None, 400),
        ("GET", "/v2/topics?name=g", None, 400),
        ("DELETE", "/v2/topics/g?url=http://127.0.0.1:1/x", None, 400),
    ],
)
def test_what_cannot_be_done_is_a_json_error_and_changes_nothing(
    clients: Clients, method: str, path: str, body: Any, status: int
) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://127.0.0.1:1/x"}])
    before = clients.http.get("/v2/topics").json()

    answer = clients.http.request(method, path, json=body)

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert clients.http.get("/v2/topics").json() == before


def test_plan_limits_groups_and_their_endpoints() -> None:
    with running(plan=PLANS["free"]) as clients:
        hundred = [{"url": f"http://host/{number}"} for number in range(100)]
        clients.sdk.url_group.upsert_endpoints("g", hundred)  # type: ignore[arg-type]

        more = clients.http.post("/v2/topics/g/endpoints", json={"endpoints": [{"url": "http://host/100"}]})
        another = clients.http.post("/v2/topics/h/endpoints", json={"endpoints": [{"url": "http://host/"}]})
        same = clients.http.post("/v2/topics/g/endpoints", json={"endpoints": [{"url": "http://host/7", "name": "n"}]})

        assert [answer.status_code for answer in (more, another, same)] == [412, 412, 200]
        assert len(clients.sdk.url_group.get("g").endpoints) == 100


def test_groups_and_their_messages_survive_a_restart(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as base_url, connected(base_url) as clients:
        clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://b/", "name": "n"}, {"url": "http://a/"}])
        clients.sdk.url_group.upsert_endpoints("gone", [{"url": "http://b/"}])
        clients.http.patch("/v2/topics/g", json={"headers": {"Upstash-Retries": "7"}})
        clients.sdk.url_group.delete("gone")
        group = clients.http.get("/v2/topics/g").json()
        published: Any = clients.sdk.message.publish(url_group="g", delay="1h")
        message = clients.http.get(f"/v2/messages/{published[0].message_id}").json()

    with running_server(settings) as base_url, connected(base_url) as clients:
        assert clients.http.get("/v2/topics").json() == [group]
        assert clients.http.get(f"/v2/messages/{published[0].message_id}").json() == message
        assert (message["topicName"], message["endpointName"], message["maxRetries"]) == ("g", "n", 7)


def test_users_have_groups_of_their_own(clients: Clients) -> None:
    clients.sdk.url_group.upsert_endpoints("g", [{"url": "http://a/"}])
    other = "eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9"

    with connected(str(clients.http.base_url), other) as stranger:
        assert stranger.sdk.url_group.list() == []
        assert stranger.http.post("/v2/publish/g").status_code == 404
