"""What happens where features of the development server meet, over HTTP."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from destinations import Clients, Destination, connected
from qstash.errors import QStashError

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

SECRET = "s3cret-of-the-test"


@pytest.fixture
def clients() -> Iterator[Clients]:
    with running_server(ServerSettings(port=0)) as base_url, connected(base_url) as found:
        yield found


def set_time(clients: Clients, **words: Any) -> None:
    answer = clients.http.post("/_queuebridge/time", json=words, timeout=60)
    assert answer.status_code == 200, answer.text


def wait_until_idle(clients: Clients) -> None:
    assert clients.http.post("/_queuebridge/idle", timeout=60).status_code == 200


def bodies(destination: Destination, path: str) -> list[Any]:
    return [json.loads(arrival.body) for arrival in list(destination.arrivals) if arrival.path == path]


def test_hour_of_minutely_triggers_with_retries_and_callbacks_takes_place_in_a_moment(
    clients: Clients, destination: Destination
) -> None:
    set_time(clients, move_to=(time.time() // 60 + 1) * 60 + 30)
    set_time(clients, stop=True)
    clients.sdk.schedule.create(
        destination=destination.answer("/tick", *[500] * 10),
        cron="* * * * *",
        schedule_id="s",
        retries=10,
        retry_delay="100000",
        callback=destination.url("/told"),
        failure_callback=destination.url("/failed"),
    )

    set_time(clients, advance="1h")

    ticks = Counter(
        arrival.headers["upstash-message-id"] for arrival in destination.arrivals if arrival.path == "/tick"
    )
    told = bodies(destination, "/told")
    assert (len(ticks), sum(ticks.values()), len(told)) == (60, 70, 70)
    assert {callback["scheduleId"] for callback in told} == {"s"}
    assert Counter(callback["sourceMessageId"] for callback in told) == ticks
    assert Counter(callback["status"] for callback in told) == {200: 60, 500: 10}
    assert bodies(destination, "/failed") == []


def test_schedule_to_a_group_takes_its_default_headers_and_messages_outlive_the_group(
    clients: Clients, destination: Destination
) -> None:
    set_time(clients, stop=True)
    clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.url("/1")}, {"url": destination.url("/2")}])
    defaults = {"Upstash-Retries": ["0"], "Upstash-Forward-X-Default": ["yes"]}
    answer = clients.http.patch("/v2/topics/g", json={"headers": defaults})
    assert answer.status_code == 200, answer.text
    clients.sdk.schedule.create(destination="g", cron="* * * * *", schedule_id="s", headers={"X-Own": "own"})
    set_time(clients, advance="1m")
    arrivals = {arrival.path: arrival.headers for arrival in destination.wait_for(2)}
    assert {path: (headers["x-default"], headers["x-own"]) for path, headers in arrivals.items()} == {
        "/1": ("yes", "own"),
        "/2": ("yes", "own"),
    }
    delayed: Any = clients.sdk.message.publish(url_group="g", delay="2m")

    with pytest.raises(QStashError, match="destination of schedule s"):
        clients.sdk.url_group.delete("g")
    clients.sdk.schedule.delete("s")
    clients.sdk.url_group.delete("g")
    set_time(clients, advance="3m")

    # In any order: messages to the endpoints of a group are sent at the same time.
    assert sorted((arrival.path, arrival.headers["upstash-message-id"]) for arrival in destination.arrivals[2:]) == [
        ("/1", delayed[0].message_id),
        ("/2", delayed[1].message_id),
    ]


def test_redacted_values_are_shown_nowhere(clients: Clients, destination: Destination) -> None:
    for path in ("/good", "/bad"):
        clients.http.post(
            f"/v2/publish/{destination.answer(path, 500)}",
            content=SECRET,
            headers={
                "Upstash-Redact-Fields": "body,header",
                "Upstash-Forward-X-Mine": SECRET,
                "Upstash-Callback": destination.answer("/told", *[500] * 5),
                "Upstash-Callback-Forward-X-Mine": SECRET,
                "Upstash-Callback-Retries": "0",
                "Upstash-Failure-Callback": destination.url("/failed"),
                "Upstash-Failure-Callback-Forward-X-Mine": SECRET,
                "Upstash-Retries": "1" if path == "/good" else "0",
                "Upstash-Retry-Delay": "1",
            },
        ).raise_for_status()
    headers = {"Upstash-Cron": "@yearly", "Upstash-Redact-Fields": "body,header", "Upstash-Forward-X-Mine": SECRET}
    url = destination.url("/x")
    clients.http.post(f"/v2/schedules/{url}", content=SECRET, headers=headers).raise_for_status()
    set_time(clients, advance="1m")

    delivered = [arrival for arrival in destination.arrivals if arrival.body == SECRET.encode()]
    assert [arrival.headers["x-mine"] for arrival in delivered] == [SECRET] * 3
    assert len(destination.arrivals) == 3 + 3 + 1

    rows = clients.http.get("/_queuebridge/overview/messages").json()["messages"]
    letters = clients.http.get("/v2/dlq").json()["messages"]
    paths = ["/v2/events", "/v2/logs", "/v2/dlq", "/v2/schedules"]
    paths += ["/_queuebridge/deliveries", "/_queuebridge/overview/dlq"]
    paths += [f"/v2/messages/{row['messageId']}" for row in rows]
    paths += [f"/_queuebridge/overview/messages/{row['messageId']}" for row in rows]
    paths += [f"/v2/dlq/{letter['dlqId']}" for letter in letters]
    assert (len(rows), len(letters)) == (6, 4)
    encoded = b"czNjcmV0LW9mLXRoZS10ZXN0"  # SECRET in base64
    shown = {path: clients.http.get(path).raise_for_status().content for path in paths}
    assert [path for path, content in shown.items() if SECRET.encode() in content or encoded in content] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "time"),
        ("POST", "idle"),
        ("POST", "faults"),
        ("DELETE", "faults"),
        ("DELETE", "deliveries"),
        ("PUT", "overview"),
    ],
)
def test_read_only_token_changes_nothing_below_our_own_paths(clients: Clients, method: str, path: str) -> None:
    for place in ({"headers": {"Authorization": f"Bearer {DEFAULT_DEV_USER.read_only_token}"}},
                  {"params": {"qstash_token": DEFAULT_DEV_USER.read_only_token}}):  # fmt: skip
        answer = httpx.request(
            method, f"{clients.http.base_url}/_queuebridge/{path}", json={"stop": True}, trust_env=False, **place
        )
        assert answer.status_code in {401, 403}
    read_only = {"Authorization": f"Bearer {DEFAULT_DEV_USER.read_only_token}"}
    for readable in ("time", "faults", "deliveries", "overview", "overview/messages"):
        assert clients.http.get(f"/_queuebridge/{readable}", headers=read_only).status_code == 200
    assert not clients.http.get("/_queuebridge/time").json()["stopped"]


def test_everything_at_once_survives_a_restart(tmp_path: Path, destination: Destination) -> None:
    def all_of_it(clients: Clients) -> dict[str, Any]:
        found = {
            name: clients.http.get(f"/v2/{name}").json() for name in ("queues", "schedules", "topics", "dlq", "keys")
        }
        flow = clients.http.get("/v2/flowControl/k").json()
        found["flow"] = {name: flow[name] for name in ("waitListSize", "parallelismMax", "isPaused")}
        return found

    run = {"Upstash-Workflow-RunId": "wfr_1", "Upstash-Workflow-Url": destination.url("/run")}
    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as base_url, connected(base_url) as clients:
        http, sdk = clients.http, clients.sdk
        sdk.queue.upsert("q", paused=True)
        sdk.url_group.upsert_endpoints("g", [{"url": destination.url("/g1")}, {"url": destination.url("/g2")}])
        http.post("/v2/flowControl/k/pause").raise_for_status()
        http.post("/v2/flowControl/k/pin", params={"parallelism": "1"}).raise_for_status()
        limits = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "parallelism=9"}
        http.post("/v2/enqueue/q/g", headers=limits).raise_for_status()
        http.post(f"/v2/publish/{destination.url('/k')}", headers=limits).raise_for_status()
        sdk.schedule.create(destination="g", cron="@hourly", queue="q", schedule_id="s", delay="1m")
        dead = destination.answer("/dead", 500)
        sdk.message.publish(url=dead, retries=0, failure_callback=destination.url("/failed"))
        destination.wait_for(2)
        url = destination.url("/run")
        first = {"destination": url, "headers": run | {"Upstash-Workflow-Init": "true"}, "body": "p"}
        sleep = {
            "destination": url,
            "headers": run | limits | {"Upstash-Delay": "5h"},
            "body": '{"stepId": 1, "stepName": "night"}',
        }
        http.post("/v2/batch", json=[first, sleep]).raise_for_status()
        destination.wait_for(3)
        wait_until_idle(clients)
        before = all_of_it(clients)

    with running_server(settings) as base_url, connected(base_url) as clients:
        assert all_of_it(clients) == before
        set_time(clients, stop=True)
        set_time(clients, move_to=(time.time() // 3600 + 6) * 3600 + 1800)
        assert len(destination.arrivals) == 3
        assert clients.sdk.queue.get("q").lag == 2 + 6 * 2
        assert clients.http.get("/v2/flowControl/k").json()["waitListSize"] == 2

        clients.sdk.queue.resume("q")
        clients.http.post("/v2/flowControl/k/resume").raise_for_status()
        set_time(clients, advance="1m")
        clients.http.post("/v2/dlq/retry").raise_for_status()
        wait_until_idle(clients)

        paths = Counter(arrival.path for arrival in destination.arrivals)
        assert paths == {"/g1": 7, "/g2": 7, "/k": 1, "/dead": 2, "/failed": 1, "/run": 2}
        history = [json.loads(arrival.body) for arrival in destination.arrivals if arrival.path == "/run"][-1]
        assert [len(element["body"]) > 0 for element in history] == [True, True]
        (recorded,) = clients.http.get("/_queuebridge/deliveries", params={"url": destination.url("/run")}).json()[
            "deliveries"
        ]
        assert json.loads(recorded["body"]) == history
