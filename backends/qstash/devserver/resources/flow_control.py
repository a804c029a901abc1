"""`/v2/flowControl` and `/v2/globalParallelism` (protocol section 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.flow_control import FlowControlCommands
from queuebridge.backends.qstash.devserver.limits import FlowKey
from queuebridge.backends.qstash.devserver.option_values import check_utf8, is_true
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.views import flow_view
from queuebridge.backends.qstash.protocol import MAX_FLOW_PERIOD_SECONDS

_NOTHING: Final[frozenset[str]] = frozenset()
_MAX_LIMIT: Final = 10**12

Command = Callable[[Account, str, str], FlowKey]


class FlowControls:
    """Answers for flow-control keys, which may contain anything, slashes included."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake
        self._keys = FlowControlCommands(services.engine)
        self._commands: Mapping[str, Command] = {
            "pause": self._pause,
            "resume": self._resume,
            "pin": self._pin,
            "unpin": self._unpin,
            "resetRate": self._reset_rate,
            "reset": self._reset_rate,
        }

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        account, rest = request.account, request.rest
        if request.method == "GET":
            return self._read(account, _key(rest), request.query) if rest else self._list(account, request.query)
        name, _, verb = rest.rpartition("/")
        command = self._commands.get(verb)
        if request.method != "POST" or command is None:
            raise request.no_route()
        flow = command(account, _key(name), request.query)
        await self._engine.store.commit()
        self._wake()
        return respond(flow_view(flow, self._engine.clock()))

    def _list(self, account: Account, query: str) -> web.Response:
        wanted = Query(query, frozenset({"search"})).text("search") or ""
        now = self._engine.clock()
        found = [account.flows[name] for name in sorted(account.flows) if wanted in name]
        return respond([flow_view(flow, now) for flow in found])

    def _read(self, account: Account, name: str, query: str) -> web.Response:
        Query(query, _NOTHING)
        return respond(flow_view(_known(account, name), self._engine.clock()))

    def _pause(self, account: Account, name: str, query: str) -> FlowKey:
        Query(query, _NOTHING)
        flow = self._keys.key(account, name)
        self._keys.set_paused(account, flow, paused=True)
        return flow

    def _resume(self, account: Account, name: str, query: str) -> FlowKey:
        Query(query, _NOTHING)
        flow = _known(account, name)
        self._keys.set_paused(account, flow, paused=False)
        return flow

    def _pin(self, account: Account, name: str, query: str) -> FlowKey:
        wanted = Query(query, frozenset({"parallelism", "rate", "period"}))
        if "period" in wanted and "rate" not in wanted:
            raise bad_request("period needs rate: it is what the rate counts in")
        if "parallelism" not in wanted and "rate" not in wanted:
            raise bad_request("pin needs parallelism or rate")
        limits = {"parallelism": _MAX_LIMIT, "rate": _MAX_LIMIT, "period": MAX_FLOW_PERIOD_SECONDS}
        values = {
            limit: wanted.integer(limit, 1, low=1, high=high) if limit in wanted else None
            for limit, high in limits.items()
        }
        flow = self._keys.key(account, name)
        self._keys.pin(account, flow, **values)
        return flow

    def _unpin(self, account: Account, name: str, query: str) -> FlowKey:
        wanted = Query(query, frozenset({"parallelism", "rate"}))
        fields = {limit: is_true(wanted.text(limit) or "false", limit) for limit in ("parallelism", "rate")}
        flow = _known(account, name)
        self._keys.unpin(account, flow, **fields)
        return flow

    def _reset_rate(self, account: Account, name: str, query: str) -> FlowKey:
        Query(query, _NOTHING)
        flow = _known(account, name)
        self._keys.reset_rate(account, flow)
        return flow


async def global_parallelism(request: ApiRequest) -> web.Response:
    """Answer how many requests of the account are in flight, and how many may be."""
    if request.method != "GET" or request.rest:
        raise request.no_route()
    Query(request.query, _NOTHING)
    account = request.account
    return respond({"parallelismMax": account.max_parallelism, "parallelismCount": account.active})


def _key(text: str) -> str:
    name = unquote(text)
    if not name:
        raise bad_request("the flow-control key is empty")
    check_utf8("the flow-control key", name)
    return name


def _known(account: Account, name: str) -> FlowKey:
    flow = account.flows.get(name)
    if flow is None:
        raise not_found(f"flow control key {name[:80]} not found")
    return flow
