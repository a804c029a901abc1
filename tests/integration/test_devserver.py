"""The development server as clients meet it: real SDK clients, real receivers, real crashes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from destinations import DEADLINE, Destination
from processes import ChildProcess, Spawner, wait_until
from qstash import AsyncQStash, QStash, Receiver

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEV_USERS, PLANS
from queuebridge.errors import ConfigurationError

USER, OTHER_USER = DEV_USERS[:2]
AUTHORIZED = {"Authorization": f"Bearer {USER.token}"}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server in memory that retries a thousand times as fast."""
    with running_server(ServerSettings(port=0, engine=EngineSettings(time_scale=1000))) as url:
        yield url


def states(http: httpx.Client, message_id: str) -> list[str]:
    events = http.get("/v2/events", params={"messageId": message_id}).json()["events"]
    return [event["state"] for event in reversed(events)]


def wait_for_state(http: httpx.Client, message_id: str, state: str) -> list[str]:
    def reached() -> list[str] | None:
        found = states(http, message_id)
        return found if state in found else None

    return wait_until(reached, DEADLINE, what=f"state {state}")


def test_delivery_carries_what_was_published_and_what_the_protocol_adds(
    client: QStash, destination: Destination
) -> None:
    url = f"{destination.base_url}/a//b%2Fc?x=1&y=%20"
    published: Any = client.message.publish(
        url=url, body="grüße", content_type="text/plain", method="PUT", headers={"X-Mine": "1"}, label="l"
    )

    (arrival,) = destination.wait_for(1)

    assert (arrival.method, arrival.path, arrival.body.decode()) == ("PUT", "/a//b%2Fc?x=1&y=%20", "grüße")
    headers = arrival.headers
    assert headers["user-agent"] == "Upstash-QStash"
    assert (headers["content-type"], headers["x-mine"]) == ("text/plain", "1")
    assert headers["upstash-message-id"] == published.message_id
    assert (headers["upstash-retried"], headers["upstash-region"]) == ("0", "EU-CENTRAL-1")
    assert headers["upstash-caller-ip"] == "127.0.0.1"
    assert "authorization" not in headers
    receiver = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)
    receiver.verify(signature=headers["upstash-signature"], body="grüße", url=url)


def test_publish_without_content_type_delivers_none(http: httpx.Client, destination: Destination) -> None:
    http.post(f"/v2/publish/{destination.base_url}/x", content=b"\x00\xff")

    (arrival,) = destination.wait_for(1)

    assert "content-type" not in arrival.headers
    assert arrival.body == b"\x00\xff"


def test_large_body_arrives_whole(http: httpx.Client, destination: Destination) -> None:
    body = bytes(range(256)) * 12_000
    http.post(f"/v2/publish/{destination.base_url}/x", content=body)

    (arrival,) = destination.wait_for(1)

    assert arrival.body == body


def test_async_client_publishes_and_reads(base_url: str, destination: Destination) -> None:
    async def main() -> tuple[Any, Any]:
        client = AsyncQStash(USER.token, base_url=base_url, retry=False)
        try:
            published: Any = await client.message.publish_json(url=f"{destination.base_url}/x", body={"a": 1})
            return published, await client.message.get(published.message_id)
        finally:
            await client.http._client.aclose()

    published, message = asyncio.run(main())

    assert message.message_id == published.message_id
    assert json.loads(message.body) == {"a": 1}
    assert destination.wait_for(1)[0].body == b'{"a": 1}'


def test_failed_delivery_is_retried_until_it_succeeds(
    client: QStash, http: httpx.Client, destination: Destination
) -> None:
    published: Any = client.message.publish(url=destination.answer("/x", 500, 302))

    arrivals = destination.wait_for(3)

    assert [arrival.headers["upstash-retried"] for arrival in arrivals] == ["0", "1", "2"]
    assert len({arrival.headers["upstash-message-id"] for arrival in arrivals}) == 1
    assert wait_for_state(http, published.message_id, "DELIVERED") == [
        "CREATED",
        *["ACTIVE", "ERROR", "RETRY"] * 2,
        "ACTIVE",
        "DELIVERED",
    ]


def test_non_retryable_answer_is_a_dead_letter_that_can_be_retried(
    client: QStash, http: httpx.Client, destination: Destination
) -> None:
    url = destination.answer("/x", 489, headers={"Upstash-NonRetryable-Error": "true"}, body=b"never")
    published: Any = client.message.publish(url=url, body="b", label="dead-1")
    wait_for_state(http, published.message_id, "FAILED")

    (letter,) = client.dlq.list(filter={"label": "dead-1"}).messages
    assert (letter.message_id, letter.response_status, letter.response_body) == (
        published.message_id,
        489,
        "never",
    )
    assert client.dlq.get(letter.dlq_id).body == "b"

    answer = http.post("/v2/dlq/retry", params={"dlqIds": letter.dlq_id})

    (retried,) = answer.json()["responses"]
    assert (answer.status_code, answer.json()["cursor"]) == (201, "")
    assert destination.wait_for(2)[1].headers["upstash-message-id"] == retried["messageId"]
    assert client.dlq.list(filter={"label": "dead-1"}).messages == []


def test_dead_letters_are_deleted_by_the_sdk(client: QStash, http: httpx.Client, destination: Destination) -> None:
    url = destination.answer("/x", 500, 500, 500)
    ids = [client.message.publish(url=url, retries=0, label="dead-2").message_id for _ in range(3)]  # type: ignore[union-attr]
    for message_id in ids:
        wait_for_state(http, message_id, "FAILED")
    first, second, third = client.dlq.list(filter={"label": "dead-2"}).messages

    client.dlq.delete(first.dlq_id)
    deleted = client.dlq.delete_many([second.dlq_id, "1-1"])

    assert deleted == 1
    assert [left.dlq_id for left in client.dlq.list(filter={"label": "dead-2"}).messages] == [third.dlq_id]
    assert http.delete(f"/v2/dlq/{first.dlq_id}").status_code == 404
    assert http.request("DELETE", "/v2/dlq", json={"dlqIds": []}).json() == {"deleted": 0}


def test_dead_letters_are_paged_by_cursor(client: QStash, http: httpx.Client, destination: Destination) -> None:
    url = destination.answer("/x", *[500] * 5)
    for _ in range(5):
        published: Any = client.message.publish(url=url, retries=0, label="dead-3")
        wait_for_state(http, published.message_id, "FAILED")

    pages = []
    cursor = None
    while True:
        page = client.dlq.list(count=2, cursor=cursor, filter={"label": "dead-3"})
        pages.append([letter.dlq_id for letter in page.messages])
        cursor = page.cursor
        if cursor is None:
            break

    assert [len(page) for page in pages] == [2, 2, 1]
    assert len({dlq_id for page in pages for dlq_id in page}) == 5


def test_unreachable_destination_is_an_error_without_a_status(
    client: QStash, http: httpx.Client, free_port: Callable[[], int]
) -> None:
    published: Any = client.message.publish(url=f"http://127.0.0.1:{free_port()}/x", retries=0, label="dead-4")
    wait_for_state(http, published.message_id, "FAILED")

    (letter,) = client.dlq.list(filter={"label": "dead-4"}).messages

    assert letter.response_status == 0


def test_attempt_is_abandoned_after_its_timeout(client: QStash, http: httpx.Client, destination: Destination) -> None:
    published: Any = client.message.publish(url=destination.hold("/held"), timeout=1, retries=0)

    wait_for_state(http, published.message_id, "FAILED")

    (error,) = http.get("/v2/events", params={"messageId": published.message_id, "state": "ERROR"}).json()["events"]
    assert error["error"] == "no answer within 1 s"


def test_callbacks_are_signed_messages_of_their_own(client: QStash, destination: Destination) -> None:
    callback_url = destination.answer("/callback")
    published: Any = client.message.publish(
        url=destination.answer("/x", 200, body=b"result"),
        body="b",
        callback=callback_url,
        callback_headers={"Forward-X-Secret": "s"},
    )

    arrival = destination.wait_for(2)[1]

    body = json.loads(arrival.body)
    assert (body["sourceMessageId"], body["status"]) == (published.message_id, 200)
    assert b64decode(body["body"]) == b"result"
    assert (arrival.headers["x-secret"], arrival.headers["content-type"]) == ("s", "application/json")
    assert arrival.headers["upstash-message-id"] != published.message_id
    receiver = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)
    receiver.verify(signature=arrival.headers["upstash-signature"], body=arrival.body.decode(), url=callback_url)


def test_failure_callback_names_the_dead_letter(client: QStash, destination: Destination) -> None:
    client.message.publish(url=destination.answer("/x", 500), retries=0, failure_callback=destination.answer("/failed"))

    arrival = destination.wait_for(2)[1]

    assert arrival.path == "/failed"
    assert client.dlq.get(json.loads(arrival.body)["dlqId"]).url == destination.base_url + "/x"


def test_duplicate_is_answered_with_the_first_id_and_202(
    client: QStash, http: httpx.Client, destination: Destination
) -> None:
    url = f"{destination.base_url}/x"
    first: Any = client.message.publish(url=url, deduplication_id="dup-1")

    answer = http.post(f"/v2/publish/{url}", headers={"Upstash-Deduplication-Id": "dup-1"})

    assert answer.status_code == 202
    assert answer.json() == {"messageId": first.message_id, "url": url, "deduplicated": True}


def test_content_based_deduplication_looks_at_body_and_forwarded_headers(client: QStash) -> None:
    def publish(body: str, header: str, retries: int) -> Any:
        return client.message.publish(
            url="http://127.0.0.1:1/content",
            body=body,
            headers={"X": header},
            retries=retries,
            delay="1h",
            content_based_deduplication=True,
        )

    first = publish("b", "1", 3)

    assert publish("b", "1", 0).deduplicated
    assert publish("b", "1", 0).message_id == first.message_id
    assert not publish("c", "1", 3).deduplicated
    assert not publish("b", "2", 3).deduplicated


def test_queue_delivers_in_order_and_one_at_a_time(client: QStash, destination: Destination) -> None:
    url = destination.answer("/x", 500)
    for number in range(4):
        client.message.enqueue(queue="fifo", url=url, body=str(number))

    arrivals = destination.wait_for(5)

    assert [arrival.body for arrival in arrivals] == [b"0", b"0", b"1", b"2", b"3"]
    queue = client.queue.get("fifo")
    assert (queue.name, queue.parallelism, queue.paused) == ("fifo", 1, False)
    assert "fifo" in [found.name for found in client.queue.list()]


def test_flow_control_bounds_parallel_deliveries(client: QStash, http: httpx.Client, destination: Destination) -> None:
    key = {"key": "flow-1", "parallelism": 1}
    held: Any = client.message.publish(url=destination.hold("/held"), flow_control=key)  # type: ignore[arg-type]
    waiting: Any = client.message.publish(url=f"{destination.base_url}/x", flow_control=key)  # type: ignore[arg-type]
    other: Any = client.message.publish(url=f"{destination.base_url}/x")
    destination.wait_for(2)
    wait_for_state(http, other.message_id, "DELIVERED")

    assert states(http, waiting.message_id) == ["CREATED"]
    assert client.message.get(waiting.message_id).flow_control is not None
    destination.let_go.set()

    wait_for_state(http, waiting.message_id, "DELIVERED")
    assert states(http, held.message_id)[-1] == "DELIVERED"


def test_batch_takes_each_item_on_its_own(http: httpx.Client, destination: Destination) -> None:
    url = f"{destination.base_url}/x"
    items = [
        {"destination": url, "body": "a", "headers": {"upstash-forward-x": "1"}, "queue": None},
        {"destination": "no-such-group", "body": None, "queue": None},
        {"destination": url, "body": "b", "queue": "batch-q"},
    ]

    answer = http.post("/v2/batch", json=items)

    first, error, last = answer.json()
    assert answer.status_code == 200
    assert first["url"] == last["url"] == url
    assert set(error) == {"error"}
    assert {arrival.body for arrival in destination.wait_for(2)} == {b"a", b"b"}


def test_sdk_batch_is_understood(client: QStash, destination: Destination) -> None:
    results = client.message.batch_json([{"url": f"{destination.base_url}/x", "body": {"n": n}} for n in range(3)])

    ids = {arrival.headers["upstash-message-id"] for arrival in destination.wait_for(3)}
    assert ids == {result.message_id for result in results}  # type: ignore[union-attr]


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'[{"body": "x"}]', b"no json", b'[{"destination": "x", "body": 1}]'])
def test_batch_that_is_no_array_of_objects_is_refused_whole(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v2/batch", content=body)

    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_messages_are_cancelled_by_id_by_list_and_by_filter(client: QStash, http: httpx.Client) -> None:
    def publish(label: str) -> str:
        published: Any = client.message.publish(url="http://127.0.0.1:1/cancel", delay="1h", label=label)
        return str(published.message_id)

    one, two, three, four = (publish("cancel-1") for _ in range(4))

    client.message.cancel(one)
    assert client.message.cancel_many([one, two, "msg_unknown"]) == 1
    assert http.request("DELETE", "/v2/messages", json={"messageIds": []}).json() == {"cancelled": 0}
    assert http.delete("/v2/messages", params={"messageIds": [three]}).json() == {"cancelled": 1}
    assert http.delete("/v2/messages", params={"label": "cancel-1"}).json() == {"cancelled": 1}
    assert states(http, four) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    logs = http.get("/v2/logs", params={"messageId": four, "state": "CANCELED"}).json()["logs"]
    assert [entry["state"] for entry in logs] == ["CANCELLED"]
    assert http.delete(f"/v2/messages/{four}").status_code == 404


def test_all_messages_of_one_user_are_cancelled_and_no_other_s(base_url: str, sdk: Callable[..., QStash]) -> None:
    mine, theirs = (sdk(base_url, user.token) for user in DEV_USERS[2:4])
    for client in (mine, mine, theirs):
        client.message.publish(url="http://127.0.0.1:1/all", delay="1h")

    assert mine.message.cancel_all() == 2
    assert theirs.message.cancel_all() == 1


def test_users_cannot_read_each_other_s_messages(client: QStash, base_url: str) -> None:
    published: Any = client.message.publish(url="http://127.0.0.1:1/mine", delay="1h")

    answer = httpx.get(
        f"{base_url}/v2/messages/{published.message_id}",
        headers={"Authorization": f"Bearer {OTHER_USER.token}"},
        trust_env=False,
    )

    assert (answer.status_code, answer.json()) == (
        404,
        {"error": f"message {published.message_id} not found"},
    )


def test_sdk_reads_keys_and_logs(client: QStash, destination: Destination) -> None:
    published: Any = client.message.publish(url=f"{destination.base_url}/logs")
    destination.wait_for(1)

    keys = client.signing_key.get()
    logs = client.log.list(filter={"message_id": published.message_id}).logs

    assert (keys.current, keys.next) == (USER.current_signing_key, USER.next_signing_key)
    assert logs[-1].state.value == "CREATED"


def test_logs_are_paged_without_gaps(http: httpx.Client, client: QStash) -> None:
    for _ in range(5):
        client.message.publish(url="http://127.0.0.1:1/paged", delay="1h")

    times, cursor = [], None
    for _ in range(3):
        parameters = {"path": "/paged", "count": "2", **({"cursor": cursor} if cursor else {})}
        page = http.get("/v2/events", params=parameters).json()
        times += [event["messageId"] for event in page["events"]]
        cursor = page.get("cursor")

    assert len(set(times)) == 5
    assert cursor is None


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": USER.token}])
@pytest.mark.parametrize("path", ["/v2/publish/http://host/x", "/v2/nothing", "/"])
def test_request_without_the_token_is_refused_before_anything_else(
    base_url: str, path: str, headers: dict[str, str]
) -> None:
    answer = httpx.post(base_url + path, headers=headers, trust_env=False)

    assert (answer.status_code, answer.json()) == (401, {"error": "unable to authenticate: invalid token"})
    assert answer.headers["content-type"].startswith("application/json")


def test_token_and_options_in_the_query_are_ours_and_the_rest_is_the_destination_s(
    base_url: str, destination: Destination
) -> None:
    query = f"?a=1&qstash_token={USER.token}&upstash-retries=0&b=%2F"
    httpx.post(f"{base_url}/v2/publish/{destination.base_url}/hook{query}", trust_env=False)

    assert destination.wait_for(1)[0].path == "/hook?a=1&b=%2F"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/publish/ftp://host/x", 400),
        ("POST", "/v2/publish/some-group", 404),
        ("POST", "/v2/publish/api/llm", 400),
        ("POST", "/v2/enqueue/bad name/http://host/x", 400),
        ("GET", "/v2/topics/none", 404),
        ("POST", "/v2/queues", 400),
        ("GET", "/v1/messages", 404),
        ("GET", "/v2/unheard-of", 404),
        ("GET", "/v2/messages/msg_unknown", 404),
        ("DELETE", "/v2/messages/", 400),
        ("DELETE", "/v2/dlq/", 400),
        ("DELETE", "/v2/messages?lable=x", 400),
        ("GET", "/v2/dlq?host=x", 400),
        ("GET", "/v2/events?state=NEW", 400),
        ("GET", "/v2/queues/none", 404),
        ("POST", "/v2/dlq/retry/1-1", 404),
    ],
)
def test_what_cannot_be_done_is_a_json_error(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("content", [b"{", b'{"messageIds": "x"}', b'{"ids": []}', b"[]", b'"x"'])
def test_unreadable_bulk_cancel_never_means_all(http: httpx.Client, client: QStash, content: bytes) -> None:
    published: Any = client.message.publish(url="http://127.0.0.1:1/kept", delay="1h")

    answer = http.request("DELETE", "/v2/messages", content=content)

    assert answer.status_code == 400
    assert states(http, published.message_id) == ["CREATED"]


def test_body_beyond_the_plan_is_a_quota_error() -> None:
    settings = ServerSettings(port=0, engine=EngineSettings(plan=PLANS["free"]))
    with running_server(settings) as base_url:
        answer = httpx.post(
            f"{base_url}/v2/publish/http://host/x",
            headers=AUTHORIZED,
            content=b"x" * (1024 * 1024 + 1),
            trust_env=False,
        )

    assert answer.status_code == 412
    assert answer.json() == {"error": "quota maxMessageSize exceeded, current limit: 1048576"}


# Durability

PROGRAM = """
import sys
from pathlib import Path
from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, run
settings = ServerSettings(port=0, db_path=Path(sys.argv[1]), engine=EngineSettings(time_scale=1000))
run(settings, on_ready=lambda url: print("ready", url, flush=True))
"""


def start_server(spawn: Spawner, database: Path) -> tuple[ChildProcess, str]:
    process = spawn([sys.executable, "-c", PROGRAM, str(database)], name="devserver")
    return process, process.wait_for_line(r"^ready (\S+)$").group(1)


def test_messages_survive_a_kill_under_their_ids(
    spawn: Spawner, tmp_path: Path, destination: Destination, sdk: Callable[..., QStash]
) -> None:
    process, base_url = start_server(spawn, tmp_path / "db")
    client = sdk(base_url)
    in_flight: Any = client.message.publish(url=destination.hold("/held"), deduplication_id="held")
    moment = int(time.time()) + 3600
    waiting: Any = client.message.publish(url=f"{destination.base_url}/x", body="later", not_before=moment)
    destination.wait_for(1)

    process.send(signal.SIGKILL)
    process.wait()
    destination.let_go.set()
    _, base_url = start_server(spawn, tmp_path / "db")
    client = sdk(base_url)

    again = destination.wait_for(2)[1]
    assert again.headers["upstash-message-id"] == in_flight.message_id
    found = client.message.get(waiting.message_id)
    assert (found.body, found.not_before) == ("later", moment * 1000)
    duplicate: Any = client.message.publish(url=destination.hold("/held"), deduplication_id="held")
    assert (duplicate.deduplicated, duplicate.message_id) == (True, in_flight.message_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_stops_cleanly_on_a_signal(
    spawn: Spawner, tmp_path: Path, sdk: Callable[..., QStash], number: signal.Signals
) -> None:
    process, base_url = start_server(spawn, tmp_path / "db")
    sdk(base_url).message.publish(url="http://127.0.0.1:1/x", delay="1h")

    process.send(number)

    assert process.wait() == 0
    assert process.stderr == ""
    assert not (tmp_path / "db-wal").exists()


def test_second_server_on_the_same_database_is_refused(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, db_path=tmp_path / "db")

    with (
        running_server(settings),
        pytest.raises(ConfigurationError, match="is another server using it"),
        running_server(settings),
    ):
        pass


def test_port_in_use_is_an_error_of_the_starter(free_port: Callable[[], int]) -> None:
    with running_server() as base_url:
        port = int(base_url.rsplit(":", 1)[1])

        with (
            pytest.raises(OSError, match="address already in use"),
            running_server(ServerSettings(port=port)),
        ):
            pass
