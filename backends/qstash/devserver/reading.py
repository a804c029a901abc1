"""Reading and removing: messages, dead letters, logs, queues, keys (protocol sections 4, 5, 8, 9, 10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import check_name
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found
from queuebridge.backends.qstash.devserver.filters import DLQ_FILTERS, LOG_FILTERS, MESSAGE_FILTERS, Query
from queuebridge.backends.qstash.devserver.messages import DeadLetter, LogEntry, LogState
from queuebridge.backends.qstash.devserver.views import (
    dead_letter_view,
    log_view,
    message_view,
    queue_view,
)
from queuebridge.backends.qstash.protocol import (
    DEFAULT_LOG_PAGE,
    MAX_CANCEL_COUNT,
    MAX_DLQ_PAGE,
    MAX_LOG_PAGE,
)

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_BULK_BODY_LIMIT: Final = 10 * 1024 * 1024

_IN_PROGRESS: Final = frozenset({LogState.ACTIVE, LogState.RETRY, LogState.ERROR})
_STATE_FILTERS: Final[dict[str, frozenset[LogState]]] = {
    **{state.value: frozenset({state}) for state in LogState},
    "CANCELLED": frozenset({LogState.CANCELED}),
    "IN_PROGRESS": _IN_PROGRESS,
}


def respond(data: Any, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=_encode(data).encode("ascii"), status=status, content_type="application/json")


class Reader:
    """Answers everything but publishing."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake

    def message(self, account: Account, message_id: str) -> web.Response:
        """Answer `GET /v2/messages/{id}`."""
        message = account.messages.get(message_id)
        if message is None:
            raise not_found(f"message {message_id[:80]} not found")
        return respond(message_view(message))

    async def cancel(self, account: Account, message_id: str) -> web.Response:
        """Answer `DELETE /v2/messages/{id}`.

        A finished message is "not found", although it can still be read: the Python SDK ignores the
        count in the answer, and only an error tells its caller that nothing was cancelled.
        """
        message = account.messages.get(message_id)
        if message is None or message.finished:
            raise not_found(f"message {message_id[:80]} not found")
        cancelled = self._engine.cancel(account, message)
        await self._engine.store.commit()
        self._wake()
        return respond({"cancelled": int(cancelled)})

    async def cancel_many(self, request: web.BaseRequest, account: Account, query: str) -> web.Response:
        """Answer `DELETE /v2/messages`: by ids in the query or the body, by filters, or all."""
        wanted = Query(query, MESSAGE_FILTERS | {"fromDate", "toDate", "count"})
        count = wanted.integer("count", 0, low=1, high=MAX_CANCEL_COUNT)
        ids = await _ids(request, wanted, "messageIds")
        if ids is not None:
            chosen = [account.messages[name] for name in ids if name in account.messages]
        else:
            first, last = wanted.period()
            chosen = [
                message
                for message in account.messages.values()
                if not message.finished and first <= message.created_ms <= last and wanted.matches(message)
            ]
        cancelled = 0
        for message in chosen:
            if count and cancelled >= count:
                break
            cancelled += self._engine.cancel(account, message)
        await self._engine.store.commit()
        self._wake()
        return respond({"cancelled": cancelled})

    def dead_letters(self, account: Account, query: str) -> web.Response:
        """Answer `GET /v2/dlq`."""
        letters, cursor = matching_dead_letters(account, Query(query, _DLQ_LIST), default_count=MAX_DLQ_PAGE)
        data: dict[str, Any] = {"messages": [dead_letter_view(letter) for letter in letters]}
        if cursor is not None:
            data["cursor"] = cursor
        return respond(data)

    def dead_letter(self, account: Account, dlq_id: str) -> web.Response:
        """Answer `GET /v2/dlq/{id}`."""
        return respond(dead_letter_view(_dead_letter(account, dlq_id)))

    async def delete_dead_letter(self, account: Account, dlq_id: str) -> web.Response:
        """Answer `DELETE /v2/dlq/{id}`."""
        self._engine.remove_dead_letter(account, _dead_letter(account, dlq_id))
        await self._engine.store.commit()
        return respond({"deleted": 1})

    async def delete_dead_letters(
        self, request: web.BaseRequest, account: Account, query: str
    ) -> web.Response:
        """Answer `DELETE /v2/dlq`: by ids in the query or the body, else a page of what the filters match."""
        wanted = Query(query, _DLQ_LIST)
        ids = await _ids(request, wanted, "dlqIds")
        cursor: str | None = None
        if ids is not None:
            chosen = [account.dead_letters[name] for name in ids if name in account.dead_letters]
        else:
            chosen, cursor = matching_dead_letters(account, wanted, default_count=MAX_DLQ_PAGE)
        for letter in chosen:
            self._engine.remove_dead_letter(account, letter)
        await self._engine.store.commit()
        data: dict[str, Any] = {"deleted": len(chosen)}
        if cursor is not None:
            data["cursor"] = cursor
        return respond(data)

    def logs(self, account: Account, query: str, *, key: str) -> web.Response:
        """Answer `GET /v2/events` (`key` is `events`) and `GET /v2/logs` (`logs`)."""
        wanted = Query(query, _LOG_LIST)
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

        history = account.history
        entries = history.oldest_first() if earliest_first else history.newest_first()
        found = list(islice((entry for entry in entries if passes(entry)), count + 1))
        data: dict[str, Any] = {key: [log_view(entry, two_ls=key == "logs") for entry in found[:count]]}
        if len(found) > count:
            data["cursor"] = str(found[count - 1].seq)
        return respond(data)

    def queues(self, account: Account) -> web.Response:
        """Answer `GET /v2/queues`."""
        return respond([queue_view(queue) for queue in account.queues.values()])

    def queue(self, account: Account, name: str) -> web.Response:
        """Answer `GET /v2/queues/{name}`."""
        queue = account.queues.get(check_name("queue name", name))
        if queue is None:
            raise not_found(f"queue {name} not found")
        return respond(queue_view(queue))

    def keys(self, account: Account) -> web.Response:
        """Answer `GET /v2/keys`."""
        user = account.user
        return respond({"current": user.current_signing_key, "next": user.next_signing_key})


_PAGING: Final = frozenset({"fromDate", "toDate", "count", "cursor", "order"})
_DLQ_LIST: Final = DLQ_FILTERS | _PAGING | {"dlqIds", "responseStatus"}
_LOG_LIST: Final = LOG_FILTERS | _PAGING | {"state"}


def matching_dead_letters(
    account: Account, wanted: Query, *, default_count: int
) -> tuple[list[DeadLetter], str | None]:
    """Return a page of dead letters, oldest first unless asked otherwise, and the next page's cursor.

    With `dlqIds` the other filters are ignored, and ids that are not there are passed over.
    """
    if "dlqIds" in wanted:
        ids = wanted.ids("dlqIds")
        return [account.dead_letters[name] for name in ids if name in account.dead_letters], None
    count = wanted.integer("count", default_count, low=1, high=MAX_DLQ_PAGE)
    first, last = wanted.period()
    statuses = wanted.values("responseStatus") if "responseStatus" in wanted else None
    earliest_first = wanted.order_is_earliest_first(default=True)
    after = _dlq_position(wanted.text("cursor"))
    letters = account.dead_letters.values()
    found: list[DeadLetter] = []
    for letter in letters if earliest_first else reversed(letters):
        if after is not None:
            position = _dlq_position(letter.dlq_id)
            if position is None or (position <= after if earliest_first else position >= after):
                continue
        if (
            first <= letter.entered_ms <= last
            and (statuses is None or str(letter.outcome.status) in statuses)
            and wanted.matches(letter.message)
        ):
            found.append(letter)
            if len(found) > count:
                return found[:count], found[count - 1].dlq_id
    return found, None


def _dlq_position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    milliseconds, _, sequence = text.partition("-")
    if not (milliseconds.isdecimal() and sequence.isdecimal() and text.isascii() and len(text) < 40):
        raise bad_request(f"invalid cursor {text[:40]!r}")
    return int(milliseconds), int(sequence)


def _dead_letter(account: Account, dlq_id: str) -> DeadLetter:
    letter = account.dead_letters.get(dlq_id)
    if letter is None:
        raise not_found(f"dlq message {dlq_id[:80]} not found")
    return letter


def _states(wanted: Query) -> frozenset[LogState] | None:
    if "state" not in wanted:
        return None
    states: frozenset[LogState] = frozenset()
    for name in wanted.ids("state"):
        if name not in _STATE_FILTERS:
            raise bad_request(f"unknown state {name[:40]!r}; known: {', '.join(sorted(_STATE_FILTERS))}")
        states |= _STATE_FILTERS[name]
    return states


async def _ids(request: web.BaseRequest, wanted: Query, name: str) -> list[str] | None:
    """Return the ids a bulk request names, or None when it names none: an empty list is a list.

    Raises:
        Refusal: 400 for a body that is not an object with that list, which must never mean "all".
    """
    if name in wanted:
        return wanted.ids(name)
    if (request.content_length or 0) > _BULK_BODY_LIMIT:
        raise bad_request("the body is too large")
    body = await request.read()
    if not body.strip():
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not valid JSON") from None
    if data is None or data == {}:
        return None
    ids = data.get(name) if isinstance(data, dict) and set(data) == {name} else None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise bad_request(f'the body must be {{"{name}": [...]}}, a list of strings')
    return ids


def query_token(query: str, parameter: str) -> str | None:
    """Return the token of a query string, or None."""
    for name, value in parse_qsl(query):
        if name.lower() == parameter:
            return value
    return None
