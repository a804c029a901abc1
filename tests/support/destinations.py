"""A destination for deliveries of the development server, and clients of that server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import httpx
from processes import wait_until
from qstash import QStash

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

DEADLINE = 20.0


# Status, headers and body.
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Arrival:
    """One request that arrived; `at` is by the monotonic clock, header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic, compare=False)


class Takes(Protocol):
    """Decides what a request is answered with."""

    def take(self, arrival: Arrival) -> Answer:
        """Return the answer to a request, when it is to be given."""
        ...


@dataclass
class Destination:
    """A destination on the loopback that answers as told and remembers what arrived."""

    base_url: str = ""
    arrivals: list[Arrival] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    let_go: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return self.base_url + path

    def answer(self, path: str, *statuses: int, headers: dict[str, str] | None = None, body: bytes = b"") -> str:
        """Answer the next requests to a path with these statuses, later ones with 200; return its URL."""
        self.answers[path] = [(status, headers or {}, body) for status in statuses]
        return self.url(path)

    def hold(self, path: str) -> str:
        """Keep requests to a path waiting until `let_go` is set; return its URL."""
        self.held.add(path)
        return self.url(path)

    def wait_for(self, count: int) -> list[Arrival]:
        """Return what arrived as soon as it is so much."""
        with self.changed:
            enough = self.changed.wait_for(lambda: len(self.arrivals) >= count, DEADLINE)
            assert enough, f"{len(self.arrivals)} of {count} requests arrived"
            return list(self.arrivals)

    def take(self, arrival: Arrival) -> Answer:
        """Remember a request and return what to answer it with."""
        with self.changed:
            self.arrivals.append(arrival)
            self.changed.notify_all()
            waiting = self.answers.get(arrival.path)
            answer = waiting.pop(0) if waiting else (200, {}, b"ok")
        if arrival.path in self.held:
            self.let_go.wait(DEADLINE)
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    destination: Takes

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, extra, answer = self.destination.take(Arrival(self.command, self.path, headers, body))
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


class DestinationServer(ThreadingHTTPServer):
    """One that many may connect with at once, and that does not wait for their requests when it is closed."""

    daemon_threads = True
    block_on_close = False
    # With the default of 5, connections that come all at once are dropped by the kernel after they seem made: what was
    # sent on them comes when TCP has repeated it often enough, 20 seconds later.
    request_queue_size = 1024


@contextlib.contextmanager
def serving(destination: Takes) -> Iterator[str]:
    """Have requests answered for the length of a `with` block; yields the base URL."""
    server = DestinationServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"destination": destination}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def running_destination() -> Iterator[Destination]:
    """Run a destination for the length of a `with` block."""
    destination = Destination()
    with serving(destination) as destination.base_url:
        try:
            yield destination
        finally:
            destination.let_go.set()


@dataclass(frozen=True)
class Clients:
    """The two ways to speak with one server as one user: the official SDK, and plain HTTP."""

    sdk: QStash
    http: httpx.Client

    def states(self, message_id: str) -> list[str]:
        """Return the states of a message so far."""
        events = self.http.get("/v2/events", params={"messageId": message_id, "order": "earliestFirst"})
        return [event["state"] for event in events.json()["events"]]

    def wait_for_state(self, message_id: str, state: str) -> list[str]:
        """Return the states of a message as soon as one of them is this."""

        def reached() -> list[str] | None:
            found = self.states(message_id)
            return found if state in found else None

        return wait_until(reached, DEADLINE, what=f"state {state}")


@contextlib.contextmanager
def connected(base_url: str, token: str = DEFAULT_DEV_USER.token) -> Iterator[Clients]:
    """Connect with a server for the length of a `with` block."""
    sdk = QStash(token, base_url=base_url, retry=False)
    authorized = {"Authorization": f"Bearer {token}"}
    try:
        with httpx.Client(base_url=base_url, headers=authorized, trust_env=False) as http:
            yield Clients(sdk, http)
    finally:
        sdk.http._client.close()


@contextlib.contextmanager
def running(**engine: Any) -> Iterator[Clients]:
    """Run a server in memory that retries a thousand times as fast, and connect with it."""
    settings = ServerSettings(port=0, engine=EngineSettings(**{"time_scale": 1000, **engine}))
    with running_server(settings) as base_url, connected(base_url) as clients:
        yield clients
