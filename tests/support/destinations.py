"""A destination of deliveries on the loopback, which answers as told and remembers what arrived."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEADLINE = 20.0


@dataclass
class Arrival:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Destination:
    """A destination on the loopback that answers as told and remembers what arrived."""

    answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    hold: threading.Event = field(default_factory=threading.Event)
    base_url: str = ""

    def answer(self, path: str, *statuses: int, headers: dict[str, str] | None = None, body: bytes = b"") -> str:
        """Answer the next requests to a path with these statuses, later ones with 200; return its URL."""
        self.answers[path] = [(status, headers or {}, body) for status in statuses]
        return self.base_url + path

    def take(self, arrival: Arrival) -> tuple[int, dict[str, str], bytes]:
        with self.changed:
            self.arrivals.append(arrival)
            self.changed.notify_all()
            waiting = self.answers.get(arrival.path)
            return waiting.pop(0) if waiting else (200, {}, b"ok")

    def wait_for(self, count: int) -> list[Arrival]:
        with self.changed:
            arrived = self.changed.wait_for(lambda: len(self.arrivals) >= count, DEADLINE)
            assert arrived, f"{len(self.arrivals)} of {count} requests arrived"
            return list(self.arrivals)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    destination: Destination

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, extra, answer = self.destination.take(Arrival(self.command, self.path, headers, body))
        if self.path == "/held":
            self.destination.hold.wait(DEADLINE)
        try:
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            self.close_connection = True  # the server that waited was killed

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def running_destination() -> Iterator[Destination]:
    """Run a destination for the duration of the block."""
    found = Destination()
    handler = type("Handler", (_Handler,), {"destination": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.base_url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        found.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
