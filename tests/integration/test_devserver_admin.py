"""The paths below `/_queuebridge/`, over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from processes import wait_until

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEV_USERS

USER, OTHER = DEV_USERS[:2]
# Nobody listens there; faults answer in its place.
NOWHERE = "http://127.0.0.1:9/jobs"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server, shared by tests of what changes nothing."""
    with running_server() as url:
        yield url


@pytest.fixture
def http(base_url: str) -> Iterator[httpx.Client]:
    """The first user on the shared server."""
    with client_of(base_url) as found:
        yield found


def client_of(base_url: str, token: str = USER.token) -> httpx.Client:
    return httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30)


@pytest.mark.parametrize("path", ["time", "faults", "deliveries", "anything"])
def test_token_is_needed(base_url: str, path: str) -> None:
    answer = httpx.get(f"{base_url}/_queuebridge/{path}", trust_env=False)

    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "x"), ("GET", ""), ("PUT", "time"), ("GET", "idle"), ("DELETE", "time/")]
)
def test_other_paths_and_methods_do_not_exist(http: httpx.Client, method: str, path: str) -> None:
    assert http.request(method, f"/_queuebridge/{path}").status_code == 404


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        ("time", "", "must be a JSON object"),
        ("time", "{", "not valid JSON"),
        ("time", "{}", "exactly one thing"),
        ("time", '{"stop": true, "advance": 1}', "exactly one thing"),
        ("time", '{"stop": 1}', "stop can only be true"),
        ("time", '{"forward": 1}', "unknown word 'forward'"),
        ("time", '{"advance": "soon"}', "advance: not a duration: 'soon'"),
        ("time", '{"advance": -1}', "advance must be a number of seconds, not negative"),
        ("time", '{"advance": NaN}', "advance must be"),
        ("time", '{"advance": Infinity}', "advance must be"),
        ("time", '{"advance": true}', "advance must be"),
        ("time", '{"advance": 1e14}', "before the year 3000"),
        ("time", '{"move_to": 1}', "cannot go backwards"),
        ("time", '{"advance": 1, "timeout": 601}', "timeout must be a number of seconds above 0, at most 600"),
        ("idle", '{"time": 1}', "must be empty or"),
        ("faults", '{"fault": "explode"}', "fault must be one of"),
        ("faults?x=1", '{"fault": "drop"}', "unknown filter 'x'"),
    ],
)
def test_bad_requests_say_what_is_wrong(http: httpx.Client, path: str, content: str, problem: str) -> None:
    before = http.get("/_queuebridge/faults").json()

    answer = http.post(f"/_queuebridge/{path}", content=content)

    assert answer.status_code == 400
    assert problem in answer.json()["error"]
    assert http.get("/_queuebridge/faults").json() == before
    assert http.get("/_queuebridge/time").json()["stopped"] is False


@pytest.mark.parametrize("query", ["state=x", "count=0", "count=1001", "cursor=x", "order=up"])
def test_unknown_filters_of_deliveries_are_refused(http: httpx.Client, query: str) -> None:
    assert http.get(f"/_queuebridge/deliveries?{query}").status_code == 400


def test_a_day_with_its_faults_and_retries_is_over_at_once() -> None:
    with running_server() as base_url, client_of(base_url) as http, client_of(base_url, OTHER.token) as other:
        stopped = http.post("/_queuebridge/time", json={"stop": True}).json()
        for fault in (
            {"fault": "drop", "host": "127.0.0.1:9", "count": 2},
            {"fault": "error", "status": 503, "headers": {"Retry-After": "7200"}, "body": "later"},
            {"fault": "error", "status": 404},
        ):
            assert http.post("/_queuebridge/faults", json=fault).status_code == 201
        headers = {"Upstash-Delay": "2h", "Upstash-Retries": "3", "Upstash-Retry-Delay": "60000"}
        message = http.post(f"/v2/publish/{NOWHERE}", content=b"work", headers=headers).json()["messageId"]
        assert http.get("/_queuebridge/time").json()["nextDue"] == pytest.approx(stopped["time"] + 7200)

        travelled = http.post("/_queuebridge/time", json={"advance": "1d"}).json()

        assert travelled["time"] == stopped["time"] + 86_400
        assert (travelled["stopped"], travelled["travelling"], travelled["steps"]) == (True, False, 4)
        assert http.get("/_queuebridge/faults").json() == {"faults": []}
        found = http.get("/_queuebridge/deliveries").json()["deliveries"]
        assert [(entry["retried"], entry["time"] - int(stopped["time"] * 1000)) for entry in found] == [
            (number, pytest.approx(seconds * 1000, abs=2))
            for number, seconds in enumerate((7200, 7260, 7320, 7320 + 7200))
        ]
        assert [entry["fault"] for entry in found] == ["drop", "drop", "error", "error"]
        assert [entry.get("response", {}).get("status") for entry in found] == [None, None, 503, 404]
        assert found[2]["response"]["body"] == "later"
        assert {entry["messageId"] for entry in found} == {message}
        states = [event["state"] for event in http.get("/v2/events").json()["events"]]
        assert states[0] == "FAILED"
        assert [letter["messageId"] for letter in http.get("/v2/dlq").json()["messages"]] == [message]
        # The other user has data of his own.
        assert other.get("/_queuebridge/deliveries").json() == {"deliveries": []}
        assert http.post("/_queuebridge/time", json={"resume": True}).json()["stopped"] is False
        assert http.delete("/_queuebridge/deliveries").json() == {"deleted": 4}
        assert http.get("/_queuebridge/deliveries").json() == {"deliveries": []}


def test_deliveries_are_listed_in_pages_with_filters() -> None:
    with running_server() as base_url, client_of(base_url) as http:
        http.post("/_queuebridge/faults", json={"fault": "error", "status": 489, "count": 5})
        for number in range(5):
            headers = {"Upstash-Retries": "0", "Upstash-Label": f"n{number}"}
            http.post(f"/v2/publish/{NOWHERE}/{number % 2}", headers=headers)
        assert http.post("/_queuebridge/idle").status_code == 200

        def page(**query: Any) -> tuple[list[str], str | None]:
            data = http.get("/_queuebridge/deliveries", params=query).json()
            return [entry["labels"][0] for entry in data["deliveries"]], data.get("cursor")

        first, cursor = page(count=2)
        assert first == ["n0", "n1"]
        assert page(count=3, cursor=cursor) == (["n2", "n3", "n4"], None)
        last, cursor = page(count=2, order="latestFirst")
        assert last == ["n4", "n3"]
        assert page(cursor=cursor, order="latestFirst") == (["n2", "n1", "n0"], None)
        assert page(path="/jobs/1") == (["n1", "n3"], None)
        assert page(label="n2") == (["n2"], None)


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a destination that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"


def advance_in_thread(base_url: str) -> tuple[threading.Thread, list[httpx.Response | httpx.HTTPError]]:
    answers: list[httpx.Response | httpx.HTTPError] = []

    def advance() -> None:
        with client_of(base_url) as http:
            try:
                answers.append(http.post("/_queuebridge/time", json={"advance": "1h"}))
            except httpx.HTTPError as error:
                answers.append(error)

    thread = threading.Thread(target=advance)
    thread.start()
    return thread, answers


def wait_until_travelling(http: httpx.Client) -> None:
    wait_until(lambda: http.get("/_queuebridge/time").json()["travelling"], what="the journey")


def test_journey_is_cancelled_from_elsewhere_and_another_one_refused(silent: str) -> None:
    with running_server() as base_url, client_of(base_url) as http:
        http.post(f"/v2/publish/{silent}", headers={"Upstash-Timeout": "20"})
        thread, answers = advance_in_thread(base_url)
        wait_until_travelling(http)
        for said in ({"advance": 1}, {"stop": True}, {"resume": True}):
            refused = http.post("/_queuebridge/time", json=said)
            assert (refused.status_code, "is being advanced" in refused.text) == (409, True)

        assert http.post("/_queuebridge/time", json={"cancel": True}).json()["cancelled"] is True

        thread.join()
        (answer,) = answers
        assert isinstance(answer, httpx.Response)
        assert (answer.status_code, "cancelled; deliveries in flight: 1" in answer.text) == (409, True)
        assert http.post("/_queuebridge/time", json={"cancel": True}).json()["cancelled"] is False


def test_server_that_is_stopped_ends_a_journey(silent: str) -> None:
    with running_server(ServerSettings(port=0, grace_seconds=0.2)) as base_url, client_of(base_url) as http:
        http.post(f"/v2/publish/{silent}")
        thread, answers = advance_in_thread(base_url)
        wait_until_travelling(http)
        begin = time.monotonic()

    thread.join()
    # Far less than the journey or the delivery would take.
    assert time.monotonic() - begin < 20
    assert len(answers) == 1
