"""Publish the messages of an existing Celery application through a bridge.

Every publication of an app passes through `AMQP.send_task_message`. That function is left to do all it does: it sends
the signals, routes, and merges options. What it would hand to the broker in the end is taken here instead, unless the
stage leaves the call to Celery.
"""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import celery
from kombu import serialization
from kombu.exceptions import OperationalError

from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.brokers import BrokerCheck
from queuebridge.backends.celery.configured_app import using_app
from queuebridge.backends.celery.delays import queue_at, split_delay
from queuebridge.backends.celery.message import HEADER, Minted
from queuebridge.backends.celery.native import NativeMessage, encode_body, to_envelope
from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.backends.celery.workers import plain_queue
from queuebridge.bridge import Bridge, get_bridge
from queuebridge.errors import InvalidOption, OptionNotSupported, PublishError
from queuebridge.foreign import Forwarding, is_chosen
from queuebridge.ids import new_dispatch_id
from queuebridge.publishing.draft import Draft
from queuebridge.settings import environment_or, read_settings
from queuebridge.stages import Side, Stage

# What is about one act of publishing, and what a broker needs in place of the body's own encoding.
_PUBLISHING = frozenset({"retry", "retry_policy", "timeout", "confirm_timeout", "declare", "exchange", "routing_key"})
_ENCODING = frozenset({"serializer", "compression", "headers", "content_type", "content_encoding"})
# What asks the broker for an answer that nobody waits for here.
_REFUSED = ("mandatory", "immediate")
# How long the caller is ready to wait.
_WAITS = ("timeout", "confirm_timeout")

Send = Callable[..., Any]


class AppForwarding:
    """Sends the messages of one app where the environment says.

    Args:
        app: The app.
    """

    def __init__(self, app: celery.Celery) -> None:
        self.app = app
        self._lock = threading.Lock()
        self._known = False
        self._forwarding: Forwarding | None = None
        self._brokers: BrokerCheck | None = None
        self._longest_wait = 0.0

    def forwarding(self) -> Forwarding | None:
        """Return where calls go; None if the environment says nothing, so that Celery does all by itself."""
        # Found out at the first publish: settings of the app may be read long after it was made.
        if not self._known:
            with self._lock:
                if not self._known:
                    if is_chosen():
                        self._prepare(self._bridge())
                    self._known = True
        return self._forwarding

    def _prepare(self, bridge: Bridge) -> None:
        written = (backend.app for backend in bridge.backends.values() if isinstance(backend, CeleryBackend))
        self._brokers = BrokerCheck(next(written, self.app))
        self._longest_wait = read_settings(CelerySettings, environment_or(None)).publish_timeout_seconds
        self._forwarding = Forwarding(bridge, "celery")

    def _bridge(self) -> Bridge:
        with using_app(self.app):
            bridge = get_bridge()
            backends = [backend for backend in bridge.backends.values() if isinstance(backend, CeleryBackend)]
            if all(backend.app is self.app for backend in backends):
                return bridge
            # The process has another app's.
            return Bridge()

    def send(self, send: Send, producer: Any, name: str, message: Any, options: dict[str, Any]) -> Any:
        """Send a message, as Celery's own `send_task_message` would.

        Args:
            send: That function.
            producer, name, message, options: Its arguments.

        Raises:
            OptionNotSupported: The producer leads to another broker than that of the app, and a bridge publishes.
            Exception: As `publish`, or as `send`.
        """
        given: Mapping[str, Any] = options.get("headers") or {}
        forwarding = self.forwarding()
        if forwarding is None:
            return send(producer, name, message, **options)
        if type(given.get(HEADER)) is Minted:
            # Used up: a transport in memory would hand on the very object.
            options["headers"] = {**given, HEADER: str(given[HEADER])}
            return send(producer, name, message, **options)
        queue = self._delayed_queue(options)
        if queue is None:
            queue = _queue_name(options.get("queue"))
            if queue is not None and queue != plain_queue(queue):
                options["queue"] = queue = plain_queue(queue)
        queue = queue or options.get("routing_key") or self.app.conf.task_default_queue
        task_id = _task_id(message)
        stage = forwarding.stage_of(name, queue, task_id, given)
        if forwarding.is_left_to_library(stage):
            # A retry brings the header of the message that it repeats; each publication has one of its own.
            options["headers"] = {**given, HEADER: short_header(queue, stage)}
            return send(producer, name, message, **options)
        if self._brokers is not None:
            self._brokers.check(producer)
        if "id" not in message.headers:
            message = as_protocol_2(self.app, name, message)
        if Side.LEGACY not in forwarding.bridge.backends:
            # Without a broker there is nobody to watch events.
            message = message._replace(sent_event=None)
        taken = _Taken(self, forwarding, producer, message.body, queue=queue, stage=stage)
        return send(taken, name, message, **options)

    def _delayed_queue(self, options: dict[str, Any]) -> str | None:
        """Return the queue that a message is for which the broker delays; None for any other message."""
        delay, key = split_delay(options.get("routing_key") or "")
        if not delay:
            return None
        queue = queue_at(self.app, key)
        if queue != plain_queue(queue):
            queue = plain_queue(queue)
            options["routing_key"] = delay + (self.app.amqp.queues[queue].routing_key or queue)
        return queue

    def publish(
        self,
        forwarding: Forwarding,
        body: Any,
        resolved: dict[str, Any],
        *,
        dispatch_id: str,
        queue: str,
        stage: Stage | None,
    ) -> None:
        """Publish what Celery was about to hand to the broker.

        Args:
            forwarding: Where it goes.
            body: Arguments, keyword arguments and what goes with them.
            resolved: What Celery's function passes to `Producer.publish`.
            dispatch_id: The id of this publication.
            queue: The name of the queue.
            stage: The stage.

        Raises:
            InvalidOption, OptionNotSupported: It cannot be honoured.
            kombu.exceptions.OperationalError: Nobody took it, or it is not known whether anybody did.
        """
        for option in _REFUSED:
            if resolved.get(option):
                raise OptionNotSupported("celery", option, "its answer goes to the producer's own connection.")
        for option in _WAITS:
            given = resolved.get(option)
            if given is not None and given < self._longest_wait:
                raise OptionNotSupported(
                    "celery",
                    f"{option}={given:g}",
                    f"each write waits up to {self._longest_wait:g} s. Lower QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS.",
                )
        headers = dict(resolved["headers"])
        self._check_serializer(resolved.get("serializer"), str(headers["task"]))
        encoded, content_type, content_encoding = encode_body(
            body, resolved.get("serializer"), resolved.get("compression"), headers
        )
        exchange = resolved.get("exchange")
        declared = [queue_.name for queue_ in resolved.get("declare") or () if hasattr(queue_, "name")]
        message = NativeMessage(
            body=encoded,
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            properties={
                name: value
                for name, value in resolved.items()
                if name not in _PUBLISHING and name not in _ENCODING and name not in _REFUSED and value is not None
            },
            exchange=getattr(exchange, "name", exchange) or "",
            routing_key=resolved.get("routing_key") or "",
            queue=declared[0] if declared else None,
        )
        envelope = to_envelope(message, dispatch_id=dispatch_id, queue=queue, stage=stage)
        policy = resolved.get("retry_policy")
        draft = Draft(
            envelope=envelope,
            retry=resolved.get("retry"),
            options={"celery": {"retry_policy": policy}} if policy else {},
            parameter_names=parameter_names(self.app, envelope.task),
            stage=stage,
        )
        try:
            forwarding.publish(draft)
        except PublishError as error:
            # What programs that use Celery expect of a broker that cannot be reached.
            raise OperationalError(str(error)) from error

    def _check_serializer(self, serializer: str | None, task: str) -> None:
        name = serializer or self.app.conf.task_serializer
        known: Any = serialization
        content_type = known.registry.name_to_type.get(name, name)
        if content_type not in (known.prepare_accept_content(self.app.conf.accept_content) or ()):
            raise InvalidOption(
                "serializer",
                f"task {task} is sent as {name}, which is not in the app's accept_content, so that no executor could "
                "read it.",
            )


class _Taken:
    """Stands in for a producer, and takes the one message that is on its way.

    Events that go the same way reach the broker.
    """

    def __init__(
        self, app: AppForwarding, forwarding: Forwarding, producer: Any, body: Any, *, queue: str, stage: Stage | None
    ) -> None:
        self._app = app
        self._forwarding = forwarding
        self._producer = producer
        self._body = body
        self._queue = queue
        self._stage = stage
        # Of all attempts: Celery 5.7 calls again for a callback, and the attempt before may have arrived after all.
        self._dispatch_id = new_dispatch_id()

    def publish(self, body: Any, **resolved: Any) -> Any:
        """Publish a message."""
        if body is not self._body:
            return self._producer.publish(body, **resolved)
        return self._app.publish(
            self._forwarding, body, resolved, dispatch_id=self._dispatch_id, queue=self._queue, stage=self._stage
        )

    def revive(self, channel: Any) -> None:
        """Do nothing between two attempts: they were not made with the producer."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def short_header(queue: str, stage: Stage | None) -> str:
    """Return what `encode_header` makes of a message that a broker alone gets, in a tenth of its time."""
    chosen = f',"stage":"{stage.value}"' if stage is not None else ""
    return (
        f'{{"version":2,"kind":"celery","dispatch_id":"{new_dispatch_id()}","queue":{_quoted(queue)},'
        f'"enqueued_at_ms":{int(time.time() * 1000)}{chosen}}}'
    )


def as_protocol_2(app: Any, name: str, message: Any) -> Any:
    """Return a message of protocol 1 as one of protocol 2, which can be pushed and which workers since Celery 4 read.

    Args:
        app: The app.
        name: The name of the task.
        message: What Celery made of a call; its body has all that the headers of protocol 2 have.
    """
    body = message.body
    hard, soft = body.get("timelimit") or (None, None)
    taken = ("group_index", "retries", "eta", "expires", "chord", "callbacks", "errbacks")
    made = app.amqp.as_task_v2(
        body["id"],
        name,
        body["args"],
        body["kwargs"],
        group_id=body.get("group"),
        time_limit=hard,
        soft_time_limit=soft,
        **{field: body[field] for field in taken if body.get(field) is not None},
    )
    return made._replace(properties=message.properties, sent_event=message.sent_event)


def parameter_names(app: celery.Celery, task: str) -> tuple[str, ...]:
    """Return the names of the positional parameters of a task; none if it is not known here."""
    # The registry itself: asking the app for its tasks would finalize it.
    registry: Any = app
    known = registry._tasks.get(task)
    if known is None:
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, one in inspect.signature(known.run).parameters.items() if one.kind in kinds)


def _task_id(message: Any) -> str:
    # Protocol 1 has it in the body.
    body = message.body
    return str(message.headers.get("id") or (body.get("id") if isinstance(body, dict) else None) or "")


@lru_cache(maxsize=256)
def _quoted(queue: str) -> str:
    return json.dumps(queue)


def _queue_name(queue: Any) -> str | None:
    return queue if queue is None or isinstance(queue, str) else str(queue.name)
