"""A destination on the loopback that answers 200 and says what came in, when, and how much of it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from destinations import DestinationServer

DEADLINE = 30.0


@dataclass(frozen=True)
class Request:
    """One request; `at` is by the monotonic clock, header names are in lower case."""

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class CountingDestination:
    """What arrived so far. While `hold` is set requests to `/held` are not answered; others take `work_seconds`."""

    base_url: str = ""
    work_seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return self.base_url + path

    def wait_for(self, count: int) -> list[Request]:
        """Return all requests as soon as there are that many, answered or not."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.requests) >= count, DEADLINE)
            assert arrived, f"{len(self.requests)} of {count} requests arrived"
            return list(self.requests)

    def _take(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()
        if request.path == "/held":
            self.let_go.wait(DEADLINE)
        elif self.work_seconds:
            time.sleep(self.work_seconds)
        with self._changed:
            self.in_flight -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    destination: CountingDestination

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.destination._take(Request(time.monotonic(), self.command, self.path, headers, body))
        try:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
        except OSError:
            self.close_connection = True  # the server that waited was killed

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print nothing."""


@contextmanager
def counting_destination() -> Iterator[CountingDestination]:
    """Run a destination for the time of the context."""
    found = CountingDestination()
    server = DestinationServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"destination": found}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.base_url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        found.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
