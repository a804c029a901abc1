"""When the next attempt of a failed message happens (protocol section 13.3)."""

from __future__ import annotations

import math

from queuebridge.backends.qstash.devserver.retry_delay import retry_delay_seconds
from queuebridge.backends.qstash.durations import parse_retry_after
from queuebridge.backends.qstash.protocol import (
    BACKOFF_EXPONENT,
    MAX_RETRY_DELAY_SECONDS,
    RETRY_AFTER_HEADERS,
)


def default_backoff(retry_number: int) -> float:
    """Return the seconds before retry `retry_number` (1 for the first): e^(2.5n), at most one day."""
    exponent = BACKOFF_EXPONENT * retry_number
    return min(float(MAX_RETRY_DELAY_SECONDS), math.exp(min(exponent, 100.0)))


def requested_wait(headers: tuple[tuple[str, str], ...], now: float) -> float | None:
    """Return the seconds a failed response asks for, or None.

    A value that cannot be read, or one beyond a day, is passed over for the next header of the family.
    """
    found = {name.lower(): value for name, value in reversed(headers)}
    for name in RETRY_AFTER_HEADERS:
        value = found.get(name.lower())
        if value is None:
            continue
        wait = parse_retry_after(value, now=now)
        if wait is not None and wait <= MAX_RETRY_DELAY_SECONDS:
            return wait
    return None


def next_wait(
    *, retried: int, expression: str | None, response_headers: tuple[tuple[str, str], ...], now: float
) -> float:
    """Return the seconds until the next attempt: response headers, then expression, then backoff.

    Args:
        retried: how often the message has been retried so far; 0 after the first attempt.
        expression: the message's `Upstash-Retry-Delay`, already validated, or None.
        response_headers: of the failed attempt; empty when there was no response.
        now: the machine's time in Unix seconds, for dates.
    """
    wait = requested_wait(response_headers, now)
    if wait is None and expression is not None:
        wait = retry_delay_seconds(expression, retried)
    return default_backoff(retried + 1) if wait is None else wait
