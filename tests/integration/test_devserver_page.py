"""The page of the development server: what is served to whom, and what a browser makes of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from browser import Page, chromium, opened_page
from processes import wait_until

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEV_USERS, DevUser

USER, OTHER_USER = DEV_USERS[:2]
AUTHORIZED = {"Authorization": f"Bearer {USER.token}"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
DEADLINE = 20.0

needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium or Chrome is installed")


@pytest.fixture
def base_url() -> Iterator[str]:
    """A server in memory that retries a thousand times as fast."""
    with running_server(ServerSettings(port=0, engine=EngineSettings(time_scale=1000))) as url:
        yield url


@pytest.fixture
def http(base_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client without a token."""
    with httpx.Client(base_url=base_url, trust_env=False) as found:
        yield found


@pytest.fixture
def destination() -> Iterator[str]:
    """A destination that answers with hostile text: 500 below /bad, 200 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = f"answer {HOSTILE}".encode()
            self.send_response(500 if self.path.startswith("/bad") else 200)
            self.send_header("X-Hostile", HOSTILE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def publish(http: httpx.Client, url: str, body: bytes = b"body", user: DevUser = USER, **headers: str) -> str:
    """Publish a message and return its id."""
    options = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Authorization": f"Bearer {user.token}", **options}
    found = http.post(f"/v2/publish/{url}", content=body, headers=headers).raise_for_status().json()
    return str(found["messageId"])


def overview(http: httpx.Client, path: str = "", **parameters: str) -> Any:
    """Return what the page is told."""
    found = http.get(f"/_queuebridge/overview{path}", params=parameters, headers=AUTHORIZED)
    return found.raise_for_status().json()


def ended(http: httpx.Client, message_id: str, state: str) -> None:
    """Wait until a message is in a state."""
    found = lambda: overview(http, f"/messages/{message_id}")["state"] == state or None  # noqa: E731
    wait_until(found, DEADLINE, what=f"the state {state}")


def test_page_and_its_files_are_served_without_a_token(http: httpx.Client) -> None:
    page = http.get("/")

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = {name: http.get(f"/_queuebridge/page/{name}") for name in ("page.css", "page.js", "details.js")}
    assert {name: found.status_code for name, found in files.items()} == dict.fromkeys(files, 200)
    assert files["page.css"].headers["content-type"] == "text/css; charset=utf-8"
    assert files["page.js"].headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/_queuebridge/page/page.js", "/_queuebridge/page/users.json"])
def test_page_forbids_all_but_its_own_scripts(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers

    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"


def test_head_has_the_headers_and_no_body(http: httpx.Client) -> None:
    found = http.head("/")

    assert (found.status_code, found.content) == (200, b"")
    assert int(found.headers["content-length"]) == len(http.get("/").content)


@pytest.mark.parametrize(
    "path", ["/_queuebridge/page/", "/_queuebridge/page/page.py", "/_queuebridge/page/../page.html"]
)
def test_nothing_else_is_served_without_a_token(http: httpx.Client, path: str) -> None:
    # Sent by hand: a client would resolve the dots.
    with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").readline()

    assert b" 401 " in answer


def test_other_methods_need_a_token(http: httpx.Client) -> None:
    assert http.post("/").status_code == 401
    assert http.post("/", headers=AUTHORIZED).status_code == 404


def test_published_users_are_told_in_order(http: httpx.Client) -> None:
    found = http.get("/_queuebridge/page/users.json").json()

    assert found == {"users": [{"name": user.name, "token": user.token} for user in DEV_USERS]}


def test_token_that_is_not_published_is_not_told() -> None:
    own = replace(USER, name="own", token="not published")
    settings = ServerSettings(port=0, engine=EngineSettings(users=(own, OTHER_USER)))
    with running_server(settings) as url:
        found = httpx.get(f"{url}/_queuebridge/page/users.json", trust_env=False).json()

    assert found == {"users": [{"name": OTHER_USER.name, "token": OTHER_USER.token}]}


@pytest.mark.parametrize("path", ["/", "/_queuebridge/page/users.json", "/_queuebridge/overview"])
def test_name_that_somebody_else_points_here_is_refused(http: httpx.Client, path: str) -> None:
    refused = http.get(path, headers={**AUTHORIZED, "Host": "rebound.example:8080"})
    taken = http.get(path, headers={**AUTHORIZED, "Host": "localhost:8080"})

    assert refused.status_code == 403
    assert "localhost" in refused.json()["error"]
    assert taken.status_code == 200


def test_overview_needs_a_token(http: httpx.Client) -> None:
    for path in ("", "/messages", "/dlq", "/messages/x"):
        assert http.get(f"/_queuebridge/overview{path}").status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/unknown", 404),
        ("/messages/msg_unknown", 404),
        ("/messages?state=odd", 400),
        ("/messages?count=0", 400),
        ("/messages?count=201", 400),
        ("/messages?cursor=x", 400),
        ("/messages?sreach=x", 400),
        ("/dlq?cursor=x", 400),
        ("/dlq?state=all", 400),
        ("?x=1", 400),
    ],
)
def test_overview_refuses_what_it_does_not_know(http: httpx.Client, path: str, status: int) -> None:
    found = http.get(f"/_queuebridge/overview{path}", headers=AUTHORIZED)

    assert found.status_code == status
    assert found.json()["error"]


def test_overview_shows_what_the_destination_answered(http: httpx.Client, destination: str) -> None:
    good, bad = publish(http, f"{destination}/good"), publish(http, f"{destination}/bad", Upstash_Retries="1")
    ended(http, good, "delivered")
    ended(http, bad, "failed")

    delivered, failed = (overview(http, f"/messages/{name}") for name in (good, bad))

    assert [event["state"] for event in delivered["events"]] == ["CREATED", "ACTIVE", "DELIVERED"]
    answer = delivered["events"][-1]
    assert (answer["status"], answer["header"]["X-Hostile"]) == (200, [HOSTILE])
    assert [event.get("status") for event in failed["events"] if event["state"] == "ERROR"] == [500, 500]
    assert overview(http, "/dlq")["messages"][0]["dlqId"] == failed["dlqId"]
    assert http.get("/v2/events", params={"messageId": good}, headers=AUTHORIZED).json()["events"][0].keys().isdisjoint(
        {"responseStatus", "responseBody"}
    ), "the API tells of answers to failed attempts only"


def test_overview_shows_one_user_only(http: httpx.Client) -> None:
    theirs = publish(http, "http://127.0.0.1:9/x", user=OTHER_USER, Upstash_Delay="1h")
    mine = publish(http, "http://127.0.0.1:9/x", Upstash_Delay="1h")

    assert [item["messageId"] for item in overview(http, "/messages")["messages"]] == [mine]
    assert http.get(f"/_queuebridge/overview/messages/{theirs}", headers=AUTHORIZED).status_code == 404


def browse(folder: Path, steps: Callable[[Page], Awaitable[None]]) -> None:
    """Take steps in a browser, which must find nothing to complain about."""

    async def main() -> None:
        async with opened_page(folder) as page:
            await steps(page)
            # What the server refuses, the page copes with; the tests look at what it makes of it.
            assert [text for text in page.complaints if not text.startswith("network:")] == []
            assert await page.evaluate("document.title") == "QStash development server"

    asyncio.run(main())


def shows(text: str, selector: str = "body") -> str:
    return f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})"


def click(text: str, within: str = "body") -> str:
    """Return what clicks the first button or link with a text, and tells whether there was one."""
    nodes = f"[...document.querySelectorAll({json.dumps(within + ' button, ' + within + ' a')})]"
    # Of a tab, the number of entries follows the name.
    return f"!!{nodes}.find(node => node.innerText.startsWith({json.dumps(text)}) && (node.click(), true))"


@needs_browser
def test_empty_page_says_how_to_publish(base_url: str, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.open(base_url)
        await page.wait_for(shows("No messages yet"))
        assert await page.evaluate(shows(f"curl -X POST '{base_url}/v2/publish/"))
        assert await page.evaluate(shows(USER.token))
        for tab, text in (("Dead letters", "No dead letters"), ("Queues", "No queues")):
            assert await page.wait_for(click(tab, "nav"))
            await page.wait_for(shows(text))

    browse(tmp_path, steps)


@needs_browser
def test_hostile_texts_are_shown_and_not_run(
    base_url: str, http: httpx.Client, destination: str, tmp_path: Path
) -> None:
    message_id = publish(
        http,
        f"{destination}/bad?x={HOSTILE}",
        f"published {HOSTILE}\u202egnp.".encode(),
        Upstash_Retries="1",
        Upstash_Label=HOSTILE,
        Upstash_Flow_Control_Key=HOSTILE,
        Upstash_Flow_Control_Value="parallelism=1",
        Upstash_Forward_X_Own=HOSTILE,
    )
    ended(http, message_id, "failed")

    async def steps(page: Page) -> None:
        await page.open(f"{base_url}/#messages/{message_id}")
        await page.wait_for(shows(f"published {HOSTILE}\\u202egnp.", "#details"))
        await page.evaluate("document.querySelectorAll('details').forEach(node => (node.open = true))")
        for text in (f"answer {HOSTILE}", "Attempt 2", "failed: 500", "Given up", "X-Own", "X-Hostile"):
            assert await page.evaluate(shows(text, "#details")), text
        assert await page.evaluate(shows(f"label {HOSTILE}", "#list"))
        assert await page.evaluate("document.querySelectorAll('#list img, #details img, body script').length") == 0

    browse(tmp_path, steps)


@needs_browser
def test_body_that_is_no_text_is_shown_as_hex(base_url: str, http: httpx.Client, tmp_path: Path) -> None:
    message_id = publish(http, "http://127.0.0.1:9/x", b"\x00\xffbinary", Upstash_Delay="1h")

    async def steps(page: Page) -> None:
        await page.open(f"{base_url}/#messages/{message_id}")
        await page.wait_for(shows("000000  00 ff 62 69 6e 61 72 79", "#details"))

    browse(tmp_path, steps)


@needs_browser
def test_dead_letters_are_retried_and_deleted(
    base_url: str, http: httpx.Client, destination: str, tmp_path: Path
) -> None:
    for _ in range(2):
        ended(http, publish(http, f"{destination}/bad", Upstash_Retries="0"), "failed")
    before = {item["dlqId"] for item in overview(http, "/dlq")["messages"]}

    async def steps(page: Page) -> None:
        await page.open(f"{base_url}/#dlq")
        await page.wait_for("document.querySelectorAll('#list tbody tr').length === 2")
        assert await page.evaluate(click("Delete", "#list"))
        await page.wait_for("document.querySelectorAll('#list tbody tr').length === 1")
        assert page.dialogs == ["Delete this dead letter for good?"]
        left = {item["dlqId"] for item in overview(http, "/dlq")["messages"]}
        assert left < before
        assert await page.evaluate(click("Retry", "#list"))
        # It fails again, as another message, and is a new dead letter.
        asked = f"fetch('/v2/dlq', {{headers: {json.dumps(AUTHORIZED)}}}).then(found => found.json())"
        fresh = f"!{json.dumps(sorted(before))}.includes(found.messages[0].dlqId)"
        await page.wait_for(f"{asked}.then(found => found.messages.length === 1 && {fresh})")

    browse(tmp_path, steps)


@needs_browser
def test_filter_pages_and_users(base_url: str, http: httpx.Client, tmp_path: Path) -> None:
    for number in range(30):
        publish(http, f"http://127.0.0.1:9/number/{number}", Upstash_Delay="1h")
    publish(http, "http://127.0.0.1:9/theirs", user=OTHER_USER, Upstash_Delay="1h")

    async def steps(page: Page) -> None:
        await page.open(base_url)
        await page.wait_for(shows("/number/29", "#list"))
        assert not await page.evaluate(shows("/number/4", "#list"))
        assert await page.evaluate(click("Older", "#pager"))
        await page.wait_for(shows("/number/0", "#list"))
        assert not await page.evaluate(shows("/number/29", "#list"))
        typed = "(node => ((node.value = '/NUMBER/17'), node.dispatchEvent(new Event('input'))))"
        await page.evaluate(f"{typed}(document.querySelector('#filter'))")
        await page.wait_for("document.querySelectorAll('#list tbody tr').length === 1")
        assert await page.evaluate(shows("/number/17", "#list"))
        chosen = "(node => ((node.value = '1'), node.dispatchEvent(new Event('change'))))"
        await page.evaluate(f"{chosen}(document.querySelector('#user'))")
        await page.wait_for(shows("Nothing matches", "#list"))
        assert await page.evaluate(click("Clear the filter", "#list"))
        await page.wait_for(shows("/theirs", "#list"))
        assert not await page.evaluate(shows("/number/", "#list"))

    browse(tmp_path, steps)


@needs_browser
def test_section_the_server_does_not_have_is_left_out_with_a_note(base_url: str, tmp_path: Path) -> None:
    key = {"waitListSize": 3, "parallelismMax": 2, "parallelismCount": 1, "rateMax": 0}
    key |= {"rateCount": 0, "ratePeriod": 10, "isPaused": True, "isPinnedRate": True}
    keys = [key | {"flowControlKey": f"key-{number}"} for number in range(30)]
    endpoints = [{"url": "https://a.example/", "name": "a"}]
    group = {"name": "group-1", "updatedAt": 1_800_000_000_000, "endpoints": endpoints}
    answers = {"/v2/schedules": None, "/v2/topics": [group], "/v2/flowControl": keys}
    stub = f"""
        const answers = {json.dumps(answers)}, real = fetch;
        window.fetch = async (path, options) => !(path in answers) ? real(path, options)
            : new Response(JSON.stringify(answers[path] ?? {{error: "no"}}), {{status: answers[path] ? 200 : 404}});
    """

    async def steps(page: Page) -> None:
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=stub)
        await page.open(f"{base_url}/#schedules")
        await page.wait_for(shows("does not have it: Schedules (/v2/schedules)."))
        await page.wait_for(shows("No messages yet"))
        assert not await page.evaluate(click("Schedules", "nav"))
        assert await page.evaluate(click("URL groups", "nav"))
        await page.wait_for(shows("https://a.example/", "#list"))
        assert await page.evaluate(click("Flow control", "nav"))
        await page.wait_for(shows("1 – 25", "#pager"))
        assert await page.evaluate(shows("1 of 2", "#list"))
        assert await page.evaluate(click("Next", "#pager"))
        await page.wait_for(shows("26 – 30", "#pager"))
        assert await page.evaluate("document.querySelectorAll('#list tbody tr').length") == 5

    browse(tmp_path, steps)


@needs_browser
def test_page_asks_again_only_while_it_is_visible(base_url: str, http: httpx.Client, tmp_path: Path) -> None:
    visibility = """
        let shown = "visible";
        Object.defineProperty(document, "visibilityState", {get: () => shown});
        window.show = (state) => { shown = state; document.dispatchEvent(new Event("visibilitychange")); };
        const timers = new Set(), set = setTimeout, clear = clearTimeout;
        window.setTimeout = (call, ms) => {
            const id = set(() => { timers.delete(id); call(); }, ms);
            timers.add(id);
            return id;
        };
        window.clearTimeout = (id) => { timers.delete(id); clear(id); };
        window.timers = timers;
    """

    async def steps(page: Page) -> None:
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=visibility)
        await page.open(base_url)
        await page.wait_for(shows("No messages yet"))
        publish(http, "http://127.0.0.1:9/first", Upstash_Delay="1h")
        await page.wait_for(shows("/first"))
        await page.evaluate("show('hidden')")
        await page.wait_for("timers.size === 0")
        publish(http, "http://127.0.0.1:9/second", Upstash_Delay="1h")
        assert not await page.evaluate(shows("/second"))
        await page.evaluate("show('visible')")
        await page.wait_for(shows("/second"))

    browse(tmp_path, steps)


@needs_browser
def test_typed_token_is_tried_and_refused(tmp_path: Path) -> None:
    own = replace(USER, name="own", token="own-token")
    typed = "(node => ((node.value = '{}'), node.dispatchEvent(new Event('change'))))(document.querySelector('#token'))"

    async def steps(page: Page) -> None:
        await page.open(url)
        await page.wait_for(shows("Choose a user, or give a token"))
        await page.evaluate(typed.format("wrong"))
        await page.wait_for(shows("The server does not accept this token."))
        await page.evaluate(typed.format("own-token"))
        await page.wait_for(shows("Bearer $QSTASH_TOKEN"))
        assert not await page.evaluate("document.body.innerText.includes('own-token')")
        assert await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0

    with running_server(ServerSettings(port=0, engine=EngineSettings(users=(own,)))) as url:
        browse(tmp_path, steps)
