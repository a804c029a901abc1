"""Workflows of the official Python SDK on the development server: a real application, real crashes."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import ChildProcess, Spawner, wait_until
from workflows import DEADLINE, USER, Application

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server

AUTHORIZED = {"Authorization": f"Bearer {USER.token}"}
PAYLOAD = {"name": "Ada", "note": "grüße"}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server in memory that retries a thousand times as fast."""
    with running_server(ServerSettings(port=0, engine=EngineSettings(time_scale=1000))) as url:
        yield url


@pytest.fixture
def application(base_url: str) -> Iterator[Application]:
    """An application of that server."""
    found = Application(base_url)
    yield found
    found.stop()


def start_run(http: httpx.Client, url: str, run_id: str, payload: Any = PAYLOAD, **headers: str) -> dict[str, Any]:
    """Begin a run as `client.trigger` of the TypeScript SDK does."""
    item = {
        "destination": url,
        "headers": {
            "Content-Type": "application/json",
            "Upstash-Workflow-Init": "true",
            "Upstash-Workflow-RunId": run_id,
            "Upstash-Workflow-Url": url,
            "Upstash-Feature-Set": "LazyFetch,InitialBody,WF_DetectTrigger",
            "Upstash-Forward-Upstash-Workflow-Sdk-Version": "1",
            **headers,
        },
        "body": json.dumps(payload),
    }
    answer = http.post("/v2/batch", json=[item])
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()[0]
    return result


def append(http: httpx.Client, url: str, run_id: str, record: Any) -> httpx.Response:
    headers = {
        "Upstash-Workflow-Init": "false",
        "Upstash-Workflow-RunId": run_id,
        "Upstash-Workflow-Url": url,
        "Upstash-Forward-Upstash-Workflow-Sdk-Version": "1",
    }
    item = {"destination": url, "headers": headers, "body": json.dumps(record)}
    return http.post("/v2/batch", json=[item])


def wait_for_end(http: httpx.Client, url: str, run_id: str) -> None:
    """Wait until nothing can be appended to a run any more."""
    record = {"stepId": 1, "stepName": "probe", "stepType": "Run", "out": "1", "concurrent": 1}

    def ended() -> bool:
        return append(http, url, run_id, record).status_code == 400

    wait_until(ended, DEADLINE, what=f"the end of {run_id}")


def deliveries(http: httpx.Client, url: str) -> int:
    """Return how often the server called a URL, once all of its messages are finished."""

    def finished() -> list[dict[str, Any]] | None:
        events: list[dict[str, Any]] = http.get("/v2/events", params={"url": url}).json()["events"]
        latest: dict[str, str] = {}
        for event in reversed(events):
            latest[event["messageId"]] = event["state"]
        return events if set(latest.values()) <= {"DELIVERED", "FAILED", "CANCELED"} else None

    return sum(event["state"] == "ACTIVE" for event in wait_until(finished, DEADLINE, what="the last delivery"))


def finishing(application: Application, *, steps: int) -> Callable[[Any], None]:
    def route(context: Any) -> None:
        results = [context.run(f"step {number}", lambda n=number: n * 10) for number in range(1, steps + 1)]
        application.seen.note(("done", results))

    return route


def test_steps_and_sleeps_of_a_published_run(application: Application, http: httpx.Client) -> None:
    seen = application.seen
    until = int(time.time()) + 3  # whole, because the SDK rounds it

    def route(context: Any) -> None:
        first = context.run("first", lambda: seen.note(("first", context.request_payload)))
        context.sleep("nap", 1)
        context.sleep_until("until then", until)
        context.sleep_until("long past", 1_000_000_000)
        second = context.run("second", lambda: {"of": first[1]["name"]})
        seen.note(("done", second, context.headers.get("X-User")))

    url = application.workflow("/mixed", route)
    application.start()

    application.client.message.publish_json(url=url, body=PAYLOAD, headers={"X-User": "u1"})

    seen.wait_for(("done", {"of": "Ada"}, "u1"))
    assert time.time() >= until
    assert seen.events.count(("first", PAYLOAD)) == 1
    assert deliveries(http, url) == 5 + 2


def test_run_begun_by_a_direct_request_where_no_keys_are_set(
    application: Application, http: httpx.Client
) -> None:
    url = application.workflow("/direct", finishing(application, steps=2), receiver=None)
    application.start()

    answer = httpx.post(url, json=PAYLOAD, trust_env=False)

    assert answer.json()["workflowRunId"].startswith("wfr_")
    application.seen.wait_for(("done", [10, 20]))
    assert deliveries(http, url) == 2 + 1  # and the direct one


def test_run_sent_to_the_server_needs_one_call_more_than_steps(
    application: Application, http: httpx.Client
) -> None:
    url = application.workflow("/straight", finishing(application, steps=3))
    application.start()

    start_run(http, url, "wfr_straight")

    application.seen.wait_for(("done", [10, 20, 30]))
    wait_for_end(http, url, "wfr_straight")
    assert deliveries(http, url) == 3 + 1


def test_call_has_the_answer_of_the_third_party(application: Application, http: httpx.Client) -> None:
    seen = application.seen

    def route(context: Any) -> None:
        answer = context.call(
            "ask", url=f"{application.url}/third-party", method="POST", body={"q": 1}, headers={"X-Call": "c"}
        )
        seen.note(("done", answer.status, answer.body, answer.header["Content-Type"]))

    url = application.workflow("/asking", route)
    application.start()

    start_run(http, url, "wfr_asking", **{"Upstash-Forward-X-User": "u1"})

    seen.wait_for(("done", 200, {"answer": 42}, ["application/json"]))
    (request,) = seen.third_party
    assert (request["method"], request["body"], request["headers"]["X-Call"]) == ("POST", '{"q": 1}', "c")
    assert not {name for name in request["headers"] if name.startswith(("Upstash-Workflow", "X-User"))}
    assert deliveries(http, url) == 3


def test_failing_third_party_is_data(application: Application, http: httpx.Client) -> None:
    seen = application.seen
    seen.third_party_answers = [500, 503, 418, 404]

    def route(context: Any) -> None:
        retried = context.call("retried", url=f"{application.url}/third-party", retries=2)
        once = context.call("once", url=f"{application.url}/third-party")
        refused = context.call("refused", url="http://127.0.0.1:1/")
        seen.note(("done", retried.status, once.status, refused.status, refused.body))

    url = application.workflow("/undeterred", route)
    application.start()

    start_run(http, url, "wfr_undeterred")

    seen.wait_for(("done", 418, 404, 502, ""))
    assert len(seen.third_party) == 4
    assert deliveries(http, url) == 3 * 2 + 1
    assert http.get("/v2/dlq", params={"url": url}).json()["messages"] == []


@pytest.mark.parametrize("timeout", [1, "1s"])
def test_call_that_takes_too_long_is_a_gateway_timeout(
    application: Application, http: httpx.Client, timeout: int | str
) -> None:
    seen = application.seen
    seen.third_party_answers = [0]

    def route(context: Any) -> None:
        answer = context.call("slow", url=f"{application.url}/third-party", timeout=timeout)
        seen.note(("done", answer.status))

    url = application.workflow("/patient", route)
    application.start()

    start_run(http, url, f"wfr_patient_{timeout}")

    seen.wait_for(("done", 504))


def test_step_that_fails_is_tried_again_and_the_others_are_not(
    application: Application, http: httpx.Client
) -> None:
    seen = application.seen
    failures = [RuntimeError("one"), RuntimeError("two")]

    def fail() -> str:
        if failures:
            raise failures.pop()
        return "at last"

    def route(context: Any) -> None:
        context.run("before", lambda: seen.note("before"))
        seen.note(("done", context.run("flaky", fail)))

    url = application.workflow("/flaky", route)
    application.start()

    start_run(http, url, "wfr_flaky")

    seen.wait_for(("done", "at last"))
    assert seen.events.count("before") == 1
    assert deliveries(http, url) == 2 + 1 + 2


def test_failure_function_is_told_when_the_retries_are_used_up(
    application: Application, http: httpx.Client
) -> None:
    seen = application.seen

    def fail() -> None:
        seen.note("attempt")
        raise RuntimeError("no way")

    def route(context: Any) -> None:
        context.run("before", lambda: 1)
        context.run("doomed", fail)

    def failed(context: Any, status: int, text: str, headers: dict[str, Any]) -> None:
        seen.note(("failed", context.workflow_run_id, context.request_payload, status, text, context.headers["X-User"]))

    url = application.workflow("/doomed", route, retries=2, failure_function=failed)
    application.start()

    headers = {"Upstash-Forward-X-User": "u1", "Upstash-Retries": "2"}
    start_run(http, url, "wfr_doomed", **headers)

    seen.wait_for(("failed", "wfr_doomed", PAYLOAD, 500, "no way", "u1"))
    assert seen.events.count("attempt") == 1 + 2
    assert deliveries(http, url) == 1 + 1 + 2 + 1
    wait_for_end(http, url, "wfr_doomed")
    (letter,) = http.get("/v2/dlq", params={"url": url}).json()["messages"]
    assert (letter["workflowRunId"], letter["workflowUrl"]) == ("wfr_doomed", url)
    refused = http.post(f"/v2/dlq/retry/{letter['dlqId']}")
    assert refused.status_code == 400
    assert "workflow" in refused.json()["error"]
    retried = http.post("/v2/dlq/retry", params={"url": url})
    assert (retried.status_code, retried.json()["responses"]) == (201, [])


def test_endpoint_that_cannot_take_the_result_of_a_call_fails_the_run(
    application: Application, http: httpx.Client
) -> None:
    """The Python SDK names no failure URL in a call; the one of the run's earlier steps counts."""
    seen = application.seen

    def route(context: Any) -> None:
        context.run("before", lambda: 1)
        context.call("ask", url=f"{application.url}/third-party")

    def failed(context: Any, status: int, text: str, headers: dict[str, Any]) -> None:
        seen.note(("failed", context.workflow_run_id, context.request_payload, text))

    # The only code of an application that meets the result before the SDK hands it over.
    def parse(text: str) -> Any:
        data = json.loads(text) if text else None
        if isinstance(data, dict) and "sourceMessageId" in data and "dlqId" not in data:
            raise RuntimeError("cannot read the result")
        return data

    url = application.workflow(
        "/deaf", route, retries=1, failure_function=failed, initial_payload_parser=parse
    )
    application.start()

    start_run(http, url, "wfr_deaf")

    seen.wait_for(("failed", "wfr_deaf", PAYLOAD, "cannot read the result"))


def test_lost_answer_repeats_a_step_but_not_its_record(application: Application, http: httpx.Client) -> None:
    seen = application.seen
    seen.lose_answers["/lossy"] = 3

    def route(context: Any) -> None:
        values = [context.run(f"step {number}", lambda: seen.note(len(seen.events))) for number in range(3)]
        answer = context.call("ask", url=f"{application.url}/third-party")
        seen.note(("done", len(set(values)), answer.status))

    url = application.workflow("/lossy", route)
    application.start()

    start_run(http, url, "wfr_lossy")

    seen.wait_for(("done", 3, 200))
    wait_for_end(http, url, "wfr_lossy")
    assert len(seen.third_party) == 1
    assert len([event for event in seen.events if isinstance(event, tuple)]) == 1


def test_second_start_of_a_live_run_is_a_duplicate(application: Application, http: httpx.Client) -> None:
    def route(context: Any) -> None:
        context.sleep("night", "8h")

    url = application.workflow("/sleepy", route)
    application.start()

    first = start_run(http, url, "wfr_sleepy")
    second = start_run(http, url, "wfr_sleepy")

    assert second["deduplicated"]
    assert second["messageId"] == first["messageId"]
    assert http.delete("/v2/workflows/runs/wfr_sleepy", params={"cancel": "true"}).status_code == 200
    assert http.delete("/v2/workflows/runs/wfr_sleepy", params={"cancel": "true"}).status_code == 404
    for _ in range(2):
        assert http.delete("/v2/workflows/runs/wfr_sleepy", params={"cancel": "false"}).status_code == 200
    refused = append(http, url, "wfr_sleepy", {"stepId": 9})
    assert refused.status_code == 400
    assert "wfr_sleepy is not active" in refused.json()["error"]
    assert "deduplicated" not in start_run(http, url, "wfr_sleepy")


@pytest.mark.parametrize("record", [[], {"stepId": "1"}, {"stepId": 0}, {"stepId": True}, {}])
def test_malformed_record_is_not_answered_like_an_ended_run(
    application: Application, http: httpx.Client, record: Any
) -> None:
    url = application.workflow("/kept", lambda context: context.sleep("night", "8h"))
    application.start()
    start_run(http, url, "wfr_kept")

    assert append(http, url, "wfr_kept", record).status_code == 422


def test_batch_with_a_record_that_is_refused_is_refused_as_a_whole(
    application: Application, http: httpx.Client
) -> None:
    url = application.workflow("/planned", lambda context: context.sleep("night", "8h"))
    application.start()
    start_run(http, url, "wfr_planned")
    headers = {"Upstash-Workflow-Url": url, "Upstash-Delay": "1h"}
    items = [
        {"destination": url, "headers": {**headers, "Upstash-Workflow-RunId": run_id}, "body": '{"stepId": 7}'}
        for run_id in ("wfr_planned", "wfr_unknown")
    ]

    assert http.post("/v2/batch", json=items).status_code == 400

    (accepted,) = http.post("/v2/batch", json=items[:1]).json()
    assert "deduplicated" not in accepted


# Durability

PROGRAM = """
import sys
from pathlib import Path
from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, run
engine = EngineSettings(time_scale=100)
settings = ServerSettings(port=int(sys.argv[2]), db_path=Path(sys.argv[1]), engine=engine)
run(settings, on_ready=lambda url: print("ready", url, flush=True))
"""


def start_server(spawn: Spawner, database: Path, port: int) -> ChildProcess:
    process = spawn([sys.executable, "-c", PROGRAM, str(database), str(port)], name="devserver")
    process.wait_for_line(r"^ready (\S+)$")
    return process


def rows(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return sum(
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("message", "progress", "document")
        )


def test_runs_survive_kills_of_the_server_in_every_kind_of_step(
    spawn: Spawner, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, database = free_port(), tmp_path / "db"
    application = Application(f"http://127.0.0.1:{port}")
    seen = application.seen
    gate = threading.Event()

    def held() -> str:
        seen.note("held")
        gate.wait(DEADLINE)
        return "released"

    def route(context: Any) -> None:
        first = context.run("first", lambda: seen.note("first"))
        context.sleep("nap", 2)
        second = context.run("held", held)
        answer = context.call("ask", url=f"{application.url}/third-party", retries=1)
        seen.note(("done", first, second, answer.status, context.request_payload))

    try:
        url = application.workflow("/durable", route)
        application.start()
        process = start_server(spawn, database, port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=AUTHORIZED, trust_env=False) as http:
            start_run(http, url, "wfr_durable")
        seen.wait_for("first")

        def kill_and_restart() -> ChildProcess:
            process.send(signal.SIGKILL)
            process.wait()
            return start_server(spawn, database, port)

        seen.wait_for_calls("/durable", 2)  # the sleep is submitted
        process = kill_and_restart()
        seen.wait_for("held")
        process = kill_and_restart()
        seen.third_party_answers = [0]
        gate.set()
        wait_until(lambda: seen.third_party, DEADLINE, what="the call")
        process = kill_and_restart()
        seen.wait_for(("done", "first", "released", 200, PAYLOAD))
        assert len(seen.third_party) == 2
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=AUTHORIZED, trust_env=False) as http:
            wait_for_end(http, url, "wfr_durable")
        assert seen.events.count("first") == 1
        assert len([event for event in seen.events if isinstance(event, tuple)]) == 1
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert rows(database) == 0
    finally:
        gate.set()
        application.stop()
