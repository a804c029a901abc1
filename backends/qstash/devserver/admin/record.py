"""What was sent and answered, for tests: the newest deliveries, within bounds."""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from multidict import CIMultiDict

from queuebridge.backends.qstash.devserver.messages import Message, Outcome, Redaction, canonical_header_name
from queuebridge.backends.qstash.devserver.views import redacted, text_or_base64

MAX_DELIVERIES: Final = 1000
MAX_BYTES: Final = 32 * 1024 * 1024

# Roughly what an entry takes besides header values and bodies.
_ENTRY_BYTES: Final = 2048
_CREDENTIAL: Final = re.compile(
    r"auth|cookie|token|secret|password|signature|credential|session|api[-_]?key", re.IGNORECASE
)
_HIDDEN: Final = "REDACTED"
_USERINFO: Final = re.compile(r"(?<=://)[^/?#]*@")


class Delivery(NamedTuple):
    """One attempt; a tuple, since one is made for each. `started` is the server's Unix time when it began.

    `fault` names what was scripted for it, and `size` is what it takes in bytes, roughly.
    """

    seq: int
    started: float
    message: Message
    retried: int
    headers: CIMultiDict[str]
    body: bytes
    outcome: Outcome
    fault: str | None
    size: int

    @property
    def time_ms(self) -> int:
        """The same in milliseconds."""
        return int(self.started * 1000)


class Record:
    """The newest deliveries of all accounts; the oldest are forgotten beyond a number and a size in bytes."""

    def __init__(self, *, max_deliveries: int = MAX_DELIVERIES, max_bytes: int = MAX_BYTES) -> None:
        self._deliveries: deque[Delivery] = deque()
        self._numbers = itertools.count(1)
        self._bytes = 0
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes

    def add(
        self, started: float, message: Message, headers: CIMultiDict[str], outcome: Outcome, fault: str | None
    ) -> None:
        """Remember an attempt that began at `started` (Unix seconds) and has ended."""
        body = message.sent_body
        size = _ENTRY_BYTES + len(body) + len(outcome.body) + sum(map(len, headers.values()))
        deliveries = self._deliveries
        number = next(self._numbers)
        deliveries.append(Delivery(number, started, message, message.retried, headers, body, outcome, fault, size))
        self._bytes += size
        while len(deliveries) > self._max_deliveries or self._bytes > self._max_bytes:
            self._bytes -= deliveries.popleft().size

    def of(self, account: str, *, newest_first: bool) -> Iterator[Delivery]:
        """Yield the deliveries of an account."""
        found: Iterable[Delivery] = reversed(self._deliveries) if newest_first else self._deliveries
        return (delivery for delivery in found if delivery.message.account == account)

    def clear(self, account: str) -> int:
        """Forget the deliveries of an account; return how many there were."""
        kept = deque(delivery for delivery in self._deliveries if delivery.message.account != account)
        cleared = len(self._deliveries) - len(kept)
        self._deliveries = kept
        self._bytes = sum(delivery.size for delivery in kept)
        return cleared


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    """Return the JSON form: no credentials, and nothing that the message's publisher had redacted."""
    message, outcome = delivery.message, delivery.outcome
    redaction = message.spec.redaction
    data: dict[str, Any] = {
        "id": str(delivery.seq),
        "time": delivery.time_ms,
        "messageId": message.id,
        "retried": delivery.retried,
        "method": message.spec.method,
        "url": _shown_url(message.spec.url),
        "header": _headers(delivery.headers.items(), redaction),
        **_body(delivery.body, redaction),
    }
    if message.spec.labels:
        data["labels"] = list(message.spec.labels)
    if delivery.fault is not None:
        data["fault"] = delivery.fault
    if outcome.error is not None:
        data["error"] = outcome.error
    else:
        data["response"] = {
            "status": outcome.status,
            "header": _headers(outcome.headers, redaction),
            # An answer often repeats what was sent.
            **_body(outcome.body, redaction),
        }
    return data


def _shown_url(url: str) -> str:
    address, mark, query = _USERINFO.sub(f"{_HIDDEN}@", url).partition("?")
    parameters = [part.partition("=") for part in query.split("&")]
    return address + mark + "&".join(
        name + sign + (_HIDDEN if sign and _CREDENTIAL.search(name) else value) for name, sign, value in parameters
    )


def _headers(headers: Iterable[tuple[str, str]], redaction: Redaction | None) -> dict[str, list[str]]:
    shown: dict[str, list[str]] = {}
    for name, value in headers:
        shown.setdefault(canonical_header_name(name), []).append(_shown(name, value, redaction))
    return shown


def _shown(name: str, value: str, redaction: Redaction | None) -> str:
    if _CREDENTIAL.search(name):
        return _HIDDEN  # not even its hash: a short secret could be guessed by it
    if redaction is not None and (redaction.all_headers or name.lower() in redaction.headers):
        return redacted(value.encode("utf-8", "surrogateescape"))
    return value


def _body(body: bytes, redaction: Redaction | None) -> dict[str, str]:
    if redaction is not None and redaction.body and body:
        return {"body": redacted(body)}
    return text_or_base64("body", _without_headers_inside(body, redaction))


def _without_headers_inside(body: bytes, redaction: Redaction | None) -> bytes:
    """Return a body; that of a callback repeats headers of the message and of its answer, shown like those here."""
    if b'"sourceMessageId"' not in body:
        return body
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(data, dict):
        return body
    for part in ("header", "sourceHeader"):
        if isinstance(data.get(part), dict):
            data[part] = {
                name: [_shown(name, str(value), redaction) for value in values]
                for name, values in data[part].items()
                if isinstance(values, list)
            }
    if isinstance(data.get("url"), str):
        data["url"] = _shown_url(data["url"])
    return json.dumps(data, separators=(",", ":")).encode()
