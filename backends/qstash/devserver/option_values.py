"""Reading single header values of a publish (protocol sections 3.3, 3.5 and 3.8)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from queuebridge.backends.qstash.devserver.errors import bad_request
from queuebridge.backends.qstash.devserver.messages import FlowControl, Redaction
from queuebridge.backends.qstash.devserver.retry_delay import RetryDelayError, compile_expression
from queuebridge.backends.qstash.durations import parse_duration
from queuebridge.backends.qstash.protocol import (
    DEFAULT_FLOW_PERIOD_SECONDS,
    MAX_FLOW_PERIOD_SECONDS,
    METHODS,
)

_SECONDS: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_LONG_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:mo|[smhdwy]))+")
_LONG_PART: Final = re.compile(r"([0-9]+)(mo|[smhdwy])")
_LONG_UNITS: Final = {
    "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "mo": 30 * 86_400, "y": 365 * 86_400,
}  # fmt: skip
_REDACT_HEADER: Final = re.compile(r"headers?\[([^\]]+)\]", re.IGNORECASE)


def check_utf8(name: str, value: str) -> None:
    """Refuse a value that is not valid UTF-8.

    Raises:
        Refusal: 400.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise bad_request(f"the value of {name} is not valid UTF-8") from None


def is_true(value: str, name: str) -> bool:
    """Return a boolean header's value, in any case.

    Raises:
        Refusal: 400 for anything but true and false.
    """
    lowered = value.strip().lower()
    if lowered not in {"true", "false"}:
        raise bad_request(f"{name} must be true or false, not {value[:40]!r}")
    return lowered == "true"


def integer(name: str, value: str) -> int:
    """Return a whole number that is not negative.

    Raises:
        Refusal: 400 for anything else.
    """
    text = value.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise bad_request(f"{name} must be a whole number, not {value[:40]!r}")
    return int(text)


def duration(name: str, value: str) -> int:
    """Return the seconds of a duration.

    Raises:
        Refusal: 400 for anything else.
    """
    try:
        return parse_duration(value)
    except ValueError as error:
        raise bad_request(f"{name}: {error}") from None


def workflow_delay(name: str, value: str) -> float:
    """Return the seconds of a workflow's sleep: fractions of a second, weeks, months and years are allowed.

    Raises:
        Refusal: 400 for anything else.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not _LONG_DURATION.fullmatch(text):
        return duration(name, text)
    return sum(int(number) * _LONG_UNITS[unit] for number, unit in _LONG_PART.findall(text))


def _method(value: str) -> str:
    method = value.strip().upper()
    if method not in METHODS:
        raise bad_request(f"Upstash-Method must be one of {', '.join(sorted(METHODS))}, not {value[:40]!r}")
    return method


def _timeout(value: str) -> int:
    seconds = duration("Upstash-Timeout", value)
    if seconds == 0:
        raise bad_request("Upstash-Timeout must be at least one second")
    return seconds


def _retry_delay(value: str) -> str:
    try:
        compile_expression(value)
    except RetryDelayError as error:
        raise bad_request(f"Upstash-Retry-Delay: {error}") from None
    return value


def _labels(value: str) -> tuple[str, ...]:
    check_utf8("Upstash-Label", value)
    return tuple(label for label in (part.strip() for part in value.split(",")) if label)


@lru_cache(maxsize=256)
def _redaction(value: str) -> Redaction:
    body = all_headers = False
    names: set[str] = set()
    for part in (part.strip() for part in value.split(",")):
        named = _REDACT_HEADER.fullmatch(part)
        if part.lower() == "body":
            body = True
        elif part.lower() in {"header", "headers"}:
            all_headers = True
        elif named is not None:
            names.add(named.group(1).strip().lower())
        else:
            raise bad_request(f"Upstash-Redact-Fields: unknown field {part[:60]!r}")
    return Redaction(body=body, all_headers=all_headers, headers=frozenset(names))


# Option, then the field of the spec it fills and how its value is read.
READERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "method": ("method", _method),
    "retries": ("max_retries", lambda value: integer("Upstash-Retries", value)),
    "retry-delay": ("retry_delay", _retry_delay),
    "timeout": ("timeout_seconds", _timeout),
    "label": ("labels", _labels),
    "redact-fields": ("redaction", _redaction),
}


@lru_cache(maxsize=1024)
def read_flow_control(key: str | None, value: str | None) -> FlowControl | None:
    """Return the setting of a flow-control key and value header (protocol 3.5), None without both.

    Raises:
        Refusal: 400 for one without the other, an unknown or bad field, or no limit at all.
    """
    if key is None and value is None:
        return None
    if not key or not value:
        raise bad_request("Upstash-Flow-Control-Key and Upstash-Flow-Control-Value must be given together")
    check_utf8("Upstash-Flow-Control-Key", key)
    limits: dict[str, int] = {}
    for part in value.split(","):
        name, _, text = (piece.strip() for piece in part.partition("="))
        if name not in {"parallelism", "rate", "period"} or name in limits:
            raise bad_request(f"Upstash-Flow-Control-Value: unexpected {part.strip()[:60]!r}")
        label = f"Upstash-Flow-Control-Value: {name}"
        number = duration(label, text) if name == "period" else integer(label, text)
        if number < 1:
            raise bad_request(f"{label} must be at least 1")
        limits[name] = number
    if "parallelism" not in limits and "rate" not in limits:
        raise bad_request("Provide at least one of parallelism or rate for flow control")
    period = limits.get("period", DEFAULT_FLOW_PERIOD_SECONDS)
    if period > MAX_FLOW_PERIOD_SECONDS:
        raise bad_request("Upstash-Flow-Control-Value: period must be at most 7d")
    return FlowControl(
        key=key,
        parallelism=limits.get("parallelism"),
        rate=limits.get("rate"),
        period_seconds=period,
    )
