"""The development server killed again and again while everything is asked of it at once.

Whatever was acknowledged must hold at the end. A request without an answer may have taken effect or not.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from destinations import Arrival, Clients, Destination, connected, running_destination
from processes import ChildProcess, Spawner, free_port

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

KILLS = 7
RETRIED_SOON = {"Upstash-Retry-Delay": "20", "Upstash-Retries": "3"}


@dataclass
class Acknowledged:
    """What the server said it had done. Tokens are the bodies of messages and name their paths."""

    once: set[str] = field(default_factory=set)
    to_each_of_a_group: set[str] = field(default_factory=set)
    queued: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))  # with the attempts
    given_up: set[str] = field(default_factory=set)
    retried_letters: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    schedules: set[str] = field(default_factory=set)
    deleted_schedules: set[str] = field(default_factory=set)
    queues: dict[str, int] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    keys: list[dict[str, str]] = field(default_factory=list)


class Chaos:
    """A server on a fixed port, threads that keep asking it for one kind of thing each, and what was acknowledged."""

    def __init__(self, start: Callable[[], ChildProcess], base_url: str, destination: Destination) -> None:
        self.acknowledged = Acknowledged()
        self._start = start
        self._base_url = base_url
        self._destination = destination
        self._ended = threading.Event()
        self._up = threading.Event()
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Kill the server a number of times at random moments while it is used; it does not run afterwards."""
        steps = [
            self._publish, self._publish_a_batch, self._publish_delayed, self._publish_until_acknowledged,
            self._enqueue("fifo-a"), self._enqueue("fifo-b"), self._publish_to_a_group, self._cancel, self._schedule,
            self._create_queues_and_groups, self._give_up, self._rotate_keys,
        ]  # fmt: skip
        threads = [threading.Thread(target=self._repeat, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        try:
            for _ in range(KILLS):
                process = self._start()
                self._up.set()
                time.sleep(random.uniform(0.2, 1.2))  # not for something to happen: a kill is right at any moment
                process.send(signal.SIGKILL)
                process.wait()
                self._up.clear()
        finally:
            self._ended.set()
            self._up.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _repeat(self, step: Callable[[httpx.Client, str], None]) -> None:
        number = 0
        authorized = {"Authorization": f"Bearer {DEFAULT_DEV_USER.token}"}
        with httpx.Client(base_url=self._base_url, headers=authorized, trust_env=False) as client:
            while not self._ended.is_set():
                self._up.wait()
                number += 1
                try:
                    step(client, f"{getattr(step, '__name__', '').strip('_')}-{number}")
                except httpx.TransportError:
                    continue  # killed: whether it took effect is not known
                except Exception as error:  # noqa: BLE001 - raised in the thread of the test
                    self._errors.append(error)
                    return

    def _url(self, token: str) -> str:
        return self._destination.url(f"/{token}")

    def _post(
        self, client: httpx.Client, path: str, token: str, *, to: str | None = None, **headers: str
    ) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = client.post(f"{path}/{to or self._url(token)}", content=token, headers=RETRIED_SOON | names)
        answer.raise_for_status()
        return answer.json()

    def _publish(self, client: httpx.Client, token: str) -> None:
        self._post(client, "/v2/publish", token)
        self.acknowledged.once.add(token)

    def _publish_a_batch(self, client: httpx.Client, token: str) -> None:
        tokens = [f"{token}-{place}" for place in range(3)]
        items = [{"destination": self._url(one), "body": one} for one in tokens]
        client.post("/v2/batch", json=items).raise_for_status()
        self.acknowledged.once.update(tokens)

    def _publish_delayed(self, client: httpx.Client, token: str) -> None:
        self._post(client, "/v2/publish", token, Upstash_Delay=random.choice(["1s", "10m"]))
        self.acknowledged.once.add(token)

    def _publish_until_acknowledged(self, client: httpx.Client, token: str) -> None:
        while not self._ended.is_set():
            try:
                self._post(client, "/v2/publish", token, Upstash_Deduplication_Id=token)
            except httpx.TransportError:
                self._up.wait()
            else:
                self.acknowledged.once.add(token)
                return

    def _enqueue(self, queue: str) -> Callable[[httpx.Client, str], None]:
        def step(client: httpx.Client, token: str) -> None:
            token = f"{queue}-{token}"
            failures = [500] * random.choice([0, 0, 0, 1, 2])
            self._destination.answer(f"/{token}", *failures)
            self._post(client, f"/v2/enqueue/{queue}", token)
            self.acknowledged.queued[queue].append((token, len(failures) + 1))

        return step

    def _publish_to_a_group(self, client: httpx.Client, token: str) -> None:
        endpoints = [{"url": self._destination.url(path)} for path in ("/group-1", "/group-2")]
        client.post("/v2/topics/group/endpoints", json={"endpoints": endpoints}).raise_for_status()
        self._post(client, "/v2/publish", token, to="group")
        self.acknowledged.to_each_of_a_group.add(token)

    def _cancel(self, client: httpx.Client, token: str) -> None:
        message_id = self._post(client, "/v2/publish", token, Upstash_Delay="5m")["messageId"]
        client.delete(f"/v2/messages/{message_id}").raise_for_status()
        self.acknowledged.cancelled.add(token)

    def _schedule(self, client: httpx.Client, token: str) -> None:
        path = f"/v2/schedules/{self._destination.url('/scheduled')}"
        headers = {"Upstash-Cron": "0 0 29 2 *", "Upstash-Schedule-Id": token}
        client.post(path, content=token, headers=headers).raise_for_status()
        self.acknowledged.schedules.add(token)
        if random.random() < 0.3:
            self.acknowledged.schedules.discard(token)  # until the deletion is acknowledged, either is right
            client.delete(f"/v2/schedules/{token}").raise_for_status()
            self.acknowledged.deleted_schedules.add(token)

    def _create_queues_and_groups(self, client: httpx.Client, token: str) -> None:
        if len(self.acknowledged.queues) == 40:
            self._ended.wait(0.1)  # the plan has room for 100
            return
        parallelism = random.randint(1, 5)
        client.post("/v2/queues", json={"queueName": token, "parallelism": parallelism}).raise_for_status()
        self.acknowledged.queues[token] = parallelism
        url = self._url(token)
        client.post(f"/v2/topics/{token}/endpoints", json={"endpoints": [{"url": url}]}).raise_for_status()
        self.acknowledged.groups[token] = url

    def _give_up(self, client: httpx.Client, token: str) -> None:
        self._destination.answer(f"/{token}", 500)
        self._post(client, "/v2/publish", token, Upstash_Retries="0")
        self.acknowledged.given_up.add(token)
        letters = client.get("/v2/dlq").raise_for_status().json()["messages"]
        if len(letters) > 5:
            letter = random.choice(letters)
            client.post(f"/v2/dlq/retry/{letter['dlqId']}").raise_for_status()
            self.acknowledged.retried_letters.add(letter["dlqId"])

    def _rotate_keys(self, client: httpx.Client, _token: str) -> None:
        before = client.get("/v2/keys").raise_for_status().json()
        self.acknowledged.keys.append(before)
        after = client.post("/v2/keys/rotate").raise_for_status().json()
        assert after["current"] == before["next"]
        self.acknowledged.keys.append(after)


def test_what_was_acknowledged_holds_over_kills_at_any_moment(spawn: Spawner, tmp_path: Path) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"

    def start() -> ChildProcess:
        command = [sys.executable, "-m", "queuebridge", "devserver", "--port", str(port), "--db", str(tmp_path / "db")]
        process = spawn(command, name="devserver")
        process.wait_for_line(r"running at (\S+),")
        return process

    with running_destination() as destination:
        chaos = Chaos(start, base_url, destination)
        chaos.run()
        start()
        with connected(base_url) as clients:
            keys = clients.http.get("/v2/keys").json()
            left = {letter["dlqId"] for letter in _dead_letters(clients)}
            _until_nothing_waits(clients)
            _retry_all_dead_letters(clients)
            check_settings(chaos.acknowledged, clients, keys)
        assert not left & chaos.acknowledged.retried_letters
        check_deliveries(chaos.acknowledged, destination.arrivals)


def check_settings(acknowledged: Acknowledged, clients: Clients, keys: dict[str, str]) -> None:
    """Say what of queues, groups, schedules and keys is not as it was acknowledged."""
    queues = {queue["name"]: queue for queue in clients.http.get("/v2/queues").json()}
    assert {name: queues[name]["parallelism"] for name in acknowledged.queues} == acknowledged.queues
    assert [queue["name"] for queue in queues.values() if queue["lag"]] == []

    groups = {group["name"]: group["endpoints"] for group in clients.http.get("/v2/topics").json()}
    found = {name: [endpoint["url"] for endpoint in groups[name]] for name in acknowledged.groups}
    assert found == {name: [url] for name, url in acknowledged.groups.items()}

    schedules = {schedule["scheduleId"]: schedule["body"] for schedule in clients.http.get("/v2/schedules").json()}
    assert {name: schedules.get(name) for name in acknowledged.schedules} == {
        name: name for name in acknowledged.schedules
    }
    assert acknowledged.deleted_schedules.isdisjoint(schedules)

    # The last rotation may have taken effect without an answer.
    last = acknowledged.keys[-1]
    assert keys == last or keys["current"] == last["next"]


def check_deliveries(acknowledged: Acknowledged, arrivals: list[Arrival]) -> None:
    """Say which messages were lost, doubled, out of order, or delivered in spite of a cancellation."""
    places: dict[str, list[int]] = defaultdict(list)
    ids: dict[str, set[str]] = defaultdict(set)
    for place, arrival in enumerate(arrivals):
        if not arrival.path.startswith("/group-"):
            places[arrival.path[1:]].append(place)
            ids[arrival.path[1:]].add(arrival.headers["upstash-message-id"])

    assert acknowledged.once - places.keys() == set()
    assert {token: ids[token] for token in acknowledged.once if len(ids[token]) > 1} == {}
    assert acknowledged.cancelled & places.keys() == set()
    # The first attempt was answered with 500.
    assert {token for token in acknowledged.given_up if len(places[token]) < 2} == set()

    for path in ("/group-1", "/group-2"):
        arrived = {arrival.body.decode() for arrival in arrivals if arrival.path == path}
        assert acknowledged.to_each_of_a_group - arrived == set()

    for queued in acknowledged.queued.values():
        assert [token for token, attempts in queued if len(places[token]) < attempts] == []
        in_order = [place for token, attempts in queued for place in places[token][:attempts]]
        assert in_order == sorted(in_order)
    kinds = (acknowledged.once, acknowledged.queued["fifo-a"], acknowledged.cancelled, acknowledged.given_up)
    assert all(kinds), "the server was not used between the kills"


def _dead_letters(clients: Clients) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = clients.http.get("/v2/dlq", params=cursor).raise_for_status().json()
        found += page["messages"]
        if "cursor" not in page:
            return found
        cursor = {"cursor": page["cursor"]}


def _until_nothing_waits(clients: Clients) -> None:
    clients.http.post("/_queuebridge/time", json={"advance": "1h"}, timeout=70).raise_for_status()


def _retry_all_dead_letters(clients: Clients) -> None:
    while True:
        answer = clients.http.post("/v2/dlq/retry").raise_for_status().json()
        _until_nothing_waits(clients)
        if not answer["responses"]:
            return
