"""Filters of listings and bulk operations in the query string (protocol section 2.4).

An unknown parameter is refused: ignoring a misspelt one would turn a filtered bulk delete into
"delete everything".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from queuebridge.backends.qstash.devserver.errors import bad_request
from queuebridge.backends.qstash.devserver.messages import Message
from queuebridge.backends.qstash.protocol import TOKEN_PARAMETER

Read = Callable[[Message], Iterable[str]]

_FIELDS: Final[dict[str, Read]] = {
    "messageId": lambda message: (message.id,),
    "messageIds": lambda message: (message.id,),
    "url": lambda message: (message.spec.url,),
    "host": lambda message: (urlsplit(message.spec.url).netloc.rpartition("@")[2],),
    "path": lambda message: (urlsplit(message.spec.url).path,),
    "label": lambda message: message.spec.labels,
    "queueName": lambda message: () if message.spec.queue is None else (message.spec.queue,),
    "flowControlKey": lambda message: () if message.spec.flow is None else (message.spec.flow.key,),
    "callerIp": lambda message: (message.spec.caller_ip,),
    "callerIP": lambda message: (message.spec.caller_ip,),
    "topicName": lambda message: () if message.spec.topic is None else (message.spec.topic,),
    "scheduleId": lambda message: () if message.spec.schedule_id is None else (message.spec.schedule_id,),
}
MESSAGE_FILTERS: Final = frozenset(_FIELDS) - {"messageId"}
LOG_FILTERS: Final = frozenset(_FIELDS)
PAGING: Final = frozenset({"fromDate", "toDate", "count", "cursor", "order"})
DLQ_FILTERS: Final = frozenset(_FIELDS) - {"messageIds", "host", "path"}


def dlq_position(text: str) -> tuple[int, int]:
    """Return where a dead letter stands among the others, by its id or by a cursor, which has the same form.

    Raises:
        Refusal: 400 for anything else.
    """
    milliseconds, _, sequence = text.partition("-")
    if not (milliseconds.isdecimal() and sequence.isdecimal() and text.isascii() and len(text) < 40):
        raise bad_request(f"invalid cursor {text[:40]!r}")
    return int(milliseconds), int(sequence)


class Query:
    """The parameters of one request, each a set of accepted values.

    Raises (on construction):
        Refusal: 400 for a parameter outside `allowed`.
    """

    def __init__(self, query: str, allowed: frozenset[str]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name.lower() == TOKEN_PARAMETER:
                continue
            if name not in allowed:
                known = f"known: {', '.join(sorted(allowed))}" if allowed else "this request takes none"
                raise bad_request(f"unknown filter {name[:60]!r}; {known}")
            self._values.setdefault(name, []).append(value)
        self._tests = [(_FIELDS[name], self.values(name)) for name in self._values if name in _FIELDS]

    def __contains__(self, name: str) -> bool:
        """Say whether a parameter was given."""
        return name in self._values

    def __bool__(self) -> bool:
        """Say whether any parameter was given."""
        return bool(self._values)

    def values(self, name: str) -> frozenset[str]:
        """Return a filter's values: repeated or comma-separated; the whole text counts as one, too.

        URLs may contain commas.
        """
        given = self._values.get(name, [])
        parts = (part.strip() for text in given for part in text.split(","))
        return frozenset(given) | frozenset(parts) - {""}

    def ids(self, name: str) -> list[str]:
        """Return a list of ids in the order given, without repetitions and empty ones."""
        parts = (part.strip() for text in self._values.get(name, []) for part in text.split(","))
        return list(dict.fromkeys(part for part in parts if part))

    def text(self, name: str) -> str | None:
        """Return a single value, or None."""
        values = self._values.get(name)
        return values[-1] if values else None

    def integer(self, name: str, default: int, *, low: int = 0, high: int | None = None) -> int:
        """Return a whole number.

        Raises:
            Refusal: 400 for anything else, or one outside the bounds.
        """
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or len(text) > 15:
            raise bad_request(f"{name} must be a whole number, not {text[:40]!r}")
        number = int(text)
        if number < low or (high is not None and number > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise bad_request(f"{name} must be {bounds}, not {number}")
        return number

    def order_is_earliest_first(self, *, default: bool) -> bool:
        """Return the direction of a listing.

        Raises:
            Refusal: 400 for an unknown `order`.
        """
        order = self.text("order")
        if order is None:
            return default
        if order not in {"earliestFirst", "latestFirst"}:
            raise bad_request(f"order must be earliestFirst or latestFirst, not {order[:40]!r}")
        return order == "earliestFirst"

    def period(self) -> tuple[int, int]:
        """Return the inclusive bounds `fromDate` and `toDate` in Unix milliseconds."""
        return self.integer("fromDate", 0), self.integer("toDate", 10**15)

    def matches(self, message: Message) -> bool:
        """Say whether a message passes: the values of one filter are alternatives, filters add up."""
        return all(any(value in wanted for value in read(message)) for read, wanted in self._tests)
