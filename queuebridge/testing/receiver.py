"""A receiver for tests: records what arrives, verified, and answers as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from queuebridge.errors import NotAuthentic
from queuebridge.loading import import_optional
from queuebridge.testing.threads import serving

_NO_BODY_STATUSES = (204, 304)


@dataclass(frozen=True)
class ReceivedRequest:
    """One request that arrived.

    Attributes:
        method: In upper case.
        path: As sent, with the query string.
        headers: By name in lower case.
        body: As sent.
        problem: Why it is not authentic; None for an authentic one.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    problem: str | None = None

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.body)


@dataclass
class _Answer:
    path: str | None
    times: int | None
    status: int
    headers: Mapping[str, str]
    body: bytes


class QStashReceiver:
    """A receiver on the loopback. Made by the fixture `qstash_receiver`.

    What is signed as the embedded server signs is recorded in `requests` and answered as told, with 200 and no body
    by default. Anything else is answered with 401 and recorded in `refused`. The signature must be for this address, or
    for the host in the `Host` header, so that `resolve` works.

    Attributes:
        url: Its address, without a slash at the end.
        signing_keys: The current and the next key; change them to expect those of another user.
    """

    def __init__(self, url: str) -> None:
        user = import_optional("queuebridge.backends.qstash.protocol", feature="The receiver for tests")
        self.url = url
        self.signing_keys: tuple[str, str] = (
            user.DEFAULT_DEV_USER.current_signing_key,
            user.DEFAULT_DEV_USER.next_signing_key,
        )
        self._verification = import_optional(
            "queuebridge.backends.qstash.verification", feature="The receiver for tests"
        )
        self._answers: list[_Answer] = []
        self._requests: list[ReceivedRequest] = []
        self._refused: list[ReceivedRequest] = []
        self._changed = threading.Condition()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[QStashReceiver]:
        """Run a receiver for the length of a `with` block.

        Raises:
            MissingExtra: PyJWT, which verifies signatures, is not installed.
        """
        with _Server(("127.0.0.1", 0), _Handler) as http:
            http.receiver = cls(f"http://127.0.0.1:{http.server_port}")
            with serving(http, "qstash-receiver"):
                yield http.receiver

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The authentic requests so far, in order of arrival."""
        with self._changed:
            return list(self._requests)

    @property
    def refused(self) -> list[ReceivedRequest]:
        """The other ones; `problem` says why."""
        with self._changed:
            return list(self._refused)

    def respond(
        self,
        status: int = 200,
        *,
        body: str | bytes = b"",
        headers: Mapping[str, str] | None = None,
        path: str | None = None,
        times: int | None = None,
    ) -> None:
        """Say what to answer.

        Args:
            status: The HTTP status.
            body: The body; text is sent as UTF-8.
            headers: Further headers.
            path: Only for requests to this path, without the query string.
            times: For so many requests; these answers come first, in the order in which they were said. None: for
                all that follow, until something else is said.

        Raises:
            ValueError: `status` is no final HTTP status, or `times` is not positive.
        """
        if not 200 <= status <= 599:
            raise ValueError(f"status must be between 200 and 599, not {status}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        answer = _Answer(path, times, status, headers or {}, body.encode() if isinstance(body, str) else body)
        with self._changed:
            self._answers.append(answer)

    def wait_for(self, count: int = 1, *, timeout: float = 10.0) -> list[ReceivedRequest]:
        """Wait until so many authentic requests have arrived, and return all that have.

        Args:
            count: How many.
            timeout: Seconds.

        Raises:
            AssertionError: Fewer arrived in time; says what did.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                arrived = [f"{request.method} {request.path}" for request in self._requests]
                refused = [f"{request.path}: {request.problem}" for request in self._refused[-3:]]
                raise AssertionError(
                    f"{len(arrived)} of {count} requests arrived within {timeout:g} s: {arrived}; "
                    f"refused last: {refused}"
                )
            return list(self._requests)

    def clear(self) -> None:
        """Forget what arrived and what is to be answered."""
        with self._changed:
            self._requests.clear()
            self._refused.clear()
            self._answers.clear()

    def _take(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        request = ReceivedRequest(method, path, headers, body, self._problem(headers, body, path))
        with self._changed:
            (self._requests if request.problem is None else self._refused).append(request)
            self._changed.notify_all()
            if request.problem is not None:
                return _Answer(None, None, 401, {}, request.problem.encode())
            return self._answer_for(path.partition("?")[0])

    def _problem(self, headers: Mapping[str, str], body: bytes, path: str) -> str | None:
        host = headers.get("host", "")
        urls = (self.url, f"https://{host}", f"http://{host}")
        verifier = self._verification.SignatureVerifier(self.signing_keys, urls)
        problem: str | None = None
        # What is published to an address without a path arrives at the path "/".
        for signed_path in (path, path[1:]) if path == "/" or path.startswith("/?") else (path,):
            try:
                verifier.verify(_ByAnyName(headers), body, signed_path)
            except NotAuthentic as error:
                problem = problem or str(error)
            else:
                return None
        return problem

    def _answer_for(self, path: str) -> _Answer:
        fitting = [answer for answer in self._answers if answer.path in (None, path)]
        counted = next((answer for answer in fitting if answer.times is not None), None)
        if counted is not None and counted.times is not None:
            counted.times -= 1
            if not counted.times:
                self._answers.remove(counted)
            return counted
        return fitting[-1] if fitting else _Answer(None, None, 200, {}, b"")


class _ByAnyName(dict[str, str]):
    """Headers by name, however it is written."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    receiver: QStashReceiver


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Connections that the server keeps for later end by themselves.
    timeout = 10
    server: _Server

    def handle_one_request(self) -> None:
        """Answer one request of any method."""
        try:
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = self.server.receiver._take(self.command, self.path, headers, body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            content = b"" if answer.status in _NO_BODY_STATUSES else answer.body
            if answer.status not in _NO_BODY_STATUSES:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the server gave up on the answer, or on the connection

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""
