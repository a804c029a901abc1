"""A loopback HTTP server in the place of QStash: it writes down what reaches it and answers as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Recorded:
    """One request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def configuration(self) -> dict[str, str]:
        """The headers that are not about the HTTP connection itself."""
        technical = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-length", "authorization"}
        return {name: value for name, value in self.headers.items() if name.lower() not in technical}


@dataclass
class Answer:
    """What to answer: a status, headers, and bytes or something to send as JSON."""

    status: int = 200
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The bytes to send."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


Answerer = Callable[[Recorded], Answer]


def accept(request: Recorded) -> Answer:
    """Answer as QStash does when it accepts."""
    if request.path == "/v2/batch":
        count = len(json.loads(request.body))
        return Answer(200, [{"messageId": f"msg_{number}"} for number in range(count)])
    if request.method == "DELETE":
        return Answer(200, {"cancelled": len(json.loads(request.body)["messageIds"])})
    if request.method == "GET":
        return Answer(200, [])
    return Answer(200, {"messageId": "msg_1", "url": "https://example.com"})


class RecordingQStash:
    """The server. `answers` are given one after the other, then `otherwise` decides.

    Attributes:
        requests: What arrived, in order.
    """

    def __init__(self, answers: Sequence[Answer] = (), otherwise: Answerer = accept, port: int = 0) -> None:
        self.requests: list[Recorded] = []
        self._answers = list(answers)
        self._otherwise = otherwise
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Answers in one packet: otherwise every one waits for an acknowledgement.
            wbufsize = -1
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = outer._answer(Recorded(self.command, self.path, dict(self.headers.items()), body))
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that the library looks for

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def _answer(self, request: Recorded) -> Answer:
        with self._lock:
            self.requests.append(request)
            if self._answers:
                return self._answers.pop(0)
        return self._otherwise(request)

    def __enter__(self) -> RecordingQStash:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def raw_server(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Run a TCP server that deals with each connection in `talk`; yields its `host:port`.

    `talk` gets the connection and an event that is set when the server ends.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    threads: list[threading.Thread] = []

    def deal(connection: socket.socket) -> None:
        with connection:
            try:
                talk(connection, over)
            except OSError:
                return

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=deal, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=listen)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        # Closing alone does not wake up a thread that waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def silent(connection: socket.socket, over: threading.Event) -> None:
    """Accept the connection and everything that comes, and never answer."""
    connection.settimeout(0.05)
    while not over.is_set():
        try:
            if not connection.recv(65536):
                return
        except TimeoutError:
            continue


def dripping(start: bytes, drop: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return a `talk` that answers `start`, then `drop` again and again, 50 times a second."""

    def talk(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(start)
        while not over.wait(0.02):
            connection.sendall(drop)

    return talk


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took <= seconds, f"It took {took:.2f} s, more than {seconds:g} s."
