"""What the caller is told when QStash refuses, fails, is slow or is not there, and how long that takes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
import pytest
from recording_qstash import Answer, RecordingQStash, at_most, dripping, raw_server, silent

from queuebridge import (
    BackendUnavailable,
    Bridge,
    Call,
    EnqueueManyError,
    EnqueueOptions,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
    TaskRegistry,
    task,
)

SECRET = "planted-token"
registry = TaskRegistry()


@task(name="work", registry=registry)
def work(number: int = 0) -> None:
    """Do nothing."""


def bridge_to(url: str, *, timeout: float = 5, **environ: str) -> Bridge:
    return Bridge(
        registry=registry,
        environ={
            "QUEUEBRIDGE_BACKEND": "qstash",
            "QSTASH_TOKEN": SECRET,
            "QSTASH_URL": url,
            "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
            "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": str(timeout),
            **environ,
        },
    )


@contextmanager
def answering(*answers: Answer, otherwise: Answer | None = None) -> Iterator[tuple[Bridge, RecordingQStash]]:
    """Run a QStash that gives these answers, and a bridge to it."""
    more: dict[str, Any] = {} if otherwise is None else {"otherwise": lambda _request: otherwise}
    with RecordingQStash(answers, **more) as server, bridge_to(server.url) as bridge:
        yield bridge, server


def said(status: int, text: str, **headers: str) -> Answer:
    return Answer(status, {"error": text}, headers)


REFUSALS: dict[str, tuple[Answer, type[PublishError], list[str]]] = {
    "401": (said(401, "unable to authenticate: invalid token"), PublishRejected, ["QSTASH_TOKEN", "invalid token"]),
    "400": (said(400, "invalid destination url: endpoint resolves to a loopback address: ::1"), PublishRejected,
            ["loopback", "QUEUEBRIDGE_PUBLIC_URL"]),
    "403": (said(403, "read-only token"), PublishRejected, ["403", "read-only"]),
    "404": (said(404, "not found"), PublishRejected, ["QSTASH_URL"]),
    "404 in HTML": (Answer(404, b"<html>Not Found</html>", {"Content-Type": "text/html"}), PublishRejected,
                    ["QSTASH_URL"]),
    "405": (Answer(405, b""), PublishRejected, ["QSTASH_URL"]),
    "412 retries": (said(412, "quota maxRetries exceeded"), PublishRejected, ["retries="]),
    "412 delay": (said(412, "quota maxDelay exceeded, current limit: 604800"), PublishRejected, ["delays"]),
    "413": (said(413, "too large"), PublishRejected, ["413"]),
    "301": (Answer(301, b"", {"Location": "https://elsewhere.example"}), PublishRejected, ["301", "QSTASH_URL"]),
    "307": (Answer(307, b"", {"Location": "https://elsewhere.example"}), PublishRejected, ["307", "QSTASH_URL"]),
    "429 daily": (said(429, "daily limit", **{"RateLimit-Limit": "500"}), BackendUnavailable, ["limit"]),
    "429 burst": (said(429, "slow down", **{"Burst-RateLimit-Limit": "5"}), BackendUnavailable, ["limit"]),
    "503": (Answer(503, b"<html>maintenance</html>"), BackendUnavailable, ["maintenance"]),
    "500": (said(500, "oops"), PublishOutcomeUnknown, ["500", "oops"]),
    "502": (Answer(502, b"<html>Bad Gateway</html>"), PublishOutcomeUnknown, ["502"]),
    "504": (Answer(504, b""), PublishOutcomeUnknown, ["504"]),
    "522": (Answer(522, b""), PublishOutcomeUnknown, ["522"]),
    "408": (Answer(408, b""), PublishOutcomeUnknown, ["408"]),
    "200 in HTML": (Answer(200, b"<html>Welcome</html>"), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, empty": (Answer(200, b""), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, null": (Answer(200, None), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, text": (Answer(200, "ok"), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, no id": (Answer(200, {"ok": True}), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, id null": (Answer(200, {"messageId": None}), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, list": (Answer(200, [{"messageId": "msg_1", "url": "u"}]), PublishOutcomeUnknown, ["QSTASH_URL"]),
    "200, binary": (Answer(200, bytes(range(256))), PublishOutcomeUnknown, ["QSTASH_URL"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_answer_becomes_an_error_in_words_for_the_user(case: str) -> None:
    answer, kind, expected = REFUSALS[case]
    with answering(otherwise=answer) as (bridge, _), pytest.raises(kind) as caught, at_most(5):
        bridge.apply_async(work, options=EnqueueOptions(task_id="job-1", retry=False))

    assert type(caught.value) is kind
    for text in expected:
        assert text in str(caught.value)
    assert SECRET not in str(caught.value)
    if isinstance(caught.value, PublishOutcomeUnknown):
        assert caught.value.job_id == "job-1"
        assert "job-1" in str(caught.value)


@pytest.mark.parametrize("case", [case for case in REFUSALS if "200" not in case])
def test_answer_to_a_batch_becomes_the_error_of_each_job(case: str) -> None:
    answer, kind, _ = REFUSALS[case]
    calls = [Call(work, [n], options=EnqueueOptions(task_id=f"job-{n}", retry=False)) for n in range(2)]
    with answering(otherwise=answer) as (bridge, _), pytest.raises(EnqueueManyError) as caught:
        bridge.enqueue_many(calls)

    assert [type(result) for result in caught.value.results] == [kind, kind]
    for number, result in enumerate(caught.value.results):
        if isinstance(result, PublishOutcomeUnknown):
            assert result.job_id == f"job-{number}"
            assert str(result).count("may or may not") == 1


BATCH_ANSWERS = {
    "object": {"messageId": "msg_1"},
    "too few": [{"messageId": "msg_1"}],
    "too many": [{"messageId": "msg_1"}] * 3,
    "text": ["msg_1", "msg_2"],
    "null elements": [None, None],
    "lists": [[{"messageId": "msg_1"}], [{"messageId": "msg_2"}]],
    "null": None,
    "number as id": [{"messageId": 1}, {"messageId": 2}],
}


@pytest.mark.parametrize("case", BATCH_ANSWERS)
def test_batch_answer_of_another_shape_leaves_the_outcome_unknown(case: str) -> None:
    with (
        answering(otherwise=Answer(200, BATCH_ANSWERS[case])) as (bridge, server),
        pytest.raises(EnqueueManyError) as caught,
    ):
        bridge.enqueue_many([Call(work, [1]), Call(work, [2])])

    assert [type(result) for result in caught.value.results] == [PublishOutcomeUnknown] * 2
    assert len(server.requests) == 1


def test_long_answer_is_shortened() -> None:
    with answering(otherwise=said(400, "x" * 100_000)) as (bridge, _), pytest.raises(PublishRejected) as caught:
        bridge.enqueue(work)

    assert len(str(caught.value)) < 1000


def test_server_that_echoes_the_token_does_not_make_us_show_it(caplog: pytest.LogCaptureFixture) -> None:
    with answering(otherwise=said(401, f"bad token {SECRET} at https://u:{SECRET}@h")) as (bridge, _):
        with pytest.raises(PublishRejected) as caught:
            bridge.enqueue(work)
        with pytest.raises(EnqueueManyError) as many:
            bridge.enqueue_many([Call(work)])

    assert SECRET not in f"{caught.value}{caught.value!r}{many.value}{many.value.results}{caplog.text}"
    assert SECRET not in repr(bridge.backend) + repr(bridge.settings)


# Retries


def test_retry_uses_the_same_deduplication_id() -> None:
    with answering(said(500, "oops"), Answer(502, b""), Answer(429, b"")) as (bridge, server):
        receipt = bridge.enqueue(work)

    ids = [request.headers["Upstash-Deduplication-Id"] for request in server.requests]
    assert ids == [f"{receipt.dispatch_id}-0"] * 4
    assert len({request.body for request in server.requests}) == 1


def test_batch_is_retried_with_the_same_deduplication_ids() -> None:
    with answering(said(500, "oops")) as (bridge, server):
        bridge.enqueue_many([Call(work, [1]), Call(work, [2])])

    assert len(server.requests) == 2
    assert server.requests[0].body == server.requests[1].body


def test_retry_can_be_switched_off() -> None:
    with answering(said(500, "oops")) as (bridge, server), pytest.raises(PublishOutcomeUnknown):
        bridge.apply_async(work, options=EnqueueOptions(retry=False))

    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412])
def test_refusal_is_not_retried(status: int) -> None:
    with answering(otherwise=said(status, "no")) as (bridge, server), pytest.raises(PublishRejected):
        bridge.enqueue(work)

    assert len(server.requests) == 1


@pytest.mark.parametrize("later", [said(401, "invalid token"), said(429, "limit"), said(503, "gone")])
def test_what_an_unclear_attempt_may_have_achieved_is_not_denied(later: Answer) -> None:
    # The first attempt may have been accepted, whatever became of the second.
    with answering(said(500, "oops"), otherwise=later) as (bridge, server), pytest.raises(PublishOutcomeUnknown):
        bridge.enqueue(work)

    assert len(server.requests) > 1


def test_attempts_are_bounded() -> None:
    with answering(otherwise=said(500, "oops")) as (bridge, server), at_most(5), pytest.raises(PublishOutcomeUnknown):
        bridge.enqueue(work)

    assert len(server.requests) == 4


def test_server_that_comes_up_in_time_gets_the_job(free_port: Callable[[], int]) -> None:
    port = free_port()
    refused = threading.Event()

    with bridge_to(f"http://127.0.0.1:{port}") as bridge:
        results: list[Any] = []
        enqueuing = threading.Thread(target=lambda: results.append(bridge.enqueue(work)))
        original = httpx.HTTPTransport.handle_request

        def handle_request(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            try:
                return original(self, request)
            except httpx.ConnectError:
                refused.set()
                raise

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(httpx.HTTPTransport, "handle_request", handle_request)
            enqueuing.start()
            assert refused.wait(10)
            with RecordingQStash(port=port) as server:
                enqueuing.join(10)

    assert [receipt.message_id for receipt in results] == ["msg_1"]
    assert len(server.requests) == 1


def test_connection_that_breaks_after_the_request_leaves_the_outcome_unknown() -> None:
    def hang_up(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)

    with (
        raw_server(hang_up) as place,
        bridge_to(f"http://{place}", timeout=1) as bridge,
        pytest.raises(PublishOutcomeUnknown),
    ):
        bridge.enqueue(work)


# Deadlines


def test_unreachable_server_is_reported_within_the_deadline(free_port: Callable[[], int]) -> None:
    with (
        bridge_to(f"http://127.0.0.1:{free_port()}") as bridge,
        at_most(5),
        pytest.raises(BackendUnavailable, match="cannot be reached"),
    ):
        bridge.enqueue(work)


def test_unknown_host_is_unavailable() -> None:
    with bridge_to("http://qstash.invalid") as bridge, pytest.raises(BackendUnavailable):
        bridge.enqueue(work)


SLOW: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "silent": silent,
    "dripping status line": dripping(b"HTTP/1.1 200 O", b"K"),
    "dripping headers": dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n"),
    "dripping body": dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "dripping chunks": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "endless preliminary answers": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("case", SLOW)
def test_deadline_holds_whatever_a_slow_server_does(case: str) -> None:
    with raw_server(SLOW[case]) as place, bridge_to(f"http://{place}", timeout=0.4) as bridge:
        with at_most(1.5), pytest.raises(PublishOutcomeUnknown):
            bridge.enqueue(work)
        with at_most(1.5), pytest.raises(EnqueueManyError) as caught:
            bridge.enqueue_many([Call(work, [1]), Call(work, [2])])
        with at_most(1.5), pytest.raises(PublishError):
            bridge.backend.ping()

    assert [type(result) for result in caught.value.results] == [PublishOutcomeUnknown] * 2


def test_default_deadline_is_five_seconds() -> None:
    started = time.monotonic()
    with (
        raw_server(silent) as place,
        bridge_to(f"http://{place}", QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS="") as bridge,
        pytest.raises(PublishOutcomeUnknown),
    ):
        bridge.enqueue(work)

    assert 4.5 <= time.monotonic() - started <= 6.5


def test_host_with_many_dead_addresses_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_connection
    tried = []

    def create_connection(address: tuple[str, int], timeout: float, **more: Any) -> socket.socket:
        if address[0].startswith("192.0.2."):
            # As a firewall that drops packets makes it.
            tried.append(timeout)
            time.sleep(min(timeout, 5))
            raise TimeoutError("timed out")
        return real(address, timeout, **more)

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", port)) for n in range(1, 5)]

    monkeypatch.setattr("socket.create_connection", create_connection)
    resolver = SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=socket.SOCK_STREAM)
    monkeypatch.setattr("queuebridge.backends.qstash.deadline.socket", resolver)
    with bridge_to("http://qstash.example", timeout=0.4) as bridge, at_most(1.5), pytest.raises(BackendUnavailable):
        bridge.enqueue(work)

    assert len(tried) >= 4


def test_address_that_answers_is_found_behind_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as (_, server):
        port = int(server.url.rpartition(":")[2])
        addresses = [("127.0.0.9", 1), ("127.0.0.1", port)]

        def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        resolver = SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=socket.SOCK_STREAM)
        monkeypatch.setattr("queuebridge.backends.qstash.deadline.socket", resolver)
        with bridge_to(f"http://qstash.example:{port}") as bridge:
            bridge.enqueue(work)

    assert [request.headers["Host"] for request in server.requests] == [f"qstash.example:{port}"]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "127.0.0.1:9", None])
def test_deadlines_are_enforced_on_every_connection(monkeypatch: pytest.MonkeyPatch, proxy: str | None) -> None:
    # This needs the inside of httpx; a version that looks different must be noticed here.
    from queuebridge.backends.qstash.transport import QStashHttp

    if proxy is not None:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    http = QStashHttp("token", "https://qstash.example")

    pool = http._transport._pool
    assert isinstance(pool, httpcore.HTTPProxy) is (proxy is not None)
    assert not isinstance(pool._network_backend, httpcore.SyncBackend)
    http.close()


def test_unreachable_qstash_costs_a_long_batch_one_deadline_only(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queuebridge.backends.qstash.batching._BATCH_JOBS", 2)
    with (
        bridge_to(f"http://127.0.0.1:{free_port()}", timeout=0.5) as bridge,
        at_most(1.5),
        pytest.raises(EnqueueManyError) as caught,
    ):
        bridge.enqueue_many([Call(work, [number]) for number in range(20)])

    assert [type(result) for result in caught.value.results] == [BackendUnavailable] * 20


def test_refused_part_of_a_batch_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuebridge.backends.qstash.batching._BATCH_JOBS", 1)
    with answering(said(412, "quota")) as (bridge, server), pytest.raises(EnqueueManyError) as caught:
        bridge.enqueue_many([Call(work, [number]) for number in range(3)])

    assert [isinstance(result, Exception) for result in caught.value.results] == [True, False, False]
    assert [json.loads(json.loads(request.body)[0]["body"])["args"] for request in server.requests] == [[0], [1], [2]]


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:99999", "http://a b"])
def test_address_that_is_none_is_a_clear_error(url: str) -> None:
    from queuebridge import QueueBridgeError

    with pytest.raises(QueueBridgeError, match=r"QSTASH_URL|reached"), bridge_to(url, timeout=1) as bridge:
        bridge.enqueue(work)


def test_password_in_the_address_is_not_shown(free_port: Callable[[], int], caplog: pytest.LogCaptureFixture) -> None:
    shown = ""
    with RecordingQStash(otherwise=lambda _request: said(401, "no")) as server:
        for place in (server.url.removeprefix("http://"), f"127.0.0.1:{free_port()}"):
            with bridge_to(f"http://user:{SECRET}@{place}", timeout=1) as bridge:
                with pytest.raises(PublishError) as caught:
                    bridge.enqueue(work)
                shown += str(caught.value)
                with pytest.raises(PublishError) as caught:
                    bridge.backend.ping()
                shown += str(caught.value)

    assert SECRET not in shown + caplog.text
