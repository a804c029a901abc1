"""The exact HTTP requests that reach QStash, made by the real SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from recording_qstash import Answer, Recorded, RecordingQStash, accept

from queuebridge import (
    Bridge,
    Call,
    ConfigurationError,
    EnqueueManyError,
    EnqueueOptions,
    InvalidOption,
    OptionNotSupported,
    PublishRejected,
    RetryPolicy,
    TaskRegistry,
    task,
)
from queuebridge.backend import Publication
from queuebridge.backends.qstash.backend import QStashBackend
from queuebridge.envelope import Envelope
from queuebridge.errors import PayloadTooLarge

TOKEN = "test-token"
RECEIVER = "https://jobs.example.com/queuebridge"
NOW = 1_900_000_000.25
registry = TaskRegistry()


@task(name="mail.send", retries=2, backoff=5, registry=registry)
def send(to: str, number: int = 1) -> None:
    """Do nothing."""


@task(name="größe, x", timeout=7.5, retries=4, backoff=[3, 3], registry=registry)
def odd() -> None:
    """Do nothing."""


@task(name="delays", backoff=[1, 2], registry=registry)
def delays() -> None:
    """Do nothing."""


@pytest.fixture
def server() -> Iterator[RecordingQStash]:
    """QStash, as far as publishing goes."""
    with RecordingQStash() as running:
        yield running


def bridge_to(url: str, environ: Mapping[str, str] | None = None, **more: Any) -> Bridge:
    variables = {
        "QUEUEBRIDGE_BACKEND": "qstash",
        "QSTASH_TOKEN": TOKEN,
        "QSTASH_URL": url,
        "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
        **(environ or {}),
    }
    return Bridge(registry=registry, environ=variables, clock=lambda: NOW, **more)


@pytest.fixture
def bridge(server: RecordingQStash) -> Iterator[Bridge]:
    """A bridge to the server."""
    with bridge_to(server.url) as made:
        yield made


def qstash(**options: Any) -> EnqueueOptions:
    return EnqueueOptions(task_id="job-1", options={"qstash": options})


def only(server: RecordingQStash) -> Recorded:
    (request,) = server.requests
    return request


BASE_HEADERS = {
    "Content-Type": "application/json",
    "Upstash-Retries": "2",
    "Upstash-Retry-Delay": "min(3600000, 5000 * pow(2, retried))",
    "Upstash-Failure-Callback": f"{RECEIVER}/failed",
    "Upstash-Label": "mail.send,default",
}


def golden(request: Recorded, **changes: str | None) -> dict[str, str]:
    """Return the headers that a plain publish of `send` has, with changes (None: not there)."""
    body = json.loads(request.body)
    expected = {**BASE_HEADERS, "Upstash-Deduplication-Id": f"{body['dispatch_id']}-0"}
    for name, value in changes.items():
        expected[name.replace("_", "-")] = value  # type: ignore[assignment]
    return {name: value for name, value in expected.items() if value is not None}


def test_publish_is_one_request_with_these_headers_and_this_body(bridge: Bridge, server: RecordingQStash) -> None:
    receipt = bridge.apply_async(send, ["a@example.com"], {"number": 2}, EnqueueOptions(task_id="job-1"))

    request = only(server)
    assert (request.method, request.path) == ("POST", f"/v2/publish/{RECEIVER}/deliver")
    assert request.headers["Authorization"] == "Bearer test-token"
    assert request.configuration == golden(request)
    assert json.loads(request.body) == {
        "version": 1,
        "kind": "task",
        "job_id": "job-1",
        "dispatch_id": receipt.dispatch_id,
        "task": "mail.send",
        "args": ["a@example.com"],
        "kwargs": {"number": 2},
        "queue": "default",
        "enqueued_at_ms": 1_900_000_000_250,
        "retry": {"retries": 2, "base": 5.0},
    }
    assert (receipt.job_id, receipt.message_id, receipt.backend, receipt.deduplicated) == (
        "job-1",
        "msg_1",
        "qstash",
        False,
    )


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "label": ({"label": "mail"}, {"Upstash_Label": "mail"}),
    "several labels": ({"label": "mail, important"}, {"Upstash_Label": "mail, important"}),
    "callback": ({"callback": "https://x.example/cb"}, {"Upstash_Callback": "https://x.example/cb"}),
    "failure callback": (
        {"failure_callback": "https://x.example/f"},
        {"Upstash_Failure_Callback": "https://x.example/f"},
    ),
    "callback headers": (
        {"callback_headers": {"Forward-X-A": "1"}, "failure_callback_headers": {"Forward-X-B": "2"}},
        {"Upstash_Callback_Forward_X_A": "1", "Upstash_Failure_Callback_Forward_X_B": "2"},
    ),
    "headers": ({"headers": {"X-Tenant": "a b"}}, {"Upstash_Forward_X_Tenant": "a b"}),
    "retry delay": ({"retry_delay": "1000 * (1 + retried)"}, {"Upstash_Retry_Delay": "1000 * (1 + retried)"}),
    "timeout": ({"timeout": 30}, {"Upstash_Timeout": "30s"}),
    "flow control": (
        {"flow_control": {"key": "k", "parallelism": 3, "rate": 10, "period": "1m"}},
        {"Upstash_Flow_Control_Key": "k", "Upstash_Flow_Control_Value": "parallelism=3, rate=10, period=1m"},
    ),
    "flow control, seconds": (
        {"flow_control": {"key": "k", "rate": 1, "period": 5}},
        {"Upstash_Flow_Control_Key": "k", "Upstash_Flow_Control_Value": "rate=1, period=5s"},
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_option_becomes_its_header(case: str, bridge: Bridge, server: RecordingQStash) -> None:
    options, changes = OPTIONS[case]

    bridge.apply_async(send, ["x"], options=qstash(**options))

    assert only(server).configuration == golden(only(server), **changes)


@pytest.mark.parametrize("case", OPTIONS)
def test_option_becomes_the_same_header_in_a_batch(case: str, bridge: Bridge, server: RecordingQStash) -> None:
    options, changes = OPTIONS[case]

    bridge.enqueue_many([Call(send, ["x"], options=qstash(**options))])

    (item,) = json.loads(only(server).body)
    sent = Recorded("POST", item["destination"], item["headers"], item["body"].encode())
    assert sent.configuration == golden(sent, **changes)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (EnqueueOptions(countdown=60), "1900000061"),
        (EnqueueOptions(countdown=timedelta(seconds=0.5)), "1900000001"),
        (EnqueueOptions(countdown=0), None),
        (EnqueueOptions(eta=datetime.fromtimestamp(1_900_000_010, timezone.utc)), "1900000010"),
        (EnqueueOptions(eta=datetime.fromtimestamp(1_900_000_010.001, timezone.utc)), "1900000011"),
    ],
    ids=["countdown", "fraction", "now", "eta", "eta with fraction"],
)
def test_delay_is_an_absolute_time_that_is_never_early(
    options: EnqueueOptions, seconds: str | None, bridge: Bridge, server: RecordingQStash
) -> None:
    bridge.apply_async(send, ["x"], options=options)

    assert only(server).headers.get("Upstash-Not-Before") == seconds
    assert "Upstash-Delay" not in only(server).headers


def test_delay_by_the_transports_own_clock_is_sent_as_one(bridge: Bridge, server: RecordingQStash) -> None:
    envelope = Envelope(job_id="j", dispatch_id="d", task="t", queue="q", enqueued_at_ms=0, not_before_ms=1)

    bridge.backend.publish(Publication(envelope=envelope, delay_seconds=20.5))

    assert only(server).headers["Upstash-Delay"] == "21s"
    assert "Upstash-Not-Before" not in only(server).headers


def test_timeout_of_the_task_leaves_time_for_the_answer(bridge: Bridge, server: RecordingQStash) -> None:
    bridge.enqueue(odd)

    assert only(server).headers["Upstash-Timeout"] == "13s"


def test_task_name_is_escaped_where_a_header_cannot_carry_it(bridge: Bridge, server: RecordingQStash) -> None:
    bridge.enqueue(odd)

    assert only(server).headers["Upstash-Label"] == "gr%C3%B6%C3%9Fe%2C%20x,default"


@pytest.mark.parametrize(
    ("chosen", "expression"), [(odd, "3000"), (delays, None), (send, BASE_HEADERS["Upstash-Retry-Delay"])], ids=str
)
def test_backoff_is_said_to_qstash_where_it_can_be(
    chosen: Any, expression: str | None, bridge: Bridge, server: RecordingQStash
) -> None:
    bridge.apply_async(chosen, ["x"] if chosen is send else [])

    assert only(server).headers.get("Upstash-Retry-Delay") == expression


def test_fifo_queue_is_an_enqueue(bridge: Bridge, server: RecordingQStash) -> None:
    bridge.apply_async(send, ["x"], options=qstash(queue="mails"))

    assert only(server).path == f"/v2/enqueue/mails/{RECEIVER}/deliver"
    assert only(server).configuration == golden(only(server))


def test_failure_callback_can_be_switched_off(server: RecordingQStash) -> None:
    with bridge_to(server.url, {"QUEUEBRIDGE_QSTASH_FAILURE_CALLBACK": "0"}) as bridge:
        bridge.enqueue(send, "x")

    assert only(server).configuration == golden(only(server), Upstash_Failure_Callback=None)


def test_prefix_and_path_of_the_public_url_are_part_of_the_destination(server: RecordingQStash) -> None:
    environ = {"QUEUEBRIDGE_PUBLIC_URL": "https://x.example/api/, https://y.example", "QUEUEBRIDGE_PREFIX": "/jobs"}
    with bridge_to(server.url, environ) as bridge:
        bridge.enqueue(send, "x")

    assert only(server).path == "/v2/publish/https://x.example/api/jobs/deliver"


def test_every_option_of_a_task_can_be_its_default(server: RecordingQStash) -> None:
    own = TaskRegistry()
    declared = task(name="t", options={"qstash": {"label": "default"}}, registry=own)(lambda: None)
    with Bridge(
        registry=own,
        environ={"QSTASH_TOKEN": TOKEN, "QSTASH_URL": server.url, "QUEUEBRIDGE_PUBLIC_URL": "https://x.example"},
    ) as bridge:
        bridge.enqueue(declared)
        bridge.apply_async(declared, options=qstash(label="other"))

    assert [request.headers["Upstash-Label"] for request in server.requests] == ["default", "other"]


# Batches


def test_batch_is_one_request_in_the_order_of_the_calls(bridge: Bridge, server: RecordingQStash) -> None:
    calls = [
        Call(send, ["a"], options=EnqueueOptions(task_id="job-1")),
        Call(send, ["b"], options=EnqueueOptions(task_id="job-2", options={"qstash": {"queue": "mails"}})),
        Call(odd, options=EnqueueOptions(task_id="job-3", countdown=60)),
    ]

    receipts = bridge.enqueue_many(calls)

    request = only(server)
    assert (request.method, request.path) == ("POST", "/v2/batch")
    assert request.configuration == {"Content-Type": "application/json"}
    items = json.loads(request.body)
    assert [set(item) for item in items] == [{"destination", "headers", "body", "queue"}] * 3
    assert [item["destination"] for item in items] == [f"{RECEIVER}/deliver"] * 3
    assert [item["queue"] for item in items] == [None, "mails", None]
    bodies = [json.loads(item["body"]) for item in items]
    assert [body["job_id"] for body in bodies] == ["job-1", "job-2", "job-3"]
    assert [item["headers"]["Upstash-Deduplication-Id"] for item in items] == [
        f"{body['dispatch_id']}-0" for body in bodies
    ]
    assert items[2]["headers"]["Upstash-Not-Before"] == "1900000061"
    assert [(receipt.job_id, receipt.message_id) for receipt in receipts] == [
        ("job-1", "msg_0"),
        ("job-2", "msg_1"),
        ("job-3", "msg_2"),
    ]


def test_batch_is_cut_by_number(bridge: Bridge, server: RecordingQStash) -> None:
    receipts = bridge.enqueue_many([Call(send, [str(number)]) for number in range(1001)])

    assert [len(json.loads(request.body)) for request in server.requests] == [500, 500, 1]
    sent = [json.loads(item["body"])["job_id"] for request in server.requests for item in json.loads(request.body)]
    assert [receipt.job_id for receipt in receipts] == sent


def test_batch_is_cut_by_size(bridge: Bridge, server: RecordingQStash) -> None:
    bridge.enqueue_many([Call(send, ["x" * 900_000]) for _ in range(18)])

    assert [len(json.loads(request.body)) for request in server.requests] == [8, 8, 2]
    assert all(len(request.body) < 10_000_000 for request in server.requests)


def test_empty_batch_sends_nothing(bridge: Bridge, server: RecordingQStash) -> None:
    assert bridge.enqueue_many([]) == []
    assert bridge.backend.publish_many([]) == []
    assert server.requests == []


def test_refused_element_fails_alone() -> None:
    partial = Answer(200, [{"messageId": "msg_a"}, {"error": "quota maxRetries exceeded"}, {"messageId": "msg_c"}])
    with (
        RecordingQStash([partial]) as server,
        bridge_to(server.url) as bridge,
        pytest.raises(EnqueueManyError) as caught,
    ):
        bridge.enqueue_many([Call(send, [name]) for name in "abc"])

    first, second, third = caught.value.results
    assert not isinstance(first, Exception)
    assert not isinstance(third, Exception)
    assert (first.message_id, third.message_id) == ("msg_a", "msg_c")
    assert isinstance(second, PublishRejected)
    assert "maxRetries" in str(second)


def test_duplicate_is_reported_if_the_caller_gave_a_key() -> None:
    duplicate = Answer(202, {"messageId": "msg_1", "deduplicated": True})
    with RecordingQStash([duplicate, duplicate]) as server, bridge_to(server.url) as bridge:
        keyed = bridge.apply_async(send, ["x"], options=EnqueueOptions(idempotency_key="k"))
        plain = bridge.apply_async(send, ["x"])

    assert keyed.deduplicated is True
    # Nobody else can have published this dispatch: it was an earlier attempt of the same call.
    assert plain.deduplicated is False


def test_same_key_is_the_same_deduplication_id(bridge: Bridge, server: RecordingQStash) -> None:
    for key in ("k", "k", "other"):
        bridge.apply_async(send, ["x"], options=EnqueueOptions(idempotency_key=key))

    one, two, other = (request.headers["Upstash-Deduplication-Id"] for request in server.requests)
    assert one == two != other
    assert ":" not in one


# Refused before any request


REFUSED: dict[str, tuple[EnqueueOptions, type[Exception], str]] = {
    "priority": (EnqueueOptions(priority=1), OptionNotSupported, "priorit"),
    "delay on a FIFO queue": (
        EnqueueOptions(countdown=5, options={"qstash": {"queue": "q"}}),
        OptionNotSupported,
        "countdown/eta",
    ),
    "flow control on a FIFO queue": (
        qstash(queue="q", flow_control={"key": "k", "rate": 1}),
        OptionNotSupported,
        "flow_control",
    ),
    "unknown option": (qstash(lable="x"), InvalidOption, "lable"),
    "bad queue name": (qstash(queue="a b"), InvalidOption, "queue"),
    "flow control without limits": (qstash(flow_control={"key": "k"}), InvalidOption, "flow_control"),
    "flow control without key": (qstash(flow_control={"rate": 1}), InvalidOption, "key"),
    "bad period": (qstash(flow_control={"key": "k", "rate": 1, "period": "soon"}), InvalidOption, "period"),
    "callback without scheme": (qstash(callback="x.example"), InvalidOption, "callback"),
    "line break in a header": (qstash(headers={"X-A": "1\r\nX-B: 2"}), InvalidOption, "headers"),
    "colon in a header name": (qstash(headers={"X:A": "1"}), InvalidOption, "headers"),
    "non-ASCII header": (qstash(headers={"X-A": "größe"}), InvalidOption, "headers"),
    "non-ASCII label": (qstash(label="größe"), InvalidOption, "label"),
    "line break in a label": (qstash(label="a\nb"), InvalidOption, "label"),
    "timeout 0": (qstash(timeout=0), InvalidOption, "timeout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_qstash_cannot_honour_is_refused_before_any_request(
    case: str, bridge: Bridge, server: RecordingQStash
) -> None:
    options, kind, saying = REFUSED[case]

    with pytest.raises(kind, match=saying):
        bridge.apply_async(send, ["x"], options=options)
    with pytest.raises(kind, match=saying):
        bridge.enqueue_many([Call(send, ["good"]), Call(send, ["x"], options=options)])
    assert server.requests == []


def test_payload_above_the_limit_is_refused_before_any_request(server: RecordingQStash) -> None:
    with bridge_to(server.url, {"QUEUEBRIDGE_QSTASH_MAX_BYTES": "1000"}) as bridge:
        with pytest.raises(PayloadTooLarge):
            bridge.enqueue(send, "x" * 1000)
        bridge.enqueue(send, "x" * 100)

    assert len(server.requests) == 1


@pytest.mark.parametrize("url", [None, "https://jobs.größe.example"])
def test_without_a_usable_public_url_nothing_is_published(url: str | None, server: RecordingQStash) -> None:
    with (
        bridge_to(server.url, {"QUEUEBRIDGE_PUBLIC_URL": url or ""}) as bridge,
        pytest.raises(ConfigurationError, match="QUEUEBRIDGE_PUBLIC_URL"),
    ):
        bridge.enqueue(send, "x")
    assert server.requests == []


@pytest.mark.parametrize("token", ["planted secret", "planted\nsecret", "plantéd-secret", "“planted-secret”"])
def test_impossible_token_is_refused_without_being_shown(token: str, server: RecordingQStash) -> None:
    with pytest.raises(ConfigurationError, match="QSTASH_TOKEN") as caught:
        bridge_to(server.url, {"QSTASH_TOKEN": token})
    assert "secret" not in str(caught.value)


def test_missing_token_is_named() -> None:
    with pytest.raises(ConfigurationError, match="QSTASH_TOKEN"):
        Bridge("qstash", registry=registry, environ={"QSTASH_URL": "https://qstash.upstash.io"})


# Threads and life time


def test_one_backend_serves_many_threads(bridge: Bridge, server: RecordingQStash) -> None:
    barrier = threading.Barrier(16)

    def enqueue(number: int) -> str:
        if number < 16:
            barrier.wait(10)
        return bridge.enqueue(send, str(number)).job_id

    with ThreadPoolExecutor(16) as pool:
        returned = list(pool.map(enqueue, range(160)))

    arrived = [json.loads(request.body) for request in server.requests]
    assert sorted(body["job_id"] for body in arrived) == sorted(returned)
    assert {body["job_id"]: body["args"][0] for body in arrived} == {
        job_id: str(number) for number, job_id in enumerate(returned)
    }


def test_closed_backend_can_be_used_again(bridge: Bridge, server: RecordingQStash) -> None:
    bridge.close()
    bridge.enqueue(send, "a")
    bridge.close()
    bridge.close()
    bridge.enqueue(send, "b")

    assert len(server.requests) == 2


def test_closing_does_not_disturb_those_who_publish(bridge: Bridge, server: RecordingQStash) -> None:
    over = threading.Event()

    def close() -> None:
        while not over.is_set():
            bridge.close()

    with ThreadPoolExecutor(5) as pool:
        closing = pool.submit(close)
        try:
            published = [pool.submit(bridge.enqueue, send, str(number)) for number in range(60)]
            for future in published:
                future.result(30)
        finally:
            over.set()
        closing.result(10)

    assert sorted(int(json.loads(request.body)["args"][0]) for request in server.requests) == list(range(60))


def test_forked_process_opens_connections_of_its_own(
    bridge: Bridge, server: RecordingQStash, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bridge.backend
    assert isinstance(backend, QStashBackend)
    bridge.enqueue(send, "parent")
    inherited = backend._http

    monkeypatch.setattr("queuebridge.backends.qstash.backend.os.getpid", lambda: -1)
    bridge.enqueue(send, "child")

    assert inherited is not None
    assert backend._http is not inherited
    inherited.close()


def test_ping_asks_for_something_that_needs_the_token(bridge: Bridge, server: RecordingQStash) -> None:
    said = bridge.backend.ping()

    assert only(server).method == "GET"
    assert only(server).headers["Authorization"] == "Bearer test-token"
    assert server.url in said
    assert TOKEN not in said


def test_policy_of_the_envelope_decides_how_often_qstash_tries(server: RecordingQStash) -> None:
    own = TaskRegistry()
    never = task(name="never", retries=0, registry=own)(lambda: None)
    assert never.retry == RetryPolicy(retries=0)
    with Bridge(
        registry=own,
        environ={"QSTASH_TOKEN": TOKEN, "QSTASH_URL": server.url, "QUEUEBRIDGE_PUBLIC_URL": "https://x.example"},
    ) as bridge:
        bridge.enqueue(never)

    assert only(server).headers["Upstash-Retries"] == "0"


def test_host_that_the_environment_exempts_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordingQStash(otherwise=accept) as proxy, RecordingQStash(otherwise=accept) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("no_proxy", raising=False)
        with bridge_to(server.url) as bridge:
            bridge.enqueue(send, "x")

    assert proxy.requests == []
    assert len(server.requests) == 1


def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordingQStash(otherwise=accept) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with bridge_to("http://qstash.invalid") as bridge:
            bridge.enqueue(send, "x")

    assert only(proxy).path == f"http://qstash.invalid/v2/publish/{RECEIVER}/deliver"
