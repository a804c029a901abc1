"""Queues of the development server, through the official SDK and plain HTTP."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from destinations import Clients, Destination, connected, running
from processes import ChildProcess, Spawner

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import PLANS


def test_queue_is_created_changed_listed_and_deleted(clients: Clients) -> None:
    queue = clients.sdk.queue
    queue.upsert("a", parallelism=3)
    queue.upsert("b", paused=True)

    found = {one.name: (one.parallelism, one.paused, one.lag) for one in queue.list()}
    assert found == {"a": (3, False, 0), "b": (1, True, 0)}
    created = queue.get("b").created_at

    queue.upsert("b", parallelism=2)
    changed = queue.get("b")
    assert (changed.parallelism, changed.paused, changed.created_at) == (2, False, created)
    assert changed.updated_at >= created > 0

    queue.delete("b")
    queue.delete("b")
    assert [one.name for one in queue.list()] == ["a"]


def test_queue_is_created_with_a_slash_at_the_end_of_the_path(clients: Clients) -> None:
    answer = clients.http.post("/v2/queues/", json={"queueName": "a", "parallelism": 2})

    assert answer.status_code == 200
    assert clients.sdk.queue.get("a").parallelism == 2
    assert len(clients.http.get("/v2/queues/").json()) == 1


def test_paused_queue_delivers_when_it_is_resumed(clients: Clients, destination: Destination) -> None:
    queue = clients.sdk.queue
    queue.upsert("q")
    queue.pause("q")
    queue.pause("q")
    for path in ("/1", "/2"):
        clients.sdk.message.enqueue(queue="q", url=destination.url(path))
    clients.sdk.message.publish(url=destination.url("/free"))
    assert [arrival.path for arrival in destination.wait_for(1)] == ["/free"]
    assert (queue.get("q").paused, queue.get("q").lag) == (True, 2)

    queue.resume("q")
    queue.resume("q")

    assert [arrival.path for arrival in destination.wait_for(3)] == ["/free", "/1", "/2"]


def test_order_is_kept_through_failures_retries_and_callbacks(clients: Clients, destination: Destination) -> None:
    for path, statuses in (("/1", [500, 500]), ("/2", [500, 500, 500]), ("/3", [])):
        clients.sdk.message.enqueue(
            queue="q",
            url=destination.answer(path, *statuses),
            retries=2,
            callback=destination.url("/callback"),
            failure_callback=destination.url("/failed"),
        )

    # A callback of an attempt may arrive together with the next attempt, but the next message waits for all.
    sources: list[str] = []
    for arrival in destination.wait_for(15):
        body = json.loads(arrival.body) if arrival.body else None
        sources.append(arrival.path if body is None else body["url"].removeprefix(destination.base_url))
    assert sources == ["/1"] * 6 + ["/2"] * 7 + ["/3"] * 2


def test_raised_parallelism_lets_waiting_messages_go(clients: Clients, destination: Destination) -> None:
    for path in ("/1", "/2", "/3"):
        clients.sdk.message.enqueue(queue="q", url=destination.hold(path))
    assert [arrival.path for arrival in destination.wait_for(1)] == ["/1"]

    clients.sdk.queue.upsert("q", parallelism=3)

    assert {arrival.path for arrival in destination.wait_for(3)} == {"/1", "/2", "/3"}


def test_deleting_a_queue_drops_its_messages_and_spares_the_one_in_flight(
    clients: Clients, destination: Destination
) -> None:
    in_flight: Any = clients.sdk.message.enqueue(queue="q", url=destination.hold("/1"))
    waiting: Any = clients.sdk.message.enqueue(queue="q", url=destination.url("/2"))
    destination.wait_for(1)

    clients.sdk.queue.delete("q")
    destination.let_go.set()

    assert clients.wait_for_state(in_flight.message_id, "DELIVERED")
    assert clients.states(waiting.message_id) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    clients.sdk.message.enqueue(queue="q", url=destination.url("/3"))
    assert [arrival.path for arrival in destination.wait_for(2)] == ["/1", "/3"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/queues", {"queueName": "a b"}, 400),
        ("POST", "/v2/queues", {"queueName": ""}, 400),
        ("POST", "/v2/queues", {"queueName": 1}, 400),
        ("POST", "/v2/queues", {}, 400),
        ("POST", "/v2/queues", [], 400),
        ("POST", "/v2/queues", {"queueName": "a", "parallelism": 0}, 400),
        ("POST", "/v2/queues", {"queueName": "a", "parallelism": True}, 400),
        ("POST", "/v2/queues", {"queueName": "a", "parallelism": 1.5}, 400),
        ("POST", "/v2/queues", {"queueName": "a", "paused": "no"}, 400),
        ("POST", "/v2/queues", {"queueName": "a", "paralelism": 2}, 400),
        ("POST", "/v2/queues", {"queueName": "a", "parallelism": 11}, 412),
        ("POST", "/v2/queues/a%20b/pause", None, 400),
        ("POST", "/v2/queues/none/pause", None, 404),
        ("POST", "/v2/queues/none/resume", None, 404),
        ("POST", "/v2/queues/none/stop", None, 404),
        ("GET", "/v2/queues/none", None, 404),
        ("GET", "/v2/queues/a%20b", None, 400),
        ("DELETE", "/v2/queues/", None, 404),
        ("GET", "/v2/queues?name=none", None, 400),
        ("DELETE", "/v2/queues/none?count=1", None, 400),
        ("PUT", "/v2/queues/none", None, 404),
    ],
)
def test_what_cannot_be_done_is_a_json_error(
    clients: Clients, method: str, path: str, body: Any, status: int
) -> None:
    answer = clients.http.request(method, path, json=body)

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert clients.sdk.queue.list() == []


def test_plan_limits_queues_and_their_parallelism() -> None:
    with running(plan=PLANS["free"]) as clients:
        for number in range(9):
            clients.sdk.queue.upsert(f"q{number}", parallelism=2)
        items = [{"destination": "http://127.0.0.1:1/", "queue": name} for name in ("q8", "new", "new", "more")]

        batch = clients.http.post("/v2/batch", content=json.dumps(items)).json()
        another = clients.http.post("/v2/queues", json={"queueName": "more"})
        same = clients.http.post("/v2/queues", json={"queueName": "q1", "paused": True})
        parallel = clients.http.post("/v2/queues", json={"queueName": "q1", "parallelism": 3})

        assert [next(iter(one)) for one in batch] == ["messageId", "messageId", "messageId", "error"]
        assert [answer.status_code for answer in (another, same, parallel)] == [412, 200, 412]
        assert parallel.json() == {"error": "quota maxParallelism exceeded, current limit: 2"}
        assert len(clients.sdk.queue.list()) == 10


def test_order_survives_a_kill_in_the_middle_of_a_queue(
    spawn: Spawner, tmp_path: Path, destination: Destination
) -> None:
    def start() -> str:
        command = [sys.executable, "-m", "queuebridge", "devserver", "--port", "0", "--db", str(tmp_path / "db")]
        processes.append(spawn(command, name="devserver"))
        return processes[-1].wait_for_line(r"running at (\S+),").group(1)

    processes: list[ChildProcess] = []
    paths = ["/1", "/2", "/3", "/4"]
    with connected(start()) as clients:
        clients.sdk.queue.upsert("q", parallelism=2)
        clients.sdk.url_group.upsert_endpoints("g", [{"url": destination.hold(path)} for path in paths])
        clients.sdk.message.enqueue(queue="q", url_group="g")
        clients.sdk.queue.upsert("q")
        clients.sdk.queue.pause("q")
        assert {arrival.path for arrival in destination.wait_for(2)} == {"/1", "/2"}
        processes[0].send(signal.SIGKILL)
        processes[0].wait()
    destination.let_go.set()

    with connected(start()) as clients:
        queue = clients.sdk.queue.get("q")
        assert (queue.paused, queue.parallelism, queue.lag) == (True, 1, 4)
        clients.sdk.queue.resume("q")
        assert [arrival.path for arrival in destination.wait_for(6)[2:]] == paths


def test_queues_survive_a_restart(tmp_path: Path, destination: Destination) -> None:
    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as base_url, connected(base_url) as clients:
        clients.sdk.queue.upsert("q", parallelism=2, paused=True)
        clients.sdk.queue.upsert("gone")
        clients.sdk.queue.delete("gone")
        for path in ("/1", "/2"):
            clients.sdk.message.enqueue(queue="q", url=destination.url(path))
        queues = clients.http.get("/v2/queues").json()

    with running_server(settings) as base_url, connected(base_url) as clients:
        assert clients.http.get("/v2/queues").json() == queues
        assert (queues[0]["paused"], queues[0]["lag"]) == (True, 2)
        clients.sdk.queue.resume("q")
        assert {arrival.path for arrival in destination.wait_for(2)} == {"/1", "/2"}
