"""A Flask application whose workflows run on the official SDK, served by threads of the test's process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, request
from qstash import QStash, Receiver
from upstash_workflow.flask import Serve
from werkzeug.serving import BaseWSGIServer, make_server

from queuebridge.backends.qstash.protocol import DEV_USERS

USER = DEV_USERS[0]
DEADLINE = 30.0


@dataclass
class Seen:
    """What happened in the application, in order, and what it is told to do."""

    calls: Counter[str] = field(default_factory=Counter)
    events: list[Any] = field(default_factory=list)
    third_party: list[dict[str, Any]] = field(default_factory=list)
    third_party_answers: list[int] = field(default_factory=list)
    lose_answers: Counter[str] = field(default_factory=Counter)
    changed: threading.Condition = field(default_factory=threading.Condition)
    gate: threading.Event = field(default_factory=threading.Event)

    def note(self, event: Any) -> Any:
        """Remember an event and return it."""
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        return event

    def wait_for(self, event: Any) -> None:
        """Wait until an event has happened."""
        with self.changed:
            happened = self.changed.wait_for(lambda: event in self.events, DEADLINE)
            assert happened, f"{event!r} did not happen; what did: {self.events}"

    def wait_for_calls(self, path: str, count: int) -> None:
        """Wait until a path was called and about to be answered that often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.calls[path] >= count, DEADLINE), self.calls


class Application:
    """The application, its server, and the address of both."""

    def __init__(self, server_url: str) -> None:
        self.seen = Seen()
        self.flask = Flask("workflows")
        self.client = QStash(USER.token, base_url=server_url, retry=False)
        self._serve = Serve(self.flask)
        self._receiver = Receiver(USER.current_signing_key, USER.next_signing_key)
        self.flask.after_request(self._count)
        self.flask.add_url_rule("/third-party", view_func=self._third_party, methods=["GET", "POST"])
        self._server: BaseWSGIServer = make_server("127.0.0.1", 0, self.flask, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """The base URL of the application."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def workflow(self, path: str, route: Callable[..., None], **options: Any) -> str:
        """Serve a workflow under a path, with verified signatures unless told otherwise; return its URL."""
        options = {"receiver": self._receiver, "env": {}, **options}
        route.__name__ = path.strip("/").replace("-", "_")
        self._serve.route(path, qstash_client=self.client, **options)(route)
        return self.url + path

    def start(self) -> None:
        """Begin to serve; all workflows must be known."""
        self._thread.start()

    def stop(self) -> None:
        """End the server and the SDK's connections."""
        self.seen.gate.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self.client.http._client.close()

    def _count(self, response: Response) -> Response:
        seen = self.seen
        with seen.changed:
            seen.calls[request.path] += 1
            seen.changed.notify_all()
            if seen.lose_answers[request.path] and request.headers.get("Upstash-Workflow-Sdk-Version"):
                seen.lose_answers[request.path] -= 1
                response.status_code = 500
        return response

    def _third_party(self) -> Response:
        self.seen.third_party.append(
            {"method": request.method, "body": request.data.decode(), "headers": dict(request.headers)}
        )
        status = self.seen.third_party_answers.pop(0) if self.seen.third_party_answers else 200
        if status == 0:
            self.seen.gate.wait(DEADLINE)
        return Response('{"answer": 42}', status or 200, content_type="application/json")
