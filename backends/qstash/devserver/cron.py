"""Cron expressions as schedules take them (protocol section 6.2), read like robfig/cron's standard parser.

What robfig accepts is checked here, with its error texts; which minute matches next is cronsim's work. Every
field is handed over as a plain list of numbers or as `*`, so that only one meaning of a step or a star counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from queuebridge.backends.qstash.durations import parse_go_duration

# From a Unix time to the first time after it that an expression matches.
Next = Callable[[float], float]

_MAX_LENGTH: Final = 500
_EVERY: Final = "@every "
_DESCRIPTORS: Final[Mapping[str, str]] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_WEEKDAYS: Final = {
    name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))
}
# Lowest and highest number, and names: minute, hour, day of month, month, weekday.
_FIELDS: Final[tuple[tuple[int, int, Mapping[str, int]], ...]] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 6, _WEEKDAYS),
)
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class CronError(ValueError):
    """Raised for an expression that is none; the text is the hosted service's where that is known."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Invalid cron expression {text}")


@lru_cache(maxsize=512)
def parse_cron(text: str) -> Next:
    """Return the function that finds the next match of an expression.

    It takes five fields or a descriptor (`@hourly`, `@every 90m`), in UTC unless `CRON_TZ=Zone ` or `TZ=Zone `
    comes before them. Where clocks go forward, a fixed time within the hour that is skipped is due right after
    that hour; where they go back, it is due once, at the first of the two equal times. An expression whose
    minute or hour is `*` follows the time that passes: it is due in each of two equal hours, in none that is
    skipped.

    Raises:
        CronError: the text is not such an expression, or no date matches it.
    """
    spec = text.strip()
    if not spec:
        raise CronError("empty spec string")
    if len(spec) > _MAX_LENGTH:
        raise CronError(f"longer than {_MAX_LENGTH} characters")
    zone: tzinfo = timezone.utc
    if spec.startswith(("TZ=", "CRON_TZ=")):
        name, _, spec = spec.partition("=")[2].partition(" ")
        zone = _zone(name)
        spec = spec.strip()
    if spec.startswith(_EVERY):
        return _every(spec)
    if spec.startswith("@"):
        if spec not in _DESCRIPTORS:
            raise CronError(f"unrecognized descriptor: {spec[:60]}")
        spec = _DESCRIPTORS[spec]
    parts = spec.split()
    if len(parts) != len(_FIELDS):
        raise CronError(f"expected exactly 5 fields, found {len(parts)}: [{' '.join(parts)[:200]}]")
    expression = " ".join(_field(part, *bounds) for part, bounds in zip(parts, _FIELDS, strict=True))
    return _matching(expression, zone)


def _zone(name: str) -> tzinfo:
    if name in {"", "UTC"}:
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # also for names that are folders or lead out of the database
        raise CronError(f"provided bad location {name[:60]}: unknown time zone {name[:60]}") from None


def _every(spec: str) -> Next:
    try:
        seconds = int(parse_go_duration(spec[len(_EVERY) :]))
    except (ValueError, OverflowError):
        raise CronError(f"failed to parse duration {spec[:60]}") from None
    if not 60 <= seconds <= 366 * 86_400:
        raise CronError(f"{spec[:60]}: the interval must be between a minute and a year")
    return lambda after: int(after) + seconds


def _matching(expression: str, zone: tzinfo) -> Next:
    def following(after: float) -> float:
        for moment in _from(expression, datetime.fromtimestamp(after, zone)):
            found = moment.timestamp()
            # In an hour that comes twice, cronsim names the first of two equal times.
            if found > after:
                return found
        raise CronError(f"no date matches {expression[:200]}")

    following(0.0)
    return following


def _from(expression: str, moment: datetime) -> Iterator[datetime]:
    try:
        return CronSim(expression, moment)
    except CronSimError:
        raise CronError(f"no date matches {expression[:200]}") from None


def _field(text: str, low: int, high: int, names: Mapping[str, int]) -> str:
    """Return a field as `*` or as a list of numbers."""
    numbers: set[int] = set()
    every = False
    for part in text.split(","):
        # robfig passes over empty parts of a list.
        if part:
            found, star = _part(part, low, high, names)
            numbers |= found
            every = every or star
    if not numbers:
        raise CronError(f"a field names no value: {text[:60]}")
    return "*" if every else ",".join(str(number) for number in sorted(numbers))


def _part(part: str, low: int, high: int, names: Mapping[str, int]) -> tuple[set[int], bool]:
    """Return the numbers of one part of a list, and whether it is a star: a star with a step is none."""
    shown = part[:60]
    span, *steps = part.split("/")
    first, *last = span.split("-")
    if len(last) > 1:
        raise CronError(f"too many hyphens: {shown}")
    if len(steps) > 1:
        raise CronError(f"too many slashes: {shown}")
    star = first in {"*", "?"}
    if star:
        start, end = low, high
    else:
        start = _number(first, names)
        end = _number(last[0], names) if last else high if steps else start
    step = _number(steps[0], {}) if steps else 1
    if start < low:
        raise CronError(f"beginning of range ({start}) below minimum ({low}): {shown}")
    if end > high:
        raise CronError(f"end of range ({end}) above maximum ({high}): {shown}")
    if start > end:
        raise CronError(f"beginning of range ({start}) beyond end of range ({end}): {shown}")
    if step == 0:
        raise CronError(f"step of range should be a positive number: {shown}")
    return set(range(start, end + 1, step)), star and step == 1


def _number(text: str, names: Mapping[str, int]) -> int:
    named = names.get(text.lower())
    if named is not None:
        return named
    if not _NUMBER.fullmatch(text):
        raise CronError(f'failed to parse int from {text[:60]}: strconv.Atoi: parsing "{text[:60]}": invalid syntax')
    return int(text)
