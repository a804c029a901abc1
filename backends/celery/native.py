"""A message of an existing Celery application, as it travels in an envelope of kind `celery`, and back.

Positional and keyword arguments are those of the envelope, so that the ledger can show and check them; all else of the
message is carried as it is. Arguments that are not plain JSON (another serializer, compression) stay as the bytes that
Celery made of them, in base64.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from kombu.compression import compress
from kombu.serialization import dumps as serialize
from kombu.utils.json import dumps, loads

from queuebridge.backends.celery.message import HEADER
from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidOption, MalformedEnvelope
from queuebridge.ledger.custody import OPAQUE
from queuebridge.stages import Stage

_JSON = "application/json"
_METADATA = ("user_id", "organization_id")
_LONGEST_ID = 200


@dataclass(frozen=True, kw_only=True)
class NativeMessage:
    """A Celery message of protocol 2, ready for a broker.

    Attributes:
        body: Arguments and what goes with them, encoded.
        content_type, content_encoding: How.
        headers: The headers, without ours.
        properties: The properties: `correlation_id`, `reply_to`, `priority` and so on.
        exchange, routing_key: Where a broker would put it.
        queue: The queue that has to be declared for that; None if there is none to declare.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any] = field(default_factory=dict)
    exchange: str = ""
    routing_key: str = ""
    queue: str | None = None


def encode_body(
    body: Any, serializer: str | None, compression: str | None, headers: dict[str, Any]
) -> tuple[bytes, str, str]:
    """Return a message body as a kombu producer would send it, with its content type and encoding.

    Args:
        body: Arguments, keyword arguments and what goes with them.
        serializer, compression: As in `apply_async`.
        headers: Those of the message; the compression is noted there.
    """
    content_type, content_encoding, text = serialize(body, serializer=serializer)
    encoded = text.encode(content_encoding) if isinstance(text, str) else bytes(text)
    if compression:
        encoded, headers["compression"] = compress(encoded, compression)
    return encoded, content_type, content_encoding


def to_envelope(message: NativeMessage, *, dispatch_id: str, queue: str, stage: Stage | None) -> Envelope:
    """Return the envelope of a new publication of a message.

    Args:
        message: The message.
        dispatch_id: The id of this publication.
        queue: The name of its queue.
        stage: The stage by which it is published.

    Raises:
        InvalidOption: Something in it cannot travel: an id that is too long, a header that is no JSON value.
    """
    headers = message.headers
    task_id = str(headers["id"])
    if len(task_id) > _LONGEST_ID:
        raise InvalidOption("task_id", f"it has {len(task_id)} characters, and QStash takes {_LONGEST_ID}.")
    args, kwargs, embed = _plain_arguments(message) or ([], {}, None)
    rest = {OPAQUE: base64.b64encode(message.body).decode()} if embed is None else {"embed": embed}
    try:
        carried = carry(message, rest)
    except (TypeError, ValueError) as error:
        problem = f"a header or property of task {headers['task']} is no JSON value: {error}."
        raise InvalidOption("headers", problem) from None
    return Envelope(
        version=2,
        kind="celery",
        job_id=task_id,
        dispatch_id=dispatch_id,
        task=str(headers["task"]),
        args=args,
        kwargs=kwargs,
        queue=queue,
        enqueued_at_ms=int(time.time() * 1000),
        not_before_ms=_milliseconds(headers.get("eta")),
        timeout_seconds=_hard_limit(headers),
        # 0 is what a broker takes for none, and what a worker reads into every message.
        priority=message.properties.get("priority") or None,
        metadata={name: headers[name] for name in _METADATA if headers.get(name) is not None},
        stage=stage,
        message=carried,
    )


def carry(message: NativeMessage, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an envelope carries of a message besides its arguments; `from_envelope` reads it.

    Args:
        message: The message; its body does not matter.
        rest: What its body has besides arguments, as `embed`; or, if it cannot be taken apart, all of it.

    Raises:
        TypeError, ValueError: Something in it is no JSON value.
    """
    plain: dict[str, Any] = as_json(
        {
            # A retry has the headers of the message that it repeats, and is another dispatch all the same.
            "headers": {name: value for name, value in message.headers.items() if name != HEADER},
            "properties": dict(message.properties),
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "exchange": message.exchange,
            "routing_key": message.routing_key,
            "queue": message.queue,
            **rest,
        }
    )
    return plain


def as_json(value: Any) -> Any:
    """Return a value in JSON form, as Celery writes it: dates, decimals and the like become dictionaries.

    Raises:
        TypeError, ValueError: It has none.
    """
    return json.loads(dumps(value))


def from_envelope(envelope: Envelope) -> NativeMessage:
    """Return the message in an envelope.

    Raises:
        MalformedEnvelope: There is none in it.
    """
    carried = envelope.message
    try:
        if OPAQUE in carried:
            body = base64.b64decode(carried[OPAQUE], validate=True)
        else:
            # The very bytes: an envelope takes arguments apart only if they can be put together again.
            body = dumps([envelope.args, envelope.kwargs, carried["embed"]]).encode()
        headers = loads(dumps(carried["headers"]))
        return NativeMessage(
            body=body,
            content_type=carried["content_type"],
            content_encoding=carried["content_encoding"],
            # The envelope decides which task runs.
            headers={**headers, "id": envelope.job_id, "task": envelope.task},
            properties=loads(dumps(carried["properties"])),
            exchange=carried["exchange"],
            routing_key=carried["routing_key"],
            queue=carried["queue"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"The envelope of job {envelope.job_id} has no valid Celery message: {error!r}."
        raise MalformedEnvelope(problem) from None


def _plain_arguments(message: NativeMessage) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
    """Return the parts of a body that is JSON, if they make the same bytes when they are put together again."""
    if message.content_type != _JSON or "compression" in message.headers:
        return None
    try:
        parts = json.loads(message.body)
        args, kwargs, embed = parts
        if isinstance(args, list) and isinstance(kwargs, dict) and dumps(parts).encode() == message.body:
            return args, kwargs, embed
    except (TypeError, ValueError):
        pass
    return None


def _hard_limit(headers: Mapping[str, Any]) -> float | None:
    limits: Sequence[Any] = headers.get("timelimit") or (None, None)
    return float(limits[0]) if limits[0] else None


def _milliseconds(eta: Any) -> int | None:
    if not eta:
        return None
    moment = datetime.fromisoformat(str(eta).replace("Z", "+00:00"))
    if moment.tzinfo is None:
        # As in a worker: messages have their times in UTC.
        moment = moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1000)
