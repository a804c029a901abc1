"""Delays that a RabbitMQ with quorum queues keeps by itself, since Celery 5.5: the routing key says how long.

Such a key is the delay in seconds as bits with dots, and then the routing key of the queue.
"""

from __future__ import annotations

import re
from typing import Any

_BITS = 28
_DELAYED = re.compile(rf"((?:[01]\.){{{_BITS}}})(.*)", re.DOTALL)


def split_delay(routing_key: str) -> tuple[str, str]:
    """Return the part of a routing key that says how long, empty if none does, and the rest."""
    found = _DELAYED.fullmatch(routing_key)
    return (found[1], found[2]) if found is not None else ("", routing_key)


def with_delay(routing_key: str, seconds: float) -> str:
    """Return a routing key that says how long with the time that is left; any other one as it is."""
    delay, plain = split_delay(routing_key)
    return ".".join(f"{max(0, round(seconds)):0{_BITS}b}") + f".{plain}" if delay else routing_key


def queue_at(app: Any, routing_key: str) -> str:
    """Return the name of the queue that a routing key, without a delay, leads to: the key itself if none is known."""
    queues = app.amqp.queues
    if routing_key in queues:
        return routing_key
    return next((name for name, queue in list(queues.items()) if queue.routing_key == routing_key), routing_key)
