"""Schedules of the development server, through the SDK and plain HTTP, with real deliveries and kills."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from counting_destination import CountingDestination, counting_destination
from processes import ChildProcess, Spawner, wait_until
from qstash import QStash, Receiver
from qstash.errors import QStashError
from qstash.schedule import ScheduleState

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server, server
from queuebridge.backends.qstash.devserver.clock import Clock
from queuebridge.backends.qstash.protocol import DEV_USERS, PLANS

USER, OTHER_USER = DEV_USERS[:2]
AUTHORIZED = {"Authorization": f"Bearer {USER.token}"}
DEADLINE = 20.0
MINUTELY = {"Upstash-Cron": "* * * * *"}


@pytest.fixture
def destination() -> Iterator[CountingDestination]:
    """A destination for deliveries."""
    with counting_destination() as found:
        yield found


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server in memory."""
    with running_server(ServerSettings(port=0)) as url:
        yield url


@pytest.fixture
def base_url_before_the_minute(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose clock is a second before a full minute."""

    def clock() -> Clock:
        made = Clock()
        made.move_to((made() // 60 + 1) * 60 - 1)
        return made

    monkeypatch.setattr(server, "Clock", clock)
    with running_server(ServerSettings(port=0)) as url:
        yield url


def test_scheduled_message_arrives_at_the_full_minute_with_what_was_asked_for(
    base_url_before_the_minute: str, sdk: Callable[..., QStash], destination: CountingDestination
) -> None:
    client = sdk(base_url_before_the_minute)
    url = destination.url("/a//b?x=1")
    schedule_id = client.schedule.create(
        destination=url,
        cron="* * * * *",
        body="grüße",
        content_type="text/plain",
        method="PUT",
        headers={"X-Mine": "1"},
    )
    assert schedule_id.startswith("scd_")

    (arrival,) = destination.wait_for(1)

    assert (arrival.method, arrival.path, arrival.body.decode()) == ("PUT", "/a//b?x=1", "grüße")
    headers = arrival.headers
    assert (headers["upstash-schedule-id"], headers["upstash-caller-ip"]) == (schedule_id, "127.0.0.1")
    assert (headers["content-type"], headers["x-mine"]) == ("text/plain", "1")
    receiver = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)
    receiver.verify(signature=headers["upstash-signature"], body="grüße", url=url)

    def succeeded() -> bool:
        states = client.schedule.get(schedule_id).last_schedule_states
        return states == {headers["upstash-message-id"]: ScheduleState.SUCCESS}

    wait_until(succeeded, DEADLINE, what="the state of the last run")
    schedule = client.schedule.get(schedule_id)
    assert schedule.last_schedule_time is not None
    assert schedule.last_schedule_time % 60_000 == 0
    assert schedule.next_schedule_time == schedule.last_schedule_time + 60_000
    (found, *_) = client.log.list(filter={"schedule_id": schedule_id}).logs
    assert found.message_id == headers["upstash-message-id"]


def test_delayed_scheduled_message_can_be_cancelled_by_the_schedule_s_id(
    base_url_before_the_minute: str, sdk: Callable[..., QStash]
) -> None:
    client = sdk(base_url_before_the_minute)
    schedule_id = client.schedule.create(destination="http://127.0.0.1:1/x", cron="* * * * *", delay="1h", queue="q")

    def triggered() -> Any:
        return client.schedule.get(schedule_id).last_schedule_states

    (message_id,) = wait_until(triggered, DEADLINE, what="a trigger")
    message = client.message.get(message_id)
    last = client.schedule.get(schedule_id).last_schedule_time
    assert last is not None
    assert message.not_before == last + 3_600_000
    assert client.queue.get("q").parallelism == 1
    with httpx.Client(base_url=base_url_before_the_minute, headers=AUTHORIZED, trust_env=False) as http:
        answer = http.delete("/v2/messages", params={"scheduleId": schedule_id})
    assert answer.json() == {"cancelled": 1}
    assert client.schedule.get(schedule_id).last_schedule_states == {message_id: ScheduleState.FAIL}


def test_sdk_reads_back_everything_it_asked_for(client: QStash) -> None:
    schedule_id = client.schedule.create(
        destination="https://example.com/x?y=1",
        cron="CRON_TZ=Europe/Berlin 0 9 * * mon-fri",
        body=b"\xff\x00",
        method="PATCH",
        headers={"X-A": "1"},
        callback="https://example.com/done",
        callback_headers={"Forward-X-B": "2"},
        failure_callback="https://example.com/failed",
        failure_callback_headers={"Forward-X-C": "3"},
        retries=7,
        retry_delay="1000 * retried",
        delay="1h30m",
        timeout=30,
        schedule_id="everything",
        queue="q-1",
        flow_control={"key": "k", "parallelism": 2, "rate": 3, "period": "1m"},  # type: ignore[typeddict-item]
        label="l",
    )

    found = client.schedule.get(schedule_id)

    assert (schedule_id, found.schedule_id) == ("everything", "everything")
    assert (found.cron, found.destination) == ("CRON_TZ=Europe/Berlin 0 9 * * mon-fri", "https://example.com/x?y=1")
    assert (found.body, found.body_base64, found.method) == (None, "/wA=", "PATCH")
    assert found.headers == {"X-A": ["1"]}
    assert (found.callback, found.failure_callback) == ("https://example.com/done", "https://example.com/failed")
    assert (found.callback_headers or {})["X-B"] == ["2"]
    assert (found.failure_callback_headers or {})["X-C"] == ["3"]
    assert (found.retries, found.retry_delay_expression, found.delay, found.timeout) == (7, "1000 * retried", 5400, 30)
    assert (found.queue, found.label, found.caller_ip, found.paused) == ("q-1", "l", "127.0.0.1", False)
    assert found.flow_control is not None
    assert (found.flow_control.key, found.flow_control.parallelism, found.flow_control.period) == ("k", 2, 60)
    assert found.next_schedule_time is not None
    assert (found.last_schedule_time, found.last_schedule_states, found.error) == (None, None, None)


def test_overwriting_replaces_all_but_the_creation_and_the_pause(client: QStash, http: httpx.Client) -> None:
    client.schedule.create(destination="https://example.com/1", cron="@daily", body="b", schedule_id="over", label="l")
    client.schedule.pause("over")
    before = http.get("/v2/schedules/over").json()

    client.schedule.create(destination="https://example.com/2", cron="@hourly", schedule_id="over")

    after = http.get("/v2/schedules/over").json()
    assert (after["destination"], after["cron"]) == ("https://example.com/2", "@hourly")
    assert (after["createdAt"], after["isPaused"]) == (before["createdAt"], True)
    assert not {"body", "label", "labels"} & set(after)


def test_sdk_lists_pauses_resumes_and_deletes(client: QStash) -> None:
    ids = [client.schedule.create(destination="https://example.com/", cron="@daily") for _ in range(3)]

    client.schedule.pause(ids[0])
    client.schedule.pause(ids[0])
    client.schedule.pause(ids[1])
    client.schedule.resume(ids[1])
    client.schedule.delete(ids[2])

    paused = {found.schedule_id: found.paused for found in client.schedule.list() if found.schedule_id in ids}
    assert paused == {ids[0]: True, ids[1]: False}
    with pytest.raises(QStashError, match="not found"):
        client.schedule.delete(ids[2])


@pytest.mark.parametrize("method", ["PATCH", "POST"])
def test_pause_and_resume_take_both_methods(http: httpx.Client, method: str) -> None:
    headers = {"Upstash-Cron": "@daily", "Upstash-Schedule-Id": "both"}
    http.post("/v2/schedules/https://example.com", headers=headers)

    assert http.request(method, "/v2/schedules/both/pause").status_code == 200
    assert http.get("/v2/schedules/both").json()["isPaused"] is True
    assert http.request(method, "/v2/schedules/both/resume").status_code == 200
    assert http.get("/v2/schedules/both").json()["isPaused"] is False
    assert http.request(method, "/v2/schedules/nobody/pause").status_code == 404


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_url_that_ends_like_a_command_is_a_destination(http: httpx.Client, verb: str) -> None:
    url = f"https://example.com/{verb}"

    created = http.post(f"/v2/schedules/{url}", headers={"Upstash-Cron": "@daily"}).json()

    assert http.get(f"/v2/schedules/{created['scheduleId']}").json()["destination"] == url


def test_schedules_of_another_user_are_not_there(http: httpx.Client, sdk: Callable[..., QStash], base_url: str) -> None:
    other = sdk(base_url, OTHER_USER.token)
    other.schedule.create(destination="https://example.com", cron="@daily", schedule_id="private")

    assert http.get("/v2/schedules/private").status_code == 404
    assert "private" not in {found["scheduleId"] for found in http.get("/v2/schedules").json()}


@pytest.mark.parametrize(
    "dedup", [{"Upstash-Deduplication-Id": "once"}, {"Upstash-Content-Based-Deduplication": "true"}]
)
def test_repeated_creation_is_answered_with_the_first_id_even_after_its_deletion(
    http: httpx.Client, dedup: dict[str, str]
) -> None:
    headers = {"Upstash-Cron": "@daily", **dedup}
    url = "/v2/schedules/https://example.com/dedup"
    first = http.post(url, headers=headers, content=b"x")
    second = http.post(url, headers={**headers, "Upstash-Retries": "0"}, content=b"x")
    http.delete(f"/v2/schedules/{first.json()['scheduleId']}")
    third = http.post(url, headers=headers, content=b"x")

    assert (first.status_code, second.status_code, third.status_code) == (200, 202, 202)
    assert first.json()["scheduleId"] == second.json()["scheduleId"] == third.json()["scheduleId"]
    published = http.post("/v2/publish/https://example.com/dedup", headers={**dedup, "Upstash-Delay": "1h"})
    assert published.status_code == 200


def test_redacted_schedule_shows_hashes(http: httpx.Client) -> None:
    headers = {
        "Upstash-Cron": "@daily",
        "Upstash-Forward-Authorization": "secret",
        "Upstash-Redact-Fields": "body, header[authorization]",
        "Upstash-Schedule-Id": "redacted",
    }
    http.post("/v2/schedules/https://example.com", headers=headers, content=b"hidden")

    text = http.get("/v2/schedules/redacted").text

    found = json.loads(text)
    assert "hidden" not in text
    assert found["body"] == "REDACTED:" + sha256(b"hidden").hexdigest()
    assert found["header"]["Authorization"] == ["REDACTED:" + sha256(b"secret").hexdigest()]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "error"),
    [
        ("POST", "https://example.com", {}, 400, "Upstash-Cron is missing"),
        ("POST", "https://example.com", {"Upstash-Cron": ""}, 400, "Invalid cron expression empty spec string"),
        ("POST", "https://example.com", {"Upstash-Cron": "61 * * * *"}, 400, "end of range (61) above maximum (59)"),
        ("POST", "ftp://example.com", MINUTELY, 400, "invalid scheme"),
        ("POST", "", MINUTELY, 400, "invalid scheme"),
        ("POST", "no-such-group", MINUTELY, 404, "not found"),
        ("POST", "api/llm", MINUTELY, 400, "not supported"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Schedule-Id": "a/b"}, 400, "invalid schedule id"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Schedule-Id": ""}, 400, "invalid schedule id"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Queue-Name": "a b"}, 400, "invalid queue name"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Not-Before": "1"}, 400, "Upstash-Not-Before"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Delay": "soon"}, 400, "Upstash-Delay"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Delay": "366d"}, 412, "quota maxDelay exceeded"),
        ("POST", "https://example.com", {**MINUTELY, "Upstash-Callback": "x"}, 400, "Upstash-Callback"),
        ("GET", "none", {}, 404, "schedule none not found"),
        ("GET", "?name=x", {}, 400, "unknown filter"),
        ("DELETE", "none", {}, 404, "schedule none not found"),
        ("DELETE", "", {}, 400, "the id is empty"),
        ("PATCH", "none", {}, 404, "no such endpoint"),
        ("PUT", "none", {}, 404, "no such endpoint"),
        ("PATCH", "https://example.com/pause", MINUTELY, 404, "no such endpoint"),
    ],
)
def test_what_cannot_be_done_is_a_json_error(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], status: int, error: str
) -> None:
    answer = http.request(method, f"/v2/schedules/{path}", headers=headers)

    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_number_of_schedules_is_limited_by_the_plan(sdk: Callable[..., QStash]) -> None:
    with running_server(ServerSettings(port=0, engine=EngineSettings(plan=PLANS["free"]))) as url:
        client = sdk(url)
        for number in range(10):
            client.schedule.create(destination="https://example.com", cron="@daily", schedule_id=f"s{number}")

        with pytest.raises(QStashError, match="quota maxSchedules exceeded, current limit: 10"):
            client.schedule.create(destination="https://example.com", cron="@daily")
        client.schedule.create(destination="https://example.com/new", cron="@daily", schedule_id="s0")
        client.schedule.delete("s1")
        client.schedule.create(destination="https://example.com", cron="@daily")


# Durability

PROGRAM = """
import sys
from pathlib import Path
from queuebridge.backends.qstash.devserver import ServerSettings, run, server
from queuebridge.backends.qstash.devserver.clock import Clock

def clock():
    made = Clock()
    made.move_to(float(sys.argv[2]))
    return made

server.Clock = clock
run(ServerSettings(port=0, db_path=Path(sys.argv[1])), on_ready=lambda url: print("ready", url, flush=True))
"""


def start_server(spawn: Spawner, database: Path, now: float) -> tuple[ChildProcess, str]:
    process = spawn([sys.executable, "-c", PROGRAM, str(database), str(now)], name="devserver")
    return process, process.wait_for_line(r"^ready (\S+)$").group(1)


def test_schedule_survives_a_kill_and_makes_up_for_missed_times_once(
    spawn: Spawner, tmp_path: Path, destination: CountingDestination, sdk: Callable[..., QStash]
) -> None:
    full_hour = (time.time() // 3600 + 1) * 3600
    process, base_url = start_server(spawn, tmp_path / "db", full_hour - 2)
    sdk(base_url).schedule.create(destination=destination.url("/held"), cron="@hourly", schedule_id="hourly", body="b")
    (in_flight,) = destination.wait_for(1)

    process.send(signal.SIGKILL)
    process.wait()
    destination.let_go.set()
    process, base_url = start_server(spawn, tmp_path / "db", full_hour + 5 * 3600 + 60)
    client = sdk(base_url)

    arrivals = destination.wait_for(3)
    wait_until(
        lambda: ScheduleState.SUCCESS in (client.schedule.get("hourly").last_schedule_states or {}).values(),
        DEADLINE,
        what="the end of the message that makes up for the missed times",
    )
    ids = [arrival.headers["upstash-message-id"] for arrival in arrivals]
    assert ids.count(in_flight.headers["upstash-message-id"]) == 2
    assert len(set(ids)) == 2
    found = client.schedule.get("hourly")
    assert (found.body, found.next_schedule_time) == ("b", int(full_hour + 6 * 3600) * 1000)

    process.send(signal.SIGKILL)
    process.wait()
    _, base_url = start_server(spawn, tmp_path / "db", full_hour + 6 * 3600 - 1)

    # What was delivered just before the kill may come again, under its old id.
    new_ids = lambda: {one.headers["upstash-message-id"] for one in destination.requests} - set(ids)  # noqa: E731
    wait_until(lambda: new_ids() or None, DEADLINE, what="the message of the next hour")
    assert len(new_ids()) == 1


@pytest.mark.parametrize("arrivals", [0, 1, 60])
def test_each_of_many_schedules_makes_one_message_over_a_kill(
    spawn: Spawner, tmp_path: Path, destination: CountingDestination, sdk: Callable[..., QStash], arrivals: int
) -> None:
    minute = (time.time() // 60 + 10) * 60
    process, base_url = start_server(spawn, tmp_path / "db", minute - 30)
    names = {f"s-{number}" for number in range(120)}
    with httpx.Client(base_url=base_url, headers=AUTHORIZED, trust_env=False) as client:
        for name in names:
            headers = {"Upstash-Cron": "* * * * *", "Upstash-Schedule-Id": name}
            client.post(f"/v2/schedules/{destination.url('/x')}", headers=headers).raise_for_status()
    process.send(signal.SIGKILL)
    process.wait()
    process, base_url = start_server(spawn, tmp_path / "db", minute - 0.2)
    if arrivals:
        destination.wait_for(arrivals)
    else:
        time.sleep(0.2)  # about when the triggers happen: what follows is right at any moment

    process.send(signal.SIGKILL)
    process.wait()
    _, base_url = start_server(spawn, tmp_path / "db", minute + 5)
    client_of_all = sdk(base_url)

    def finished() -> bool:
        found = client_of_all.schedule.list()
        states = [set((schedule.last_schedule_states or {}).values()) for schedule in found]
        return len(found) == len(names) and all(state == {ScheduleState.SUCCESS} for state in states)

    wait_until(finished, DEADLINE, what="all messages")
    ids: dict[str, set[str]] = {name: set() for name in names}
    for request in destination.requests:
        ids[request.headers["upstash-schedule-id"]].add(request.headers["upstash-message-id"])
    assert {name: len(found) for name, found in ids.items()} == dict.fromkeys(names, 1)


def test_options_may_be_query_parameters(http: httpx.Client) -> None:
    query = "?upstash-cron=@daily&upstash-schedule-id=by-query&a=1&upstash-retries=0"
    http.post(f"/v2/schedules/https://example.com/x{query}").raise_for_status()

    found = http.get("/v2/schedules/by-query").json()

    assert (found["destination"], found["cron"], found["retries"]) == ("https://example.com/x?a=1", "@daily", 0)


@pytest.mark.parametrize(
    "header", ["Upstash-Cron", "Upstash-Schedule-Id", "Upstash-Queue-Name", "Upstash-Deduplication-Id"]
)
@pytest.mark.parametrize("value", [b"\xff", b"a\xc3\xbc", b"@every 1h\xff"])
def test_bytes_that_are_no_text_are_refused(http: httpx.Client, header: str, value: bytes) -> None:
    headers = [(b"Upstash-Cron", b"@daily")] if header != "Upstash-Cron" else []
    answer = http.post("/v2/schedules/https://example.com", headers=[*headers, (header.encode(), value)])

    valid = header == "Upstash-Deduplication-Id" and value == b"a\xc3\xbc"
    assert answer.status_code == (200 if valid else 400)
