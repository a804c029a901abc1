"""The Celery form of an envelope.

It is an ordinary Celery message: the task's own name, its arguments as Celery's, and one extra header with the
rest of the envelope, so that every Celery tool shows what it is used to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from queuebridge.envelope import VERSION, Envelope, problems_in
from queuebridge.errors import MalformedEnvelope, UnsupportedEnvelope
from queuebridge.ids import portable_id
from queuebridge.registry import AnyTask

HEADER = "queuebridge"
# Celery carries these itself; the version is written first, and always.
_NATIVE = {"version", "task", "job_id", "args", "kwargs", "headers", "message"}
# The headers of a Celery message. A custom header of the same name would take the place of Celery's own.
NATIVE_HEADERS = frozenset(
    {
        "argsrepr",
        "callbacks",
        "chain",
        "chord",
        "compression",
        "correlation_id",
        "delivery_info",
        "errbacks",
        "eta",
        "expires",
        "group",
        "group_index",
        "hostname",
        "id",
        "ignore_result",
        "kwargsrepr",
        "lang",
        "meth",
        "origin",
        "parent_id",
        "properties",
        "replaced_task_nesting",
        "reply_to",
        "retries",
        "root_id",
        "shadow",
        "stamped_headers",
        "stamps",
        "task",
        "timelimit",
        "timeouts",
        "x-death",
    }
)


class Minted(str):
    """The header of a publication that is under way.

    Celery copies the headers of a message into its retry; this type tells a fresh header from such a copy.
    """

    __slots__ = ()


def encode_header(envelope: Envelope) -> Minted:
    """Return what the message has to carry besides Celery's own fields. Text: AMQP headers know fewer types."""
    rest = envelope.model_dump_json(exclude_defaults=True, exclude=_NATIVE)
    return Minted(f'{{"version":{envelope.version},{rest[1:]}')


def read_header(header: str) -> dict[str, Any]:
    """Return the fields of an envelope that a message carries in our header.

    Raises:
        UnsupportedEnvelope: It says that it is of a newer version.
        ValueError, AttributeError: It is no JSON object.
    """
    carried: dict[str, Any] = from_json(header)
    version = carried.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise UnsupportedEnvelope(version, VERSION)
    return carried


def decode_message(
    task: AnyTask,
    *,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    headers: Mapping[str, Any],
    queue: str,
) -> Envelope:
    """Return the envelope that a worker received.

    A message without our header, sent by a program that does not know queuebridge, becomes an envelope with the
    task's own defaults.

    Raises:
        MalformedEnvelope: The header is not one of ours.
        UnsupportedEnvelope: The header says that it is of a newer version.
    """
    header = headers.get(HEADER)
    try:
        carried = (
            read_header(header)
            if header is not None
            else {
                "dispatch_id": portable_id(task_id),
                "queue": queue,
                "enqueued_at_ms": int(time.time() * 1000),
                "retry": task.retry,
                "timeout_seconds": task.timeout,
                "metadata": task.metadata,
            }
        )
        return Envelope.model_validate(
            {
                **carried,
                "task": task.name,
                "job_id": task_id,
                "args": list(args),
                "kwargs": dict(kwargs),
                "headers": own_headers(headers),
            }
        )
    except ValidationError as error:
        raise MalformedEnvelope(
            f"The header {HEADER!r} of Celery task {task_id} is not valid: {problems_in(error)}"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedEnvelope(f"The header {HEADER!r} of Celery task {task_id} is not JSON: {error}") from None


def own_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that the caller of `apply_async` gave, out of all that a worker sees."""
    return {
        name: value
        for name, value in headers.items()
        if name != HEADER and name not in NATIVE_HEADERS and isinstance(value, str)
    }
