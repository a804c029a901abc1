"""`/v2/events` and `/v2/logs`: what happened to messages (protocol section 9)."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from aiohttp import web

from queuebridge.backends.qstash.devserver.errors import bad_request
from queuebridge.backends.qstash.devserver.filters import LOG_FILTERS, PAGING, Query
from queuebridge.backends.qstash.devserver.messages import LogEntry, LogState
from queuebridge.backends.qstash.devserver.request import ApiRequest, respond
from queuebridge.backends.qstash.devserver.views import log_view
from queuebridge.backends.qstash.protocol import DEFAULT_LOG_PAGE, MAX_LOG_PAGE

_IN_PROGRESS: Final = frozenset({LogState.ACTIVE, LogState.RETRY, LogState.ERROR})
_STATE_FILTERS: Final[dict[str, frozenset[LogState]]] = {
    **{state.value: frozenset({state}) for state in LogState},
    "CANCELLED": frozenset({LogState.CANCELED}),
    "IN_PROGRESS": _IN_PROGRESS,
}
_FILTERS: Final = LOG_FILTERS | PAGING | {"state"}


class Logs:
    """Answers for the log, under one of its two names, which is also the key in its answers."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        if request.method != "GET" or request.rest:
            raise request.no_route()
        wanted = Query(request.query, _FILTERS)
        count = wanted.integer("count", DEFAULT_LOG_PAGE, low=1, high=MAX_LOG_PAGE)
        states = _states(wanted)
        first, last = wanted.period()
        earliest_first = wanted.order_is_earliest_first(default=False)
        cursor = wanted.integer("cursor", -1)

        def passes(entry: LogEntry) -> bool:
            return (
                (cursor < 0 or (entry.seq > cursor if earliest_first else entry.seq < cursor))
                and (states is None or entry.state in states)
                and first <= entry.time_ms <= last
                and wanted.matches(entry.message)
            )

        history = request.account.history
        entries = history.oldest_first() if earliest_first else history.newest_first()
        found = list(islice((entry for entry in entries if passes(entry)), count + 1))
        two_ls = self._name == "logs"
        data: dict[str, Any] = {self._name: [log_view(entry, two_ls=two_ls) for entry in found[:count]]}
        if len(found) > count:
            data["cursor"] = str(found[count - 1].seq)
        return respond(data)


def _states(wanted: Query) -> frozenset[LogState] | None:
    if "state" not in wanted:
        return None
    states: frozenset[LogState] = frozenset()
    for name in wanted.ids("state"):
        if name not in _STATE_FILTERS:
            raise bad_request(f"unknown state {name[:40]!r}; known: {', '.join(sorted(_STATE_FILTERS))}")
        states |= _STATE_FILTERS[name]
    return states
