"""Plans, rate limits and read-only tokens of the development server, as the official SDK meets them."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from destinations import Clients, connected, running
from processes import Spawner
from qstash.errors import DailyMessageLimitExceededError, RateLimitExceededError

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER, DEV_USERS, PLANS
from queuebridge.errors import ConfigurationError

URL = "http://127.0.0.1:1/x"
FOUR = replace(PLANS["payg"], max_messages_per_day=4)


@pytest.fixture
def four_a_day() -> Iterator[Clients]:
    with running(plan=FOUR) as found:
        yield found


def test_publish_and_enqueue_beyond_the_daily_limit_are_refused(four_a_day: Clients) -> None:
    message = four_a_day.sdk.message
    message.publish(url=URL, delay="1h", deduplication_id="d")
    four_a_day.sdk.queue.upsert("q", paused=True)
    for _ in range(3):
        message.enqueue(queue="q", url=URL)

    with pytest.raises(DailyMessageLimitExceededError) as refused:
        message.publish(url=URL)
    with pytest.raises(DailyMessageLimitExceededError):
        message.enqueue(queue="q", url=URL)

    assert (refused.value.limit, refused.value.remaining) == ("4", "0")
    assert int(refused.value.reset or 1) % 86_400 == 0
    assert four_a_day.sdk.queue.get("q").lag == 3
    again: Any = message.publish(url=URL, delay="1h", deduplication_id="d")
    assert again.deduplicated


def test_batch_that_is_refused_for_a_workflow_takes_nothing_of_the_day(four_a_day: Clients) -> None:
    plain = {"destination": URL, "headers": {"Upstash-Delay": "1h"}}
    of_no_run = {"destination": URL, "headers": {"Upstash-Workflow-RunId": "wfr_unknown"}, "body": '{"stepId": 1}'}

    assert four_a_day.http.post("/v2/batch", json=[plain, plain, of_no_run]).status_code == 400

    assert [answer.keys() for answer in four_a_day.http.post("/v2/batch", json=[plain] * 4).json()] == [
        {"messageId", "url"}
    ] * 4


def test_group_and_batch_that_do_not_fit_into_the_day_are_refused_whole(four_a_day: Clients) -> None:
    four_a_day.sdk.url_group.upsert_endpoints("g", [{"url": URL}, {"url": URL + "2"}])
    four_a_day.sdk.message.publish(url_group="g", delay="1h")
    items: list[dict[str, Any]] = [
        {"destination": "g", "headers": {"Upstash-Delay": "1h"}},
        {"destination": "unknown"},
        {"destination": URL, "headers": {"Upstash-Delay": "1h"}},
    ]

    whole = four_a_day.http.post("/v2/batch", content=json.dumps(items))
    assert (whole.status_code, whole.headers["RateLimit-Remaining"]) == (429, "2")

    part = four_a_day.http.post("/v2/batch", content=json.dumps(items[:2]))
    assert part.status_code == 200
    assert four_a_day.http.post("/v2/publish/g").status_code == 429
    assert four_a_day.sdk.message.cancel_all() == 4


def test_same_deduplication_id_counts_once_in_a_batch(four_a_day: Clients) -> None:
    item = {"destination": URL, "headers": {"Upstash-Delay": "1h", "Upstash-Deduplication-Id": "d"}}

    answer = four_a_day.http.post("/v2/batch", content=json.dumps([item] * 9))

    assert len({one["messageId"] for one in answer.json()}) == 1
    for _ in range(3):
        four_a_day.sdk.message.publish(url=URL, delay="1h")
    assert four_a_day.http.post(f"/v2/publish/{URL}").status_code == 429


def test_burst_limit_is_for_everything_but_publishes() -> None:
    with running(burst_per_second=3) as clients:
        items = [{"destination": URL, "headers": {"Upstash-Delay": "1h"}}]
        for _ in range(20):
            clients.sdk.message.publish(url=URL, delay="1h")
            assert clients.http.post("/v2/batch", content=json.dumps(items)).status_code == 200

        def list_often() -> None:
            for _ in range(100):
                clients.sdk.queue.list()

        with pytest.raises(RateLimitExceededError) as refused:
            list_often()

        assert (refused.value.limit, refused.value.remaining) == ("3", "0")
        assert refused.value.reset is not None


def test_burst_limit_below_one_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="burst limit"):
        ServerSettings(engine=EngineSettings(burst_per_second=0))


def test_free_plan_refuses_what_is_beyond_it() -> None:
    with running(plan=PLANS["free"]) as clients:
        for headers, text in (
            ({"Upstash-Retries": "6"}, "quota maxRetries exceeded, current limit: 5"),
            ({"Upstash-Delay": "8d"}, "quota maxDelay exceeded, current limit: 604800"),
        ):
            answer = clients.http.post(f"/v2/publish/{URL}", headers=headers)
            assert (answer.status_code, answer.json()) == (412, {"error": text})


# Read-only tokens


def test_read_only_tokens_are_the_tokens_marked_as_such() -> None:
    for user in DEV_USERS:
        expected = {**json.loads(base64.b64decode(user.token)), "ReadOnly": True}
        assert json.loads(base64.b64decode(user.read_only_token)) == expected


def test_read_only_token_reads_and_does_not_write() -> None:
    with running() as clients, connected(str(clients.http.base_url), DEFAULT_DEV_USER.read_only_token) as reader:
        published: Any = clients.sdk.message.publish(url=URL, delay="1h")
        assert reader.sdk.message.get(published.message_id).url == URL
        assert [log.message_id for log in reader.sdk.log.list().logs] == [published.message_id]
        for path in ("/v2/dlq", "/v2/queues", "/v2/topics", "/v2/keys", "/v2/logs"):
            assert reader.http.get(path).status_code == 200

        for method, path in (
            ("POST", f"/v2/publish/{URL}"),
            ("POST", f"/v2/enqueue/q/{URL}"),
            ("POST", "/v2/batch"),
            ("POST", "/v2/queues"),
            ("POST", "/v2/topics/g/endpoints"),
            ("PATCH", "/v2/topics/g"),
            ("POST", "/v2/dlq/retry/1-1"),
            ("DELETE", f"/v2/messages/{published.message_id}"),
            ("DELETE", "/v2/messages"),
        ):
            answer = reader.http.request(method, path)
            assert (answer.status_code, list(answer.json())) == (403, ["error"]), path
        in_query = httpx.post(
            f"{clients.http.base_url}/v2/publish/{URL}?qstash_token={DEFAULT_DEV_USER.read_only_token}",
            trust_env=False,
        )
        assert in_query.status_code == 403
        assert clients.sdk.message.cancel_all() == 1


# The command


@pytest.mark.parametrize("by_environment", [False, True])
def test_command_takes_the_plan_from_its_option_or_the_environment(
    spawn: Spawner, tmp_path: Path, *, by_environment: bool
) -> None:
    options = [] if by_environment else ["--quota", "free"]
    environment = {"QSTASH_DEV_QUOTA": "free" if by_environment else "fixed-1m"}
    process = spawn(
        [sys.executable, "-m", "queuebridge", "devserver", "--port", "0", *options], name="devserver", env=environment
    )
    base_url = process.wait_for_line(r"running at (\S+),").group(1)

    with connected(base_url) as clients:
        answer = clients.http.post(f"/v2/publish/{URL}", headers={"Upstash-Retries": "6"})
        assert answer.json() == {"error": "quota maxRetries exceeded, current limit: 5"}


def test_many_enqueues_at_once_do_not_overrun_the_number_of_queues(tmp_path: Path) -> None:
    async def enqueue(base_url: str) -> list[int]:
        headers = {"Authorization": f"Bearer {DEFAULT_DEV_USER.token}", "Upstash-Delay": "1h"}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False) as http:
            answers = await asyncio.gather(*(http.post(f"/v2/enqueue/q{number}/{URL}") for number in range(30)))
        return [answer.status_code for answer in answers]

    settings = ServerSettings(port=0, db_path=tmp_path / "db", engine=EngineSettings(plan=PLANS["free"]))
    with running_server(settings) as base_url, connected(base_url) as clients:
        statuses = asyncio.run(enqueue(base_url))

        assert sorted(statuses) == [200] * 10 + [412] * 20
        assert len(clients.sdk.queue.list()) == 10
