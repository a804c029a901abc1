"""The paths below `/_queuebridge/`. They are ours: the hosted service has none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Final

from aiohttp import web

from queuebridge.backends.qstash.devserver.admin.attempts import Attempts
from queuebridge.backends.qstash.devserver.admin.record import Delivery, delivery_view
from queuebridge.backends.qstash.devserver.admin.travel import Traveller
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import bad_request
from queuebridge.backends.qstash.devserver.filters import LOG_FILTERS, PAGING, Query
from queuebridge.backends.qstash.devserver.request import ApiRequest, read_json, respond
from queuebridge.backends.qstash.durations import parse_duration

PREFIX: Final = "/_queuebridge/"
_FILTERS: Final = LOG_FILTERS | PAGING
_NO_FILTERS: Final[frozenset[str]] = frozenset()
_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_DEFAULT_TIMEOUT: Final = 60.0
_MAX_TIMEOUT: Final = 600.0
_TIME_FORM: Final = (
    'one of {"stop": true}, {"resume": true}, {"cancel": true}, {"advance": "1h30m"} and {"move_to": <Unix seconds>}'
)


class Admin:
    """Answers for everything below the prefix."""

    def __init__(self, engine: Engine, attempts: Attempts, traveller: Traveller) -> None:
        self._engine = engine
        self._attempts = attempts
        self._traveller = traveller
        self._answers: dict[tuple[str, str], Callable[[ApiRequest], Awaitable[web.Response]]] = {
            ("GET", "time"): self._show_time,
            ("POST", "time"): self._set_time,
            ("POST", "idle"): self._wait_until_idle,
            ("GET", "faults"): self._list_faults,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("GET", "deliveries"): self._list_deliveries,
            ("DELETE", "deliveries"): self._clear_deliveries,
        }

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request; its `rest` is what follows the prefix."""
        answer = self._answers.get((request.method, request.rest))
        if answer is None:
            raise request.no_route()
        if answer != self._list_deliveries:
            Query(request.query, _NO_FILTERS)
        return await answer(request)

    async def _show_time(self, _request: ApiRequest) -> web.Response:
        return respond(self._time())

    def _time(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "time": self._engine.clock(),
            "stopped": self._engine.clock.stopped,
            "travelling": self._traveller.travelling,
        }
        due = self._engine.next_due()
        if due is not None:
            data["nextDue"] = due
        return data

    async def _set_time(self, request: ApiRequest) -> web.Response:
        data = await read_json(request)
        if not isinstance(data, dict):
            raise bad_request(f"the body must be a JSON object: {_TIME_FORM}")
        words = dict(data)
        timeout = _timeout(words)
        if len(words) != 1:
            raise bad_request(f"the body must say exactly one thing: {_TIME_FORM}; and perhaps timeout, in seconds")
        ((word, value),) = words.items()
        if word in ("stop", "resume", "cancel"):
            if value is not True:
                raise bad_request(f"{word} can only be true")
            if word == "cancel":
                return respond({"cancelled": self._traveller.cancel(), **self._time()})
            (self._traveller.stop if word == "stop" else self._traveller.resume)()
            return respond(self._time())
        if word == "advance":
            target = self._engine.clock() + _duration(value)
        elif word == "move_to":
            target = _number("move_to", value)
        else:
            raise bad_request(f"unknown word {word[:40]!r}: say {_TIME_FORM}")
        steps = await self._traveller.travel(target, timeout_seconds=timeout)
        return respond({**self._time(), "steps": steps})

    async def _wait_until_idle(self, request: ApiRequest) -> web.Response:
        data = await read_json(request, {})
        if not isinstance(data, dict) or set(data) - {"timeout"}:
            raise bad_request('the body must be empty or {"timeout": <seconds>}')
        await self._traveller.wait_until_idle(timeout_seconds=_timeout(data))
        return respond(self._time())

    async def _list_faults(self, request: ApiRequest) -> web.Response:
        scripts = self._attempts.faults.of(request.account.user.name)
        return respond({"faults": [script.view() for script in scripts]})

    async def _add_fault(self, request: ApiRequest) -> web.Response:
        script = self._attempts.faults.add(request.account.user.name, await read_json(request))
        return respond(script.view(), 201)

    async def _clear_faults(self, request: ApiRequest) -> web.Response:
        return respond({"deleted": self._attempts.faults.clear(request.account.user.name)})

    async def _list_deliveries(self, request: ApiRequest) -> web.Response:
        wanted = Query(request.query, _FILTERS)
        count = wanted.integer("count", _DEFAULT_PAGE, low=1, high=_MAX_PAGE)
        earliest_first = wanted.order_is_earliest_first(default=True)
        first, last = wanted.period()
        cursor = wanted.integer("cursor", -1)

        def passes(delivery: Delivery) -> bool:
            return (
                (cursor < 0 or (delivery.seq > cursor if earliest_first else delivery.seq < cursor))
                and first <= delivery.time_ms <= last
                and wanted.matches(delivery.message)
            )

        recorded = self._attempts.record.of(request.account.user.name, newest_first=not earliest_first)
        found = list(islice(filter(passes, recorded), count + 1))
        data: dict[str, Any] = {"deliveries": [delivery_view(delivery) for delivery in found[:count]]}
        if len(found) > count:
            data["cursor"] = str(found[count - 1].seq)
        return respond(data)

    async def _clear_deliveries(self, request: ApiRequest) -> web.Response:
        return respond({"deleted": self._attempts.record.clear(request.account.user.name)})


def _timeout(data: dict[str, Any]) -> float:
    value = data.pop("timeout", _DEFAULT_TIMEOUT)
    if type(value) not in (int, float) or not 0 < value <= _MAX_TIMEOUT:
        raise bad_request(f"timeout must be a number of seconds above 0, at most {_MAX_TIMEOUT:g}")
    return float(value)


def _duration(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(parse_duration(value))
        except ValueError as error:
            raise bad_request(f"advance: {error}") from None
    return _number("advance", value)


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e15:
        raise bad_request(f"{name} must be a number of seconds, not negative")
    return float(value)
