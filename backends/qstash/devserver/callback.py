"""The JSON body of callbacks and failure callbacks (protocol section 13.7)."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from queuebridge.backends.qstash.devserver.messages import (
    HeaderPairs,
    Message,
    MessageSpec,
    Outcome,
    canonical_header_name,
)


def header_map(headers: HeaderPairs) -> dict[str, list[str]]:
    """Return headers as the API shows them: canonical names, every value in an array (2.1)."""
    result: dict[str, list[str]] = {}
    for name, value in headers:
        result.setdefault(canonical_header_name(name), []).append(value)
    return result


def origin_fields(spec: MessageSpec) -> dict[str, str]:
    """Return what a message came from, if it was a URL group or a schedule."""
    origin = {"topicName": spec.topic, "endpointName": spec.endpoint, "scheduleId": spec.schedule_id}
    return {name: value for name, value in origin.items() if value is not None}


def callback_body(
    source: Message,
    outcome: Outcome,
    *,
    dlq_id: str | None,
    max_body_bytes: int,
    run: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the body that tells a callback URL of one attempt.

    Args:
        source: the message; its `retried` must still be that of the attempt.
        outcome: of the attempt; its body is cut to `max_body_bytes`.
        dlq_id: given for a failure callback only.
        run: what the callback says of the workflow run, for a message of one; then the two bodies are
            always there, as the workflow SDKs need.
    """
    spec = source.spec
    data: dict[str, Any] = {
        "status": outcome.status,
        "header": header_map(outcome.headers),
        "retried": source.retried,
        "maxRetries": spec.max_retries,
        "sourceMessageId": source.id,
        "url": spec.url,
        "method": spec.method,
        "sourceHeader": header_map(spec.headers),
        "notBefore": source.not_before_ms,
        "createdAt": source.created_ms,
        "callerIP": spec.caller_ip,
        **origin_fields(spec),
    }
    if outcome.body:
        data["body"] = b64encode(outcome.body[:max_body_bytes]).decode("ascii")
    if source.body:
        data["sourceBody"] = b64encode(source.body).decode("ascii")
    if dlq_id is not None:
        data["dlqId"] = dlq_id
    if run is not None:
        data = {"body": "", "sourceBody": "", **data, **run}
    return json.dumps(data, separators=(",", ":")).encode()
