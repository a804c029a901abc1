"""What the receiver answers: the reply table row by row, plain task calls, failure callbacks, health."""

from __future__ import annotations

import base64
import json
import logging
import time
from typing import Any

import pytest
from receiving import MISSING, PUBLIC_URL, ReceiverUnderTest, claims_for, envelope, sign

from bridge_app import FailedDelivery, create_app
from bridge_app.replies import STATUS_CODES, retry_after
from queuebridge import BackendUnavailable, Bridge, PermanentFailure, RetryLater, TaskRegistry, task
from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.envelope import VERSION
from queuebridge.outcome import Status
from queuebridge.receipt import Write

NON_RETRYABLE = "Upstash-NonRetryable-Error"


def failing(error: BaseException, **options: Any) -> ReceiverUnderTest:
    """Return a receiver whose task `fail` raises this."""
    receiver = ReceiverUnderTest()

    def fail() -> None:
        raise error

    task(name="fail", registry=receiver.recorder.registry, **options)(fail)
    return receiver


RETRY_ONCE = {"retries": 1, "delays": [30]}


def test_table_has_a_row_for_every_end_of_a_delivery() -> None:
    assert set(STATUS_CODES) == set(Status)


def test_done_is_200_with_the_result() -> None:
    answer = ReceiverUnderTest().deliver(job_id="job-1", kwargs={"value": {"a": [1, None]}})

    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert answer.get_json() == {"status": "done", "job_id": "job-1", "result": {"a": [1, None]}}
    assert NON_RETRYABLE not in answer.headers
    assert "Retry-After" not in answer.headers


def test_result_that_is_not_json_is_200_with_its_repr() -> None:
    receiver = ReceiverUnderTest()
    task(name="odd", registry=receiver.recorder.registry)(lambda: object)

    answer = receiver.deliver("odd")

    assert answer.status_code == 200
    assert answer.get_json()["result"] == repr(object)


def test_failure_with_attempts_left_is_500_with_retry_after() -> None:
    answer = failing(ValueError("no\nluck")).deliver("fail", retry=RETRY_ONCE, job_id="job-1")

    assert answer.status_code == 500
    assert answer.mimetype == "application/json"
    assert answer.headers["Retry-After"] == "30"
    assert answer.get_json() == {"status": "retry", "job_id": "job-1", "error": "ValueError: no luck"}
    assert NON_RETRYABLE not in answer.headers


def test_failure_of_the_last_attempt_is_489() -> None:
    receiver = failing(ValueError("no luck"))

    answer = receiver.post(
        json.dumps(envelope("fail", retry=RETRY_ONCE, job_id="job-1")).encode(), headers={"Upstash-Retried": "1"}
    )

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"
    assert "Retry-After" not in answer.headers
    assert answer.get_json() == {"status": "failed", "job_id": "job-1", "error": "ValueError: no luck"}


def test_permanent_failure_is_489_at_once() -> None:
    answer = failing(PermanentFailure("never")).deliver("fail", retry=RETRY_ONCE)

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"


def test_given_up_exception_is_489_at_once() -> None:
    assert failing(KeyError("x"), give_up_on=[LookupError]).deliver("fail", retry=RETRY_ONCE).status_code == 489


@pytest.mark.parametrize(
    ("delay", "header"),
    [(0, "0"), (90, "90"), (1.5, "1500ms"), (0.0001, "1ms"), (86_400, "86400"), (200_000, "86400")],
    ids=str,
)
def test_delay_asked_for_is_passed_on_as_qstash_reads_it(delay: float, header: str) -> None:
    answer = failing(RetryLater(delay_seconds=delay)).deliver("fail", retry=RETRY_ONCE)

    assert answer.status_code == 500
    assert answer.headers["Retry-After"] == header


def test_retry_after_is_never_shorter_than_the_delay() -> None:
    assert [retry_after(seconds) for seconds in (0.0, 1.0001, 59.9999, 3600.0)] == ["0", "1001ms", "60000ms", "3600"]


def test_invalid_arguments_are_489_without_their_values() -> None:
    receiver = ReceiverUnderTest()
    task(name="typed", registry=receiver.recorder.registry)(_typed)

    answer = receiver.deliver("typed", kwargs={"number": "planted-secret"})

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"
    assert answer.get_json()["status"] == "invalid_arguments"
    assert "number" in answer.get_json()["error"]
    assert "planted-secret" not in answer.text


def _typed(number: int) -> int:
    return number


def test_unknown_task_is_404_and_may_be_retried() -> None:
    answer = ReceiverUnderTest().deliver("recrod", job_id="job-1")

    assert answer.status_code == 404
    assert answer.mimetype == "application/json"
    assert NON_RETRYABLE not in answer.headers
    said = answer.get_json()
    assert (said["status"], said["job_id"]) == ("unknown_task", "job-1")
    assert "'record'" in said["error"]
    assert "QUEUEBRIDGE_TASKS" in said["error"]


def test_newer_envelope_is_503_and_may_be_retried() -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.deliver(version=VERSION + 1, something_new={"x": 1})

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "60"
    assert "version" in answer.get_json()["error"]
    assert receiver.calls == []


def test_expired_is_200_and_not_executed() -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.deliver(expires_at_ms=int(time.time() * 1000) - 1000, job_id="job-1")

    assert answer.status_code == 200
    assert answer.get_json()["status"] == "expired"
    assert receiver.calls == []


MALFORMED = {
    "not JSON": b"hello",
    "binary": bytes(range(256)),
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "no version of ours": json.dumps(envelope(version="1")).encode(),
    "version 0": json.dumps(envelope(version=0)).encode(),
    "no task": json.dumps(envelope(task=MISSING)).encode(),
    "unknown field": json.dumps(envelope(extra=1)).encode(),
    "unknown kind": json.dumps(envelope(kind="mystery")).encode(),
    "arguments of another type": json.dumps(envelope(args={"a": 1})).encode(),
    "colon in the dispatch id": json.dumps(envelope(dispatch_id="a:b")).encode(),
    "huge number": b'{"version":1,"enqueued_at_ms":' + b"9" * 5000 + b"}",
    "lone surrogate": json.dumps(envelope(task="\ud800")).encode(),
    "UTF-16": json.dumps(envelope()).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(envelope()).encode(),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_signed_body_that_is_no_envelope_is_489(case: str) -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.post(MALFORMED[case])

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"
    assert answer.mimetype == "application/json"
    assert receiver.calls == []


@pytest.mark.parametrize(
    ("retried", "attempt"),
    [("0", 1), ("2", 3), ("", 1), ("-1", 1), ("abc", 1), ("²", 1), ("1" * 4000, 1), ("1.5", 1)],
)
def test_attempt_is_taken_from_the_header_if_it_is_a_number(retried: str, attempt: int) -> None:
    receiver = ReceiverUnderTest()

    body = json.dumps(envelope(retry={"retries": 9})).encode()
    answer = receiver.post(body, headers={"Upstash-Retried": retried.encode().decode("latin-1")})

    assert answer.status_code == 200
    assert [call["attempt"] for call in receiver.calls] == [attempt]


def test_job_sees_what_was_sent_along() -> None:
    receiver = ReceiverUnderTest()

    receiver.deliver(job_id="job-1", metadata={"user_id": 7}, headers={"X-Tenant": "a"}, timeout_seconds=5)

    job = receiver.calls[0]["job"]
    assert (job.job_id, job.backend, job.message_id) == ("job-1", "qstash", "msg_1")
    assert job.metadata == {"user_id": 7}
    assert job.headers == {"X-Tenant": "a"}
    assert job.deadline is not None


def test_task_that_runs_past_its_timeout_is_stopped_and_retried() -> None:
    receiver = ReceiverUnderTest()
    finished = []

    def slow() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass
        finished.append(1)

    task(name="slow", registry=receiver.recorder.registry)(slow)

    answer = receiver.deliver("slow", timeout_seconds=0.05, retry=RETRY_ONCE)

    assert answer.status_code == 500
    assert "TaskTimeout" in answer.get_json()["error"]
    assert finished == []


# Plain calls


def call(receiver: ReceiverUnderTest, body: bytes, name: str = "record", **headers: str) -> Any:
    return receiver.post(body, path=f"/queuebridge/tasks/{name}", headers=headers)


@pytest.mark.parametrize(
    ("body", "value"), [(b'{"value": 3}', 3), (b"{}", None), (b"", None), (b' {"value":"x"} ', "x")]
)
def test_json_object_becomes_the_keyword_arguments(body: bytes, value: Any) -> None:
    receiver = ReceiverUnderTest()

    answer = call(receiver, body)

    assert answer.status_code == 200
    assert answer.get_json() == {"status": "done", "job_id": "msg_1", "result": value}
    assert [call["value"] for call in receiver.calls] == [value]


@pytest.mark.parametrize("body", [b"[1]", b"1", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000])
def test_body_that_is_no_json_object_is_489(body: bytes) -> None:
    receiver = ReceiverUnderTest()

    answer = call(receiver, body)

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"
    assert receiver.calls == []


def test_arguments_that_do_not_fit_are_489() -> None:
    receiver = ReceiverUnderTest()

    answer = call(receiver, b'{"valeu": 3}')

    assert answer.status_code == 489
    assert "valeu" in answer.get_json()["error"]
    assert receiver.calls == []


def test_task_that_is_not_registered_is_404() -> None:
    answer = call(ReceiverUnderTest(), b"{}", name="os.system")

    assert answer.status_code == 404
    assert answer.mimetype == "application/json"
    assert "os.system" in answer.get_json()["error"]


def test_alias_of_a_renamed_task_is_understood() -> None:
    receiver = ReceiverUnderTest()
    task(name="new", aliases=["old"], registry=receiver.recorder.registry)(lambda: "ran")

    assert call(receiver, b"{}", name="old").get_json()["result"] == "ran"


def plain_call(receiver: ReceiverUnderTest, message_id: str) -> Any:
    body = b"{}"
    path = "/queuebridge/tasks/record"
    token = sign(claims_for(body, url=PUBLIC_URL + path))
    headers = {"Upstash-Signature": token, "Upstash-Message-Id": message_id.encode().decode("latin-1")}
    return receiver.client.post(path, data=body, headers=headers)


def test_calls_without_a_message_id_are_jobs_of_their_own() -> None:
    receiver = ReceiverUnderTest()

    first, second = plain_call(receiver, ""), plain_call(receiver, "")

    assert first.get_json()["job_id"] != second.get_json()["job_id"]


@pytest.mark.parametrize(
    ("message_id", "job_id"),
    [("msg_2", "msg_2"), ("a:b c", "a_b_c"), ("é", "__"), ("x" * 500, "x" * 200)],
    ids=["plain", "other characters", "non-ASCII", "too long"],
)
def test_message_id_stands_for_the_job(message_id: str, job_id: str) -> None:
    receiver = ReceiverUnderTest()

    answer = plain_call(receiver, message_id)

    assert answer.status_code == 200
    assert [call["job_id"] for call in receiver.calls] == [job_id]


def test_plain_call_is_retried_by_the_policy_of_the_task() -> None:
    receiver = failing(ValueError("x"), retries=1, backoff=[7])

    first = call(receiver, b"{}", name="fail")
    last = receiver.post(b"{}", path="/queuebridge/tasks/fail", headers={"Upstash-Retried": "1"})

    assert (first.status_code, first.headers["Retry-After"]) == (500, "7")
    assert last.status_code == 489


# Failure callbacks


def callback(**changes: Any) -> bytes:
    """Return a failure callback as the protocol shows it; `changes` set single fields, or leave out MISSING ones."""
    job = json.dumps(envelope(job_id="job-1")).encode()
    content = {
        "status": 500,
        "header": {"Content-Type": ["application/json"]},
        "body": base64.b64encode(b'{"error":"no luck"}').decode(),
        "retried": 3,
        "maxRetries": 3,
        "dlqId": "1725323658779-0",
        "sourceMessageId": "msg_source",
        "url": "https://jobs.example.com/queuebridge/deliver",
        "method": "POST",
        "sourceHeader": {"Content-Type": ["application/json"]},
        "sourceBody": base64.b64encode(job).decode(),
        "notBefore": 1725323658779,
        "createdAt": 1725323658779,
        "callerIP": "127.0.0.1",
        **changes,
    }
    return json.dumps({name: value for name, value in content.items() if value is not MISSING}).encode()


def failed(receiver: ReceiverUnderTest, body: bytes) -> Any:
    return receiver.post(body, path="/queuebridge/failed")


def test_failure_callback_is_logged_and_given_to_the_hook(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[FailedDelivery] = []

    answer = failed(ReceiverUnderTest(on_failed=seen.append), callback())

    assert answer.status_code == 200
    assert answer.get_json() == {"status": "recorded"}
    (failure,) = seen
    assert (failure.message_id, failure.dlq_id, failure.status, failure.retried) == (
        "msg_source",
        "1725323658779-0",
        500,
        3,
    )
    assert failure.reply == '{"error":"no luck"}'
    assert failure.envelope is not None
    assert failure.envelope.job_id == "job-1"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    for expected in ("msg_source", "job-1", "record", "500", "1725323658779-0"):
        assert expected in record.getMessage()


CALLBACKS: dict[str, dict[str, Any]] = {
    "numbers as text": {"status": "500", "retried": "3", "notBefore": "1725323658779", "createdAt": "1725323658779"},
    "plain strings in headers": {"sourceHeader": {"Content-Type": "application/json"}, "header": {"A": "b"}},
    "without retried": {"retried": MISSING},
    "null where nothing is": {"retried": None, "status": None, "body": None, "dlqId": None, "sourceBody": None},
    "without body": {"body": MISSING},
    "without source body": {"sourceBody": MISSING},
    "without dlq id": {"dlqId": MISSING},
    "without status": {"status": MISSING},
    "status 0": {"status": 0, "body": MISSING, "header": {}},
    "fields of url groups": {"topicName": "t", "endpointName": "e"},
    "fields of later versions": {"somethingNew": {"x": [1]}},
    "foreign source body": {"sourceBody": base64.b64encode(b'{"number": 1}').decode()},
    "binary source body": {"sourceBody": base64.b64encode(bytes(range(256))).decode()},
    "source body of a newer version": {
        "sourceBody": base64.b64encode(json.dumps(envelope(version=VERSION + 1)).encode()).decode()
    },
    "bodies that are not base64": {"sourceBody": "é", "body": "x"},
}


@pytest.mark.parametrize("case", CALLBACKS)
def test_failure_callback_in_every_shape_is_recorded(case: str) -> None:
    seen: list[FailedDelivery] = []

    answer = failed(ReceiverUnderTest(on_failed=seen.append), callback(**CALLBACKS[case]))

    assert answer.status_code == 200
    assert [failure.message_id for failure in seen] == ["msg_source"]


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", bytes(range(256)), callback(sourceMessageId=MISSING)])
def test_signed_body_that_is_no_callback_is_489(body: bytes) -> None:
    seen: list[FailedDelivery] = []

    answer = failed(ReceiverUnderTest(on_failed=seen.append), body)

    assert answer.status_code == 489
    assert answer.headers[NON_RETRYABLE] == "true"
    assert seen == []


def test_hook_that_fails_makes_qstash_call_again(caplog: pytest.LogCaptureFixture) -> None:
    def hook(failure: FailedDelivery) -> None:
        raise OSError("disk full")

    answer = failed(ReceiverUnderTest(on_failed=hook), callback())

    assert answer.status_code == 500
    assert answer.mimetype == "application/json"
    assert "disk full" in answer.get_json()["error"]
    assert "Traceback" in caplog.text
    assert "Traceback" not in answer.text


def test_callback_needs_no_hook() -> None:
    assert failed(ReceiverUnderTest(), callback()).status_code == 200


# Health


class Probed(Backend):
    """A backend whose ping does as it is told."""

    name = "probed"
    capabilities = Capabilities()

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def check(self, publication: Publication) -> None:
        raise NotImplementedError

    def publish(self, publication: Publication) -> Write:
        raise NotImplementedError

    def ping(self) -> str:
        if self._error is not None:
            raise self._error
        return "answers"


def probed(error: Exception | None = None, changes: dict[str, str | None] | None = None) -> ReceiverUnderTest:
    plain = ReceiverUnderTest(changes)
    bridge = Bridge(Probed(error), registry=plain.recorder.registry, environ=plain.environ)
    return ReceiverUnderTest(app=create_app(bridge, environ=plain.environ))


def test_health_says_what_is_configured() -> None:
    answer = ReceiverUnderTest().client.get("/queuebridge/health")

    assert answer.status_code == 200
    assert answer.get_json() == {
        "status": "ok",
        "backend": "inline",
        "environment": "development",
        "public_urls": [PUBLIC_URL],
        "prefix": "/queuebridge",
        "tasks": 1,
    }


def test_health_asks_nobody() -> None:
    assert probed(BackendUnavailable("probed", "gone")).client.get("/queuebridge/health").status_code == 200


def test_ready_if_everything_is() -> None:
    answer = probed().client.get("/queuebridge/ready")

    assert answer.status_code == 200
    said = answer.get_json()
    assert said["status"] == "ready"
    assert {name: check["ok"] for name, check in said["checks"].items()} == {
        "receiver": True,
        "tasks": True,
        "backend": True,
    }
    assert said["checks"]["backend"]["detail"] == "answers"


@pytest.mark.parametrize(
    "error",
    [BackendUnavailable("probed", "cannot be reached"), RuntimeError("cannot be reached")],
    ids=["known", "unknown"],
)
def test_not_ready_if_the_backend_is_unreachable(error: Exception) -> None:
    answer = probed(error).client.get("/queuebridge/ready")

    assert answer.status_code == 503
    said = answer.get_json()
    assert said["status"] == "not ready"
    assert said["checks"]["backend"]["ok"] is False
    assert "cannot be reached" in said["checks"]["backend"]["detail"]


def test_not_ready_without_keys() -> None:
    answer = probed(changes={"QSTASH_CURRENT_SIGNING_KEY": None, "QSTASH_NEXT_SIGNING_KEY": None}).client.get(
        "/queuebridge/ready"
    )

    assert answer.status_code == 503
    assert "QSTASH_CURRENT_SIGNING_KEY" in answer.get_json()["checks"]["receiver"]["detail"]


def test_not_ready_without_tasks() -> None:
    environ = ReceiverUnderTest().environ
    empty = create_app(Bridge(registry=TaskRegistry(), environ=environ), environ=environ)
    answer = empty.test_client().get("/queuebridge/ready")

    assert answer.status_code == 503
    assert "QUEUEBRIDGE_TASKS" in answer.get_json()["checks"]["tasks"]["detail"]


def test_password_in_the_text_of_an_error_does_not_reach_qstash() -> None:
    receiver = failing(PermanentFailure("cannot connect to postgresql://app:planted@db/prod"))

    answer = receiver.deliver("fail")

    assert answer.status_code == 489
    assert "planted" not in answer.text
    assert "cannot connect to postgresql://" in answer.text


@pytest.mark.parametrize("probe", ["health", "ready"])
def test_application_of_its_own_answers_probes_at_the_root_too(probe: str) -> None:
    receiver = ReceiverUnderTest()

    root, below = receiver.client.get(f"/{probe}"), receiver.client.get(f"/queuebridge/{probe}")

    assert (root.status_code, root.get_json()) == (below.status_code, below.get_json())
    assert root.status_code != 404
