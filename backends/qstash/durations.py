"""Durations as QStash writes them, in requests (`1d10h30m`) and in responses (`Retry-After`).

Pure functions, standard library only. The two syntaxes differ and are kept apart.
"""

from __future__ import annotations

import re
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Final

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_REQUEST: Final = re.compile(r"(?:[0-9]{1,12}[smhd])+")
_REQUEST_PART: Final = re.compile(r"([0-9]+)([smhd])")

_GO_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # micro sign
    "\u03bcs": 1e-6,  # Greek mu, which Go accepts as well
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_GO_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_NUMBER: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]*)?")


def parse_duration(text: str) -> int:
    """Return the whole seconds of a request-side duration such as `90s`, `1h30m3s` or `1d10h30m`.

    A bare integer counts as seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    if _REQUEST.fullmatch(text) is None:
        raise ValueError(f"not a duration: {text[:40]!r}; write for example 30s, 10m, 2h or 1d12h")
    return sum(int(number) * _UNITS[unit] for number, unit in _REQUEST_PART.findall(text))


def format_duration(seconds: int) -> str:
    """Return whole seconds in the request-side form: 5403 becomes `1h30m3s`, 0 becomes `0s`.

    Raises:
        ValueError: `seconds` is negative.
    """
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative: {seconds}")
    parts: list[str] = []
    for unit, size in _UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_go_duration(text: str) -> float:
    """Return the seconds of a Go-style duration such as `6m5s`, `250ms` or `1.5h`.

    Raises:
        ValueError: the text is not such a duration, or it is negative.
    """
    total = 0.0
    position = 0
    while position < len(text):
        match = _GO_PART.match(text, position)
        if match is None:
            break
        total += float(match.group(1)) * _GO_UNITS[match.group(2)]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError(f"not a Go duration: {text[:40]!r}")
    return total


def parse_retry_after(value: str, *, now: float) -> float | None:
    """Return the seconds to wait that a `Retry-After`-like response header asks for.

    Accepts a number of seconds, an HTTP date (compared with `now`, Unix seconds; a past date is 0)
    and a Go-style duration. Returns None for anything else: a bad header must not stop the retries.
    """
    value = value.strip()
    if _NUMBER.fullmatch(value):
        return float(value)
    try:
        return parse_go_duration(value)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - now)
