"""What a task wants to have again, by `Reject(requeue=True)`: published anew, as a dispatch of its own.

A broker redelivers such a message without limit. A dispatch has as many attempts as its retry policy allows, and those
are for executors that die: so each wish is another dispatch of the same job, as a retry of Celery's is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.app.amqp import task_message
from kombu import serialization

from queuebridge.backends.celery.message import HEADER
from queuebridge.backends.celery.native import NativeMessage
from queuebridge.backends.celery.workers import plain_queue

logger = logging.getLogger(__name__)

# Says of a message that its job came before, as `redelivered` does of what a broker brings again.
REQUEUED = "queuebridge_requeued"
# It comes back soon, but not at once: it would keep transport and executor busy.
REQUEUE_SECONDS = 1.0
# RabbitMQ refuses to take a message round in circles by these.
_DEATHS = ("x-death", "x-first-death", "x-last-death")


def requeue(
    task: Any, message: NativeMessage, body: Any, *, queue: str, serializer: str | None, compression: str | None
) -> bool:
    """Publish a message anew, to where it came from, by the stage of now. Everything but its eta stays.

    It is published before the dispatch that it follows is settled: a crash in between repeats the job, and loses none.

    Args:
        task: The task.
        message: The message as it came.
        body: Its arguments, keyword arguments and what goes with them, as they came.
        queue: The name of its queue, as its envelope has it.
        serializer, compression: How to encode the body; None is the app's own way.

    Returns:
        Whether somebody took it. If not, that is logged, and the message has to go back.
    """
    try:
        _publish(task.app, message, body, queue=queue, serializer=serializer, compression=compression)
    except Exception:
        logger.exception(
            "Celery task %s was to be requeued, and could not be published anew: its message goes back.",
            message.headers["id"],
        )
        return False
    return True


def _publish(app: Any, message: NativeMessage, body: Any, *, queue: str, **encoding: str | None) -> None:
    again = datetime.now(timezone.utc) + timedelta(seconds=REQUEUE_SECONDS)
    headers = {
        name: value
        for name, value in message.headers.items()
        if name not in (HEADER, "compression") and not name.startswith(_DEATHS)
    }
    headers.update({"eta": again.isoformat(), REQUEUED: _mark(headers)})
    properties = dict(message.properties)
    options = {
        # Of `headers`, tenants and users are read.
        "headers": dict(headers),
        "delivery_mode": properties.pop("delivery_mode", None),
        **encoding,
        **_destination(app, message, queue),
    }
    with app.producer_or_acquire() as producer:
        app.amqp.send_task_message(
            producer, str(headers["task"]), task_message(headers, properties, body, None), **options
        )


def _destination(app: Any, message: NativeMessage, queue: str) -> dict[str, Any]:
    if not message.exchange and message.routing_key:
        return {"queue": app.amqp.queues[plain_queue(message.routing_key)]}
    name = message.queue or queue
    declared = {"queue": app.amqp.queues[name]} if name in app.amqp.queues else {}
    return {"exchange": message.exchange, "routing_key": message.routing_key, **declared}


def serializer_of(content_type: str) -> str | None:
    """Return the name of the serializer for a content type, None if kombu knows none."""
    known: Any = serialization
    name: str | None = known.registry.type_to_name.get(content_type)
    return name


def as_delivered_before(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of an execution that is not the first one of its job."""
    return {**request, "delivery_info": {**(request.get("delivery_info") or {}), "redelivered": True}}


def was_requeued(request: Mapping[str, Any]) -> bool:
    """Return whether a request is of a message that was published by `requeue`."""
    # A retry of Celery's copies the headers of the message that it follows, and is no redelivery.
    return REQUEUED in request and request[REQUEUED] == _mark(request)


def _mark(headers: Mapping[str, Any]) -> str:
    return str(headers.get("retries") or 0)
