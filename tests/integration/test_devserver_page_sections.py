"""What the page shows of schedules, URL groups, flow-control keys and workflows that are really there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import chromium, opened_page
from processes import wait_until

from queuebridge.backends.qstash.devserver import ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEV_USERS

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium or Chrome is installed")

# Nobody listens there.
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A client of a server in memory."""
    headers = {"Authorization": f"Bearer {DEV_USERS[0].token}"}
    with (
        running_server(ServerSettings(port=0)) as url,
        httpx.Client(base_url=url, headers=headers, trust_env=False) as found,
    ):
        yield found


def post(http: httpx.Client, path: str, body: str = "", **headers: str) -> None:
    options = {name.replace("_", "-"): value for name, value in headers.items()}
    http.post(path, content=body, headers=options).raise_for_status()


def rows(http: httpx.Client, folder: Path, section: str) -> list[str]:
    """Return the text of each row that a section shows, without line breaks."""

    async def main() -> list[str]:
        async with opened_page(folder) as page:
            await page.open(f"{http.base_url}/#{section}")
            await page.wait_for("document.querySelectorAll('#list tbody tr').length > 0")
            texts: list[str] = await page.evaluate(
                "[...document.querySelectorAll('#list tbody tr')].map(row => row.innerText)"
            )
            assert page.complaints == []
            return texts

    return [" ".join(text.split()) for text in asyncio.run(main())]


def test_schedules_show_where_their_messages_go_and_how_the_last_run_went(http: httpx.Client, tmp_path: Path) -> None:
    endpoints = [{"url": f"{NOBODY}/{name}"} for name in "ab"]
    post(http, "/v2/topics/news/endpoints", json.dumps({"endpoints": endpoints}))
    post(
        http,
        "/v2/schedules/news",
        Upstash_Cron="0 9 * * *",
        Upstash_Schedule_Id="morning",
        Upstash_Delay="90m",
        Upstash_Label="abc",
    )
    post(
        http,
        f"/v2/schedules/{NOBODY}/nightly",
        Upstash_Cron="0 9 * * *",
        Upstash_Queue_Name="mail",
        Upstash_Retries="0",
    )
    post(http, "/v2/schedules/morning/pause")
    post(http, "/v2/schedules/morning/resume")
    post(http, "/_queuebridge/time", json.dumps({"stop": True}))
    due = http.get("/v2/schedules/morning").json()["nextScheduleTime"] / 1000
    post(http, "/_queuebridge/time", json.dumps({"move_to": due + 60}))
    post(http, f"/v2/schedules/{NOBODY}/paused", Upstash_Cron="@daily", Upstash_Schedule_Id="paused")
    post(http, "/v2/schedules/paused/pause")

    morning, nightly, paused = rows(http, tmp_path, "schedules")

    assert morning.startswith("0 9 * * * morning running POST group news delay 1h30m label abc ")
    assert "2 in progress" in morning
    assert f"POST {NOBODY}/nightly queue mail" in nightly
    assert "failed" in nightly
    assert paused == f"@daily paused paused POST {NOBODY}/paused"


def test_url_groups_show_endpoints_and_default_headers(http: httpx.Client, tmp_path: Path) -> None:
    endpoint = {"url": f"{NOBODY}/a", "name": "alpha"}
    post(http, "/v2/topics/news/endpoints", json.dumps({"endpoints": [endpoint]}))
    http.patch("/v2/topics/news", json={"headers": {"Upstash-Retries": "1"}}).raise_for_status()

    (row,) = rows(http, tmp_path, "topics")

    assert row.startswith(f"news alpha {NOBODY}/a default Upstash-Retries: 1 ")


def test_flow_control_keys_show_their_state_and_a_window_where_there_is_a_rate(
    http: httpx.Client, tmp_path: Path
) -> None:
    post(http, "/v2/flowControl/a/pause")
    post(http, f"/v2/publish/{NOBODY}", Upstash_Flow_Control_Key="a", Upstash_Flow_Control_Value="parallelism=3")
    post(http, "/v2/flowControl/b/pin?rate=9&period=5400")

    assert rows(http, tmp_path, "flow") == [
        "a paused 1 0 of 3 0, no limit",
        "b running pinned 0 0, no limit 0 of 9 1h30m",
    ]


def test_step_of_a_failed_workflow_names_its_run_and_offers_no_retry(http: httpx.Client, tmp_path: Path) -> None:
    run = {"Upstash_Workflow_Init": "true", "Upstash_Workflow_RunId": "wfr_1", "Upstash_Workflow_Url": f"{NOBODY}/flow"}
    post(http, f"/v2/publish/{NOBODY}/flow", "{}", Upstash_Retries="0", **run)
    letters = lambda: len(http.get("/v2/dlq").json()["messages"])  # noqa: E731
    wait_until(lambda: letters() == 1 or None, 20, what="the dead letter of the run")
    post(http, f"/v2/publish/{NOBODY}/plain", "{}", Upstash_Retries="0")
    wait_until(lambda: letters() == 2 or None, 20, what="the other dead letter")

    plain, step = rows(http, tmp_path, "dlq")

    assert "workflow run wfr_1" in step
    assert step.endswith("Delete")
    assert "Retry" not in step
    assert plain.endswith("Retry Delete")
