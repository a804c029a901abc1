"""A headless Chromium for tests of pages, driven through its own debugging protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE = 30.0


def chromium() -> str | None:
    """Return the installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """A page in the browser. `complaints` collects script errors and what the browser refused to load or run."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, DEADLINE)

    async def open(self, url: str) -> None:
        """Go to an address; a later change of the part after `#` loads nothing anew."""
        await self.send("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        async def poll() -> Any:
            while not (value := await self.evaluate(expression)):  # noqa: ASYNC110 - the page sends no signals
                await asyncio.sleep(0.05)
            return value

        try:
            return await asyncio.wait_for(poll(), DEADLINE)
        except asyncio.TimeoutError:
            text = await self.evaluate("document.body?.innerText")
            found = f"complaints: {self.complaints}\nthe page:\n{text}"
            raise AssertionError(f"never true: {expression}\n{found}") from None

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                answer = self._answers.get(data["id"])
                if answer is not None and not answer.done():
                    answer.set_result(data.get("result", {"exceptionDetails": data.get("error")}))
            elif data["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(data["params"]["exceptionDetails"]))
            elif data["method"] == "Log.entryAdded":
                entry = data["params"]["entry"]
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
            elif data["method"] == "Page.javascriptDialogOpening":
                self.dialogs.append(data["params"]["message"])
                await self._socket.send_json(
                    {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                )


@asynccontextmanager
async def opened_page(folder: Path) -> AsyncIterator[Page]:
    """Run a Chromium with a fresh profile below `folder` for the length of a block; it must be installed."""
    program = chromium()
    assert program is not None
    process = await asyncio.create_subprocess_exec(
        program,
        "--headless",
        "--no-sandbox",  # it does not start as root with it
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}",
        "about:blank",
        env={**os.environ, "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    draining = None
    try:
        port = await asyncio.wait_for(_port(process.stderr), DEADLINE)
        draining = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                targets = await response.json(content_type=None)
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                try:
                    for domain in ("Page", "Runtime", "Log"):
                        await page.send(f"{domain}.enable")
                    yield page
                finally:
                    await page.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if draining is not None:
            await draining


async def _port(output: asyncio.StreamReader) -> int:
    """Return the port that Chromium says it listens on."""
    lines = []
    while line := await output.readline():
        lines.append(line.decode(errors="replace"))
        found = re.match(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", lines[-1])
        if found is not None:
            return int(found.group(1))
    raise AssertionError("the browser ended: " + "".join(lines))
