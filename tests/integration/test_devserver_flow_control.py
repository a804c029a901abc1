"""Flow-control keys of the development server: managed through the SDK and plain HTTP, enforced under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from counting_destination import CountingDestination, counting_destination
from processes import wait_until
from qstash import QStash
from qstash.errors import QStashError

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEV_USERS

USER = DEV_USERS[0]
AUTHORIZED = {"Authorization": f"Bearer {USER.token}"}
DEADLINE = 30.0
FIELDS = {
    "flowControlKey": "k", "waitListSize": 0, "parallelismMax": 0, "parallelismCount": 0, "rateMax": 0,
    "rateCount": 0, "ratePeriod": 1, "isPaused": False, "isPinnedParallelism": False, "isPinnedRate": False,
}  # fmt: skip


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


def publish(http: httpx.Client, url: str, key: str, value: str, **headers: str) -> None:
    limits = {"Upstash-Flow-Control-Key": key, "Upstash-Flow-Control-Value": value}
    http.post(f"/v2/publish/{url}", headers={**limits, **headers}).raise_for_status()


def test_sdk_pauses_and_resumes_a_key(client: QStash, http: httpx.Client, destination: CountingDestination) -> None:
    client.flow_control.pause("sdk-1")
    client.flow_control.pause("sdk-1")
    publish(http, destination.url("/x"), "sdk-1", "parallelism=3, rate=4, period=1m")
    info = client.flow_control.get("sdk-1")
    assert (info.key, info.is_paused, info.wait_list_size) == ("sdk-1", True, 1)
    assert (info.parallelism_max, info.rate_max, info.rate_period) == (3, 4, 60)
    assert destination.requests == []

    client.flow_control.resume("sdk-1")

    destination.wait_for(1)
    info = client.flow_control.get("sdk-1")
    assert (info.is_paused, info.wait_list_size, info.rate_count) == (False, 0, 1)


def test_sdk_pins_unpins_and_resets_a_key(client: QStash, http: httpx.Client, destination: CountingDestination) -> None:
    client.flow_control.pin("sdk-2", {"rate": 1, "period": 3600})
    for _ in range(3):
        publish(http, destination.url("/x"), "sdk-2", "rate=100")
    destination.wait_for(1)
    info = client.flow_control.get("sdk-2")
    assert (info.rate_max, info.rate_period, info.rate_count, info.wait_list_size) == (1, 3600, 1, 2)
    assert (info.is_pinned_rate, info.is_pinned_parallelism) == (True, False)

    client.flow_control.reset_rate("sdk-2")
    destination.wait_for(2)
    assert client.flow_control.get("sdk-2").wait_list_size == 1

    client.flow_control.unpin("sdk-2", {"rate": True, "parallelism": True})
    assert client.flow_control.get("sdk-2").is_pinned_rate is False
    publish(http, destination.url("/x"), "sdk-2", "rate=100")
    destination.wait_for(4)


def test_sdk_reads_the_parallelism_of_the_account(
    client: QStash, http: httpx.Client, destination: CountingDestination
) -> None:
    for number in range(3):
        http.post(f"/v2/publish/{destination.url('/held')}", content=str(number)).raise_for_status()
    destination.wait_for(3)

    found = client.flow_control.get_global_parallelism()

    assert (found.parallelism_max, found.parallelism_count) == (100, 3)
    destination.let_go.set()
    wait_until(
        lambda: client.flow_control.get_global_parallelism().parallelism_count == 0, DEADLINE, what="an idle account"
    )


def test_object_has_every_field(http: httpx.Client) -> None:
    http.post("/v2/flowControl/k/pause")
    http.post("/v2/flowControl/k/resume")

    found = http.get("/v2/flowControl/k").json()

    assert isinstance(found.pop("ratePeriodStart"), int)
    assert found == FIELDS


@pytest.mark.parametrize("key", ["a/b", "a/pause", "with space", "a//b/", "grüße/ü", "pin", "50%", "a?b#c", "a%2Fb"])
def test_key_may_contain_anything(http: httpx.Client, key: str) -> None:
    path = f"/v2/flowControl/{quote(key, safe='/')}"

    assert http.post(f"{path}/pin?parallelism=1").status_code == 200
    found = http.get(path).json()

    assert (found["flowControlKey"], found["isPinnedParallelism"]) == (key, True)
    assert key in [other["flowControlKey"] for other in http.get("/v2/flowControl", params={"search": key}).json()]


def test_list_is_searched_by_part_of_the_name(http: httpx.Client) -> None:
    for key in ("search-b", "search-a", "other"):
        http.post(f"/v2/flowControl/{key}/pause")

    found = http.get("/v2/flowControl", params={"search": "earch-"}).json()

    assert [key["flowControlKey"] for key in found] == ["search-a", "search-b"]
    assert {"search-a", "search-b", "other"} <= {key["flowControlKey"] for key in http.get("/v2/flowControl").json()}


def test_reset_is_another_name_of_reset_rate(http: httpx.Client) -> None:
    http.post("/v2/flowControl/reset-me/pause")

    assert http.post("/v2/flowControl/reset-me/reset").status_code == 200
    assert http.post("/v2/flowControl/reset-me/resetRate").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "flowControl/unknown", 404, "flow control key unknown not found"),
        ("POST", "flowControl/unknown/resume", 404, "flow control key unknown not found"),
        ("POST", "flowControl/unknown/unpin?rate=true", 404, "flow control key unknown not found"),
        ("POST", "flowControl/unknown/resetRate", 404, "flow control key unknown not found"),
        ("POST", "flowControl/x/pin", 400, "pin needs parallelism or rate"),
        ("POST", "flowControl/x/pin?period=5", 400, "period needs rate"),
        ("POST", "flowControl/x/pin?parallelism=0", 400, "parallelism must be between 1"),
        ("POST", "flowControl/x/pin?parallelism=-1", 400, "parallelism must be a whole number"),
        ("POST", "flowControl/x/pin?rate=1.5", 400, "rate must be a whole number"),
        ("POST", "flowControl/x/pin?rate=1&period=604801", 400, "period must be between 1 and 604800"),
        ("POST", "flowControl/x/pin?paralelism=1", 400, "unknown filter"),
        ("POST", "flowControl/x/unpin?rate=yes", 400, "rate must be true or false"),
        ("POST", "flowControl/x/pause?until=1", 400, "unknown filter"),
        ("POST", "flowControl//pause", 400, "the flow-control key is empty"),
        ("POST", "flowControl/pause", 400, "the flow-control key is empty"),
        ("POST", "flowControl/%FF%FE/x", 404, "no such endpoint"),
        ("DELETE", "flowControl/x", 404, "no such endpoint"),
        ("PATCH", "flowControl/x/pause", 404, "no such endpoint"),
        ("GET", "flowControl?find=x", 400, "unknown filter"),
        ("GET", "globalParallelism/x", 404, "no such endpoint"),
        ("POST", "globalParallelism", 404, "no such endpoint"),
        ("GET", "globalParallelism?x=1", 400, "unknown filter"),
    ],
)
def test_what_cannot_be_done_is_a_json_error(
    http: httpx.Client, method: str, path: str, status: int, error: str
) -> None:
    answer = http.request(method, f"/v2/{path}")

    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert error in answer.json()["error"]
    assert http.get("/v2/flowControl/x").status_code == 404


def test_pause_and_pins_survive_a_restart(tmp_path: Path, sdk: Callable[[str], QStash]) -> None:
    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as url:
        flows = sdk(url).flow_control
        flows.pause("a/b")
        flows.pin("a/b", {"parallelism": 2, "rate": 3, "period": 4})
        flows.pause("resumed")
        flows.resume("resumed")

    with running_server(settings) as url:
        flows = sdk(url).flow_control
        found = flows.get("a/b")
        assert (found.is_paused, found.is_pinned_parallelism, found.is_pinned_rate) == (True, True, True)
        assert (found.parallelism_max, found.rate_max, found.rate_period) == (2, 3, 4)
        with pytest.raises(QStashError, match="not found"):
            flows.get("resumed")


# Under load


def active_times(http: httpx.Client, key: str) -> list[int]:
    """When the attempts of a key began by the server's clock, in milliseconds."""
    parameters = {"flowControlKey": key, "state": "ACTIVE", "count": "1000", "order": "earliestFirst"}
    return [event["time"] for event in http.get("/v2/events", params=parameters).json()["events"]]


def most_in_a_window(times: list[int], period_ms: int) -> int:
    """The most calls in one window; each opens with the first call after the last one ended."""
    windows: Counter[int] = Counter()
    start = -period_ms
    for moment in times:
        if moment - start >= period_ms:
            start = moment
        windows[start] += 1
    return max(windows.values())


def test_parallelism_is_never_exceeded_and_everything_is_delivered(
    http: httpx.Client, destination: CountingDestination
) -> None:
    destination.work_seconds = 0.01
    items: list[dict[str, Any]] = [
        {
            "destination": destination.url(f"/{number % 7}"),
            "body": str(number),
            "headers": {"Upstash-Flow-Control-Key": "load-1", "Upstash-Flow-Control-Value": "parallelism=4"},
        }
        for number in range(300)
    ]
    http.post("/v2/batch", json=items).raise_for_status()

    arrived = destination.wait_for(300)

    assert destination.most_in_flight == 4
    assert sorted(int(request.body) for request in arrived) == list(range(300))


def test_rate_is_never_exceeded_and_used_in_full(http: httpx.Client, destination: CountingDestination) -> None:
    items: list[dict[str, Any]] = [
        {
            "destination": destination.url("/x"),
            "body": str(number),
            "headers": {"Upstash-Flow-Control-Key": "load-2", "Upstash-Flow-Control-Value": "rate=20, period=1s"},
        }
        for number in range(70)
    ]
    http.post("/v2/batch", json=items).raise_for_status()

    arrived = destination.wait_for(70)

    times = active_times(http, "load-2")
    assert len(times) == 70
    # Times are cut to milliseconds: two calls that are a second apart may look like 999 ms.
    assert most_in_a_window(times, 999) == 20
    assert times[-1] - times[0] >= 3 * 999
    assert sorted(int(request.body) for request in arrived) == list(range(70))


def test_pausing_and_pinning_under_load_loses_nothing(http: httpx.Client, destination: CountingDestination) -> None:
    destination.work_seconds = 0.002
    for number in range(200):
        publish(http, destination.url(f"/{number}"), "load-3", f"parallelism={number % 5 + 1}")
        if number % 20 == 5:
            http.post("/v2/flowControl/load-3/pause").raise_for_status()
        if number % 20 == 10:
            http.post("/v2/flowControl/load-3/pin?parallelism=2").raise_for_status()
        if number % 20 == 15:
            http.post("/v2/flowControl/load-3/resume").raise_for_status()
        if number % 20 == 19:
            http.post("/v2/flowControl/load-3/unpin?parallelism=true").raise_for_status()

    arrived = destination.wait_for(200)

    assert destination.most_in_flight <= 5
    assert Counter(request.path for request in arrived) == Counter(f"/{number}" for number in range(200))
    path = "/v2/flowControl/load-3"
    wait_until(lambda: http.get(path).json()["parallelismCount"] == 0, DEADLINE, what="the end of all calls")
