"""The page's own JSON, the hosts it is served for, and what its scripts may not contain."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

import queuebridge.backends.qstash.devserver.page as package
from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.history import MAX_ANSWER_BYTES, History
from queuebridge.backends.qstash.devserver.messages import FlowControl, LogState, Message, Outcome, Redaction
from queuebridge.backends.qstash.devserver.page.hosts import is_own_host
from queuebridge.backends.qstash.devserver.page.overview import SHOWN_BYTES, Overview
from queuebridge.backends.qstash.devserver.page.page import Page
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services
from queuebridge.backends.qstash.devserver.workflow.part import WorkflowPart

FOLDER = Path(str(package.__file__)).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))

World = Any
MakeWorld = Callable[..., World]


@pytest.mark.parametrize(
    ("host", "listening"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("127.1.2.3:8080", "192.0.2.7"),
        ("localhost", "127.0.0.1"),
        ("LocalHost:8080", "127.0.0.1"),
        ("localhost.:8080", "127.0.0.1"),
        ("app.localhost:8080", "127.0.0.1"),
        ("[::1]:8080", "127.0.0.1"),
        ("[::1]", "127.0.0.1"),
        ("[0:0:0:0:0:0:0:1]:8080", "::1"),
        ("192.0.2.7:8080", "192.0.2.7"),
        ("build-host:8080", "build-host"),
        ("Build-Host", "build-host"),
        ("192.0.2.7:8080", "0.0.0.0"),
        ("[2001:db8::1]:8080", "::"),
    ],
)
def test_own_host_is_recognised(host: str, listening: str) -> None:
    assert is_own_host([host], listening)


@pytest.mark.parametrize(
    ("host", "listening"),
    [
        ("evil.example", "127.0.0.1"),
        ("evil.example:8080", "0.0.0.0"),
        ("localhost.evil.example", "127.0.0.1"),
        ("127.0.0.1.evil.example", "127.0.0.1"),
        ("evillocalhost", "127.0.0.1"),
        ("evil.example@127.0.0.1", "127.0.0.1"),
        ("127.0.0.1@evil.example", "127.0.0.1"),
        ("127.0.0.1:80@evil.example", "127.0.0.1"),
        ("192.0.2.7", "127.0.0.1"),
        ("192.0.2.8", "192.0.2.7"),
        ("192.0.2.7", "build-host"),
        ("[::1", "127.0.0.1"),
        ("[::1]x", "127.0.0.1"),
        ("::1", "127.0.0.1"),
        ("", "127.0.0.1"),
        (":8080", "127.0.0.1"),
        (".", "127.0.0.1"),
        ("127.0.0.1:port", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
    ],
)
def test_other_host_is_not(host: str, listening: str) -> None:
    assert not is_own_host([host], listening)


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_exactly_one_host_is_due(hosts: list[str]) -> None:
    assert not is_own_host(hosts, "127.0.0.1")


def ask(world: World, path: str, query: str = "") -> Any:
    """Return the overview's answer for the world's account."""
    http = make_mocked_request("GET", path or "/")
    request = ApiRequest(http, world.account, "GET", f"/_queuebridge/overview{path}", "", query)
    response = Overview(Services(world.engine, lambda: None)).answer(request, path)
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def ids(page: Any) -> list[str]:
    return [item["messageId"] for item in page["messages"]]


def walk(world: World, path: str, query: str = "") -> list[Any]:
    """Return all pages, following the cursors."""
    pages = [ask(world, path, query)]
    while "cursor" in pages[-1]:
        pages.append(ask(world, path, f"{query}&cursor={pages[-1]['cursor']}"))
        assert len(pages) < 100
    return pages


def fail(world: World, **spec: Any) -> Message:
    message: Message = world.publish(max_retries=0, **spec)
    assert world.start() == [message]
    world.finish(message, 500, body=b"no")
    return message


def test_counts_are_those_of_the_phases(world: World) -> None:
    world.finish(world.publish() and world.start()[0])
    fail(world)
    world.engine.cancel(world.account, world.publish(delay=5))
    world.publish(delay=5)
    world.publish(queue="q")
    world.publish(queue="q")
    assert len(world.start()) == 1

    counts = ask(world, "")

    assert counts == {
        "now": int(world.clock.now * 1000),
        "clockStopped": False,
        "waiting": 2,
        "active": 1,
        "delivered": 1,
        "failed": 1,
        "canceled": 1,
        "deadLetters": 1,
        "countedAll": True,
    }


def test_pages_hold_every_message_once_and_newest_first(world: World) -> None:
    messages = [world.publish(delay=60 if number % 2 else 0) for number in range(23)]
    for message in world.start():
        world.finish(message)

    pages = walk(world, "/messages", "count=5")

    assert [name for page in pages for name in ids(page)] == [message.id for message in reversed(messages)]
    assert [len(page["messages"]) for page in pages] == [5, 5, 5, 5, 3]


def test_page_that_ends_with_the_last_message_has_no_cursor(world: World) -> None:
    for _ in range(4):
        world.publish()

    assert [len(page["messages"]) for page in walk(world, "/messages", "count=2")] == [2, 2]


def test_finished_messages_are_listed_as_long_as_the_log_has_them(world: World) -> None:
    first, second = world.publish(), world.publish()
    for message in world.start():
        world.finish(message)
    world.clock.now += 3600
    assert world.engine.forget_finished(10) == 2

    assert ids(ask(world, "/messages")) == [second.id, first.id]
    assert ask(world, f"/messages/{first.id}")["state"] == "delivered"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("waiting", ["delayed"]),
        ("active", ["active"]),
        ("finished", ["failed", "delivered"]),
        ("delivered", ["delivered"]),
        ("failed", ["failed"]),
        ("canceled", []),
        ("all", ["delayed", "active", "failed", "delivered"]),
    ],
)
def test_state_selects_messages(world: World, state: str, expected: list[str]) -> None:
    world.publish(url="http://host/delivered")
    world.finish(world.start()[0])
    fail(world, url="http://host/failed")
    world.publish(url="http://host/active")
    world.start()
    world.publish(url="http://host/delayed", delay=9)

    found = ask(world, "/messages", f"state={state}")["messages"]

    assert [item["url"].rpartition("/")[2] for item in found] == expected


@pytest.mark.parametrize(
    "search",
    [
        "HOST/Needle",
        "needle-label",
        "needle-queue",
        "needle-key",
        "needle-group",
        "needle-schedule",
        "needle-run",
        "PUT",
    ],
)
def test_search_looks_into_what_names_a_message(world: World, search: str) -> None:
    world.publish(url="http://elsewhere/")
    needle = world.publish(
        url="http://host/needle",
        method="PUT",
        labels=("needle-label",),
        queue="needle-queue",
        flow=FlowControl(key="needle-key", rate=1),
        topic="needle-group",
        schedule_id="needle-schedule",
        workflow=WorkflowPart(run_id="needle-run"),
    )

    assert ids(ask(world, "/messages", f"search={search}")) == [needle.id]


def test_search_of_many_messages_goes_on_at_its_cursor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuebridge.backends.qstash.devserver.page.overview._MAX_SEARCHED", 10)
    needle = world.publish(url="http://host/needle")
    for _ in range(25):
        world.publish()

    pages = walk(world, "/messages", "search=needle")

    assert [page["searched"] for page in pages] == [10, 10, 6]
    assert [ids(page) for page in pages] == [[], [], [needle.id]]


def test_dead_letters_are_paged_newest_first_and_searched(world: World) -> None:
    messages = [fail(world, url=f"http://host/{number}") for number in range(5)]

    pages = walk(world, "/dlq", "count=2")

    assert [name for page in pages for name in ids(page)] == [message.id for message in reversed(messages)]
    assert [len(page["messages"]) for page in pages] == [2, 2, 1]
    assert ids(ask(world, "/dlq", "search=host/3")) == [messages[3].id]
    assert len(ids(ask(world, "/dlq", "search=Answered 500".replace(" ", "%20")))) == 5
    assert pages[0]["messages"][0]["failure"] == "the destination answered 500"


def test_detail_of_a_dead_letter_survives_its_log(make_world: MakeWorld) -> None:
    world = make_world()
    message = fail(world)
    world.account.history = History()
    del world.account.messages[message.id]

    found = ask(world, f"/messages/{message.id}")

    assert [(event["state"], event.get("status")) for event in found["events"]] == [("ERROR", 500), ("FAILED", None)]
    assert b64decode(found["events"][0]["body"]["base64"]) == b"no"
    assert found["dlqId"] in world.account.dead_letters


def test_detail_shows_a_part_of_a_large_body(world: World) -> None:
    message = world.publish()
    message.body = b"x" * (SHOWN_BYTES + 5)

    body = ask(world, f"/messages/{message.id}")["body"]

    assert body["bytes"] == SHOWN_BYTES + 5
    assert len(b64decode(body["base64"])) == SHOWN_BYTES


def test_detail_keeps_what_is_redacted(world: World) -> None:
    redaction = Redaction(body=True, all_headers=True)
    message = world.publish(headers=(("X-Secret", "secret"),), redaction=redaction)

    found = ask(world, f"/messages/{message.id}")

    assert b64decode(found["body"]["base64"]).startswith(b"REDACTED:")
    assert found["header"]["X-Secret"][0].startswith("REDACTED:")


def test_log_keeps_the_beginning_of_a_long_answer_to_a_delivery(world: World) -> None:
    world.publish()
    (message,) = world.start()
    world.finish(message, 200, body=b"y" * (MAX_ANSWER_BYTES + 5))

    entry = next(world.account.history.newest_first())

    assert (entry.state, len(entry.outcome.body)) == (LogState.DELIVERED, MAX_ANSWER_BYTES)


def test_log_counts_the_headers_of_answers(world: World) -> None:
    message = world.publish()
    history = History(max_bytes=10_000)
    for number in range(20):
        history.add(number, LogState.ERROR, message, outcome=Outcome(status=500, headers=(("X", "y" * 4_000),)))

    assert len(list(history.newest_first())) == 2


def test_page_is_for_its_host_only(world: World) -> None:
    page = Page(Services(world.engine, lambda: None), "127.0.0.1")

    with pytest.raises(Refusal) as caught:
        page.file(make_mocked_request("GET", "/", headers={"Host": "evil.example"}), "/")

    assert caught.value.status == 403
    assert page.file(make_mocked_request("GET", "/", headers={"Host": "localhost"}), "/") is not None
    assert page.file(make_mocked_request("GET", "/x", headers={"Host": "evil.example"}), "/x") is None


def test_every_script_and_style_is_served(world: World) -> None:
    page = Page(Services(world.engine, lambda: None), "127.0.0.1")
    names = [path.name for path in FOLDER.iterdir() if path.suffix in {".js", ".css"}]
    assert "page.js" in names

    for name in names:
        path = f"/_queuebridge/page/{name}"
        found = page.file(make_mocked_request("GET", path, headers={"Host": "localhost"}), path)
        assert found is not None, name
        assert found.body == (FOLDER / name).read_bytes()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text(path: Path) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\b|\bFunction\(|DOMParser|javascript:"

    assert re.findall(sinks, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_no_longer_than_other_files(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 400
    assert [line for line in lines if len(line) > 120] == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    markup = (FOLDER / "page.html").read_text(encoding="utf-8")
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    imports = [name for path in SCRIPTS for name in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8"))]

    loaded = re.findall(r'(?:src|href)="([^"]+)"', markup)
    assert sorted(loaded) == ["/_queuebridge/page/page.css", "/_queuebridge/page/page.js", "data:,"]
    assert re.findall(r"url\(|@import", style) == []
    assert {name for name in imports if not name.startswith("./")} == set()
    assert re.findall(r"<script(?![^>]*src)|<style| on[a-z]+=| style=", markup) == []
