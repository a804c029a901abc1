"""An existing Celery application with a bridge below it: a broker in memory, a recording QStash, a ledger in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kombu
import pytest
from celery.app.trace import trace_task_ret
from recording_qstash import RecordingQStash
from staging import Clock, WatchedLedger

from queuebridge import Bridge
from queuebridge.backends.celery import Celery, receiver_app
from queuebridge.backends.celery.configured_app import using_app
from queuebridge.bridge import set_bridge
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.outcome import Outcome
from queuebridge.stages import Stage


@dataclass
class Message:
    """A message on the broker."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes
    content_type: str
    content_encoding: str


class CeleryWorld:
    """One app and its surroundings.

    Attributes:
        app: The app, with a queue of its own.
        bridge: The bridge below it; None if the environment says nothing.
        server: QStash.
        ledger: The ledger; None without one.
    """

    def __init__(self, server: RecordingQStash, ledger: WatchedLedger | None, make: Callable[..., Any]) -> None:
        self.server = server
        self.ledger = ledger
        self.queue = f"queue-{uuid.uuid4().hex}"
        self.app = make("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(task_default_queue=self.queue, result_backend_always_retry=False)
        self.bridge: Bridge | None = None

    def take(self, queue: str | None = None) -> list[Message]:
        """Return the messages on a queue of the broker, and take them from it."""
        name = queue or self.queue
        found = []
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            kombu.Queue(name, kombu.Exchange(name), routing_key=name)(channel).declare()
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                found.append(
                    Message(message.headers, message.properties, body, message.content_type, message.content_encoding)
                )
        return found

    def pushed(self) -> list[Envelope]:
        """Return what was published to QStash."""
        found = []
        for request in self.server.requests:
            assert request.path.startswith("/v2/publish/")
            found.append(Envelope.decode(request.body))
        return found

    def deliver(self, envelope: Envelope, message_id: str = "msg_1", attempt: int = 1) -> Outcome:
        """Run a pushed envelope as the receiver does."""
        assert self.bridge is not None
        return self.bridge.runner.run(envelope, Delivery(backend="qstash", message_id=message_id, attempt=attempt))

    def work(self, message: Message, queue: str | None = None, exchange: str = "") -> tuple[int, Any, float]:
        """Run a message as the pool of a worker does, and return what the worker gets back."""
        request = {
            **message.headers,
            "properties": message.properties,
            "reply_to": message.properties.get("reply_to"),
            "correlation_id": message.properties.get("correlation_id"),
            "delivery_info": {
                "exchange": exchange,
                "routing_key": queue or self.queue,
                "priority": message.properties.get("priority"),
                "redelivered": False,
            },
        }
        # As in a worker.
        self.app.set_current()
        name, task_id = message.headers["task"], message.headers["id"]
        answer: tuple[int, Any, float] = trace_task_ret(
            name, task_id, request, message.body, message.content_type, message.content_encoding, app=self.app
        )
        return answer

    def arguments(self, message: Message) -> Any:
        """Return the body of a message that is JSON."""
        return json.loads(message.body)


MakeWorld = Callable[..., CeleryWorld]


@contextmanager
def celery_world(
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage | None = None,
    *,
    backend: str | None = None,
    with_ledger: bool = True,
    make: Callable[..., Any] = Celery,
    **variables: str,
) -> Iterator[CeleryWorld]:
    """Make an app for a stage, for a single backend, or (with neither) for an environment that says nothing."""
    ledger = WatchedLedger(Clock()) if with_ledger else None
    # The apps of earlier tests may still be there.
    monkeypatch.setattr(receiver_app, "_attached", [])
    with RecordingQStash() as server:
        environment = {"QSTASH_TOKEN": "t", "QSTASH_URL": server.url, "QUEUEBRIDGE_PUBLIC_URL": "https://example.com"}
        if stage is not None:
            environment.update(QUEUEBRIDGE_LEGACY="celery", QUEUEBRIDGE_STAGE=stage.value)
        if backend is not None:
            environment["QUEUEBRIDGE_BACKEND"] = backend
        for name, value in {**environment, **variables}.items():
            monkeypatch.setenv(name, value)
        world = CeleryWorld(server, ledger, make)
        if stage is not None or backend is not None:
            with using_app(world.app):
                world.bridge = Bridge(ledger=ledger)
            set_bridge(world.bridge)
        try:
            yield world
        finally:
            set_bridge(None)
            if world.bridge is not None:
                world.bridge.close()
            world.app.close()
