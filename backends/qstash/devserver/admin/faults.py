"""Scripted faults: what is to go wrong with the next deliveries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.messages import Message, Outcome

FAULTS: Final = ("drop", "lose_answer", "delay", "duplicate", "error")
_FILTERS: Final = ("url", "host", "path", "label")
# What a script of each kind says besides `count` and filters.
_OWN: Final[Mapping[str, tuple[str, ...]]] = {"delay": ("seconds",), "error": ("status", "headers", "body")}
_MAX_SCRIPTS: Final = 100
_MAX_COUNT: Final = 1_000_000
_MAX_SECONDS: Final = 7200
_MAX_BODY_BYTES: Final = 1024 * 1024
_MAX_TEXT: Final = 16 * 1024


@dataclass(slots=True, eq=False, kw_only=True)
class Script:
    """One fault for the next `remaining` deliveries that match.

    Attributes:
        id: For listings.
        account: Whose deliveries.
        fault: One of FAULTS.
        said: The JSON object it came from, for listings.
        wanted: Which deliveries.
        remaining: For how many more.
        seconds: Of `delay`.
        outcome: Of `error`: what the delivery gets for an answer.
    """

    id: int
    account: str
    fault: str
    said: dict[str, Any]
    wanted: Query
    remaining: int
    seconds: float = 0.0
    outcome: Outcome | None = None

    def view(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"id": str(self.id), **self.said, "remaining": self.remaining}


class Faults:
    """The scripts of all accounts, in the order in which they were added; the first that matches is used."""

    def __init__(self) -> None:
        self._scripts: list[Script] = []
        self._ids = itertools.count(1)

    def __bool__(self) -> bool:
        """Say whether anything is to go wrong."""
        return bool(self._scripts)

    def add(self, account: str, data: Any) -> Script:
        """Add the script that a JSON object says.

        Raises:
            Refusal: 400 for anything but a script, 412 if there are too many.
        """
        script = _read(data, next(self._ids), account)
        if len(self.of(account)) >= _MAX_SCRIPTS:
            raise Refusal(412, f"there are {_MAX_SCRIPTS} scripts already; DELETE /_queuebridge/faults clears them")
        self._scripts.append(script)
        return script

    def take(self, message: Message) -> Script | None:
        """Return what goes wrong with a delivery that is about to be sent, and count it; None for nothing."""
        for script in self._scripts:
            if script.account == message.account and script.wanted.matches(message):
                script.remaining -= 1
                if not script.remaining:
                    self._scripts.remove(script)
                return script
        return None

    def of(self, account: str) -> list[Script]:
        """Return the scripts of an account that have deliveries left."""
        return [script for script in self._scripts if script.account == account]

    def clear(self, account: str) -> int:
        """Forget the scripts of an account; return how many there were."""
        kept = [script for script in self._scripts if script.account != account]
        cleared = len(self._scripts) - len(kept)
        self._scripts = kept
        return cleared


def _read(data: Any, number: int, account: str) -> Script:
    if not isinstance(data, dict):
        raise bad_request(f'the body must be a JSON object such as {{"fault": "drop"}}; faults: {", ".join(FAULTS)}')
    fault = data.get("fault")
    if fault not in FAULTS:
        raise bad_request(f"fault must be one of {', '.join(FAULTS)}, not {str(fault)[:40]!r}")
    allowed = ("fault", "count", *_FILTERS, *_OWN.get(fault, ()))
    for name in data:
        if name not in allowed:
            raise bad_request(f"unknown field {name[:40]!r} of the fault {fault!r}; known: {', '.join(allowed)}")
    _check_texts(data)
    count = _integer(data, "count", 1, 1, _MAX_COUNT)
    filters = {name: data[name] for name in _FILTERS if name in data}
    for name, value in filters.items():
        if not isinstance(value, str) or not value:
            raise bad_request(f"{name} must be a string that is not empty")
    script = Script(
        id=number,
        account=account,
        fault=fault,
        said={**data, "count": count},
        wanted=Query(urlencode(filters), frozenset(_FILTERS)),
        remaining=count,
    )
    if fault == "delay":
        script.seconds = _seconds(data)
    if fault == "error":
        script.outcome = _outcome(data)
    return script


def _check_texts(data: dict[str, Any]) -> None:
    texts = [text for name, text in data.items() if name != "body" and isinstance(text, str)]
    headers = data.get("headers")
    if isinstance(headers, dict):
        texts += [text for text in (*headers, *headers.values()) if isinstance(text, str)]
    if sum(map(len, texts)) > _MAX_TEXT:
        raise bad_request(f"headers and filters are too long: more than {_MAX_TEXT} characters")
    for text in (*texts, data.get("body")):
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise bad_request("a string has half of a surrogate pair") from None


def _integer(data: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = data.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise bad_request(f"{name} must be a whole number between {low} and {high}")
    return value


def _seconds(data: dict[str, Any]) -> float:
    value: Any = data.get("seconds")
    if type(value) not in (int, float) or not 0 < value <= _MAX_SECONDS:
        raise bad_request(f"seconds must be a number above 0, at most {_MAX_SECONDS}")
    return float(value)


def _outcome(data: dict[str, Any]) -> Outcome:
    if data.get("status") in range(200, 300):
        raise bad_request("status must not be 2xx: that is a delivery, and the receiver would not have seen it")
    status = _integer(data, "status", 500, 300, 599)
    headers = data.get("headers", {})
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise bad_request('headers must be an object of strings, such as {"Retry-After": "5"}')
    body = data.get("body", "")
    if not isinstance(body, str) or len(body.encode()) > _MAX_BODY_BYTES:
        raise bad_request(f"body must be a string of at most {_MAX_BODY_BYTES} bytes")
    return Outcome(status=status, headers=tuple(headers.items()), body=body.encode())
