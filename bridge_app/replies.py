"""How the receiver answers: one table from the end of a delivery to a status code.

QStash takes any 2xx as delivered, 489 with the header below as failed for good, and everything else as a failed
attempt that it repeats (protocol sections 13.2 and 13.3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import Response

from queuebridge.failures import redact
from queuebridge.outcome import Outcome, Status
from queuebridge.retry import MAX_DELAY_SECONDS

NOT_AUTHENTIC = 401
UNSUPPORTED = 503
NON_RETRYABLE = 489
NON_RETRYABLE_HEADERS: Mapping[str, str] = MappingProxyType({"Upstash-NonRetryable-Error": "true"})

STATUS_CODES: Mapping[Status, int] = MappingProxyType(
    {
        Status.DONE: 200,
        Status.EXPIRED: 200,
        # Published anew already: the transport must not bring this one again.
        Status.RETRIED: 200,
        Status.RETRY: 500,
        Status.FAILED: NON_RETRYABLE,
        Status.INVALID_ARGUMENTS: NON_RETRYABLE,
        # A newer deployment may know it, so QStash shall try again.
        Status.UNKNOWN_TASK: 404,
        Status.DUPLICATE: 200,
        Status.SHADOWED: 200,
        # Never 200 unless it was parked: if the other execution dies, somebody has to come again.
        Status.BUSY: 503,
        Status.DEFERRED: 503,
    }
)


def reply_to(outcome: Outcome, job_id: str) -> Response:
    """Return the answer for the end of a delivery."""
    code = STATUS_CODES[outcome.status]
    content: dict[str, Any] = {"status": outcome.status.value, "job_id": job_id}
    if outcome.status is Status.DONE:
        content["result"] = outcome.result
    else:
        # QStash keeps answers in its logs, and errors of clients may show addresses with passwords.
        content["error"] = redact(outcome.reason)
    headers = dict(NON_RETRYABLE_HEADERS) if code == NON_RETRYABLE else {}
    if outcome.retry_delay_seconds is not None:
        headers["Retry-After"] = retry_after(outcome.retry_delay_seconds)
    return reply(code, content, headers)


def reply(code: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    return Response(json.dumps(content), status=code, headers=headers, content_type="application/json")


def retry_after(seconds: float) -> str:
    """Return a delay as QStash reads it: whole seconds, or a duration such as `1500ms`; at most one day."""
    # QStash ignores a longer one in favour of its own backoff, which would try again much sooner.
    seconds = min(seconds, MAX_DELAY_SECONDS)
    if seconds == int(seconds):
        return str(int(seconds))
    return f"{math.ceil(seconds * 1000)}ms"
