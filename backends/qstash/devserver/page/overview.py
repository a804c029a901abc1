"""What the page shows beyond the public API: messages by state, a search, attempts with their answers.

Every answer looks at a bounded number of messages and shows a bounded part of a body, because the page
asks every few seconds, on the loop that delivers.
"""

from __future__ import annotations

import heapq
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.callback import header_map
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found
from queuebridge.backends.qstash.devserver.filters import Query, dlq_position
from queuebridge.backends.qstash.devserver.messages import (
    FINISHED,
    DeadLetter,
    LogEntry,
    LogState,
    Message,
    Outcome,
    Phase,
)
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.views import message_view

SHOWN_BYTES: Final = 64 * 1024
MAX_PAGE: Final = 200
_DEFAULT_PAGE: Final = 25
_MAX_SEARCHED: Final = 10_000
_MAX_COUNTED: Final = 50_000

_WAITING: Final = frozenset({Phase.STAGED, Phase.QUEUED, Phase.WAITING, Phase.READY, Phase.ASIDE})
_STATES: Final[dict[str, frozenset[Phase]]] = {
    "all": frozenset(Phase),
    "waiting": _WAITING,
    "active": frozenset({Phase.ACTIVE}),
    "finished": FINISHED,
    "delivered": frozenset({Phase.DELIVERED}),
    "failed": frozenset({Phase.FAILED}),
    "canceled": frozenset({Phase.CANCELED}),
}


class Overview:
    """Answers in JSON for one account: counts, a page of messages or dead letters, one message."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine

    def answer(self, request: ApiRequest, rest: str) -> web.Response:
        """Answer a request; `rest` is the path that follows the overview's own.

        Raises:
            Refusal: 404 for an unknown path or message, 400 for an unknown or wrong parameter.
        """
        account = request.account
        if request.method != "GET":
            raise request.no_route()
        if not rest:
            Query(request.query, frozenset())
            return respond(self._counts(account))
        if rest == "/messages":
            return respond(_messages_page(account, request.query))
        if rest == "/dlq":
            return respond(_dead_letters_page(account, request.query))
        if rest.startswith("/messages/"):
            Query(request.query, frozenset())
            return respond(_detail(account, unquote(rest[len("/messages/") :])))
        raise request.no_route()

    def _counts(self, account: Account) -> dict[str, Any]:
        clock = self._engine.clock
        phases = Counter(message.phase for message in islice(reversed(account.messages.values()), _MAX_COUNTED))
        return {
            "now": int(clock() * 1000),
            "clockStopped": clock.stopped,
            "waiting": sum(phases[phase] for phase in _WAITING),
            "active": phases[Phase.ACTIVE],
            "delivered": phases[Phase.DELIVERED],
            "failed": phases[Phase.FAILED],
            "canceled": phases[Phase.CANCELED],
            "deadLetters": len(account.dead_letters),
            "countedAll": len(account.messages) <= _MAX_COUNTED,
        }


def _messages_page(account: Account, query: str) -> dict[str, Any]:
    """Return messages, newest first, with those that are finished as long as the log remembers them."""
    wanted = Query(query, frozenset({"state", "search", "count", "cursor"}))
    state = wanted.text("state") or "all"
    if state not in _STATES:
        raise bad_request(f"unknown state {state[:40]!r}; known: {', '.join(_STATES)}")
    phases = _STATES[state]
    search = (wanted.text("search") or "").lower()
    count = wanted.integer("count", _DEFAULT_PAGE, low=1, high=MAX_PAGE)
    before = wanted.integer("cursor", 10**15)
    found: list[dict[str, Any]] = []
    searched = 0
    last = before
    for message in _newest_first(account):
        if message.seq >= before:
            continue
        if len(found) == count or searched == _MAX_SEARCHED:
            return {"messages": found, "searched": searched, "cursor": str(last)}
        searched += 1
        last = message.seq
        if message.phase in phases and (not search or search in _searchable(message)):
            found.append(_row(message))
    return {"messages": found, "searched": searched}


def _dead_letters_page(account: Account, query: str) -> dict[str, Any]:
    """Return dead letters, newest first."""
    wanted = Query(query, frozenset({"search", "count", "cursor"}))
    search = (wanted.text("search") or "").lower()
    count = wanted.integer("count", _DEFAULT_PAGE, low=1, high=MAX_PAGE)
    cursor = wanted.text("cursor")
    before = None if cursor is None else dlq_position(cursor)
    found: list[dict[str, Any]] = []
    searched = 0
    last = ""
    for letter in reversed(account.dead_letters.values()):
        if before is not None and dlq_position(letter.dlq_id) >= before:
            continue
        if len(found) == count or searched == _MAX_SEARCHED:
            return {"messages": found, "searched": searched, "cursor": last}
        searched += 1
        last = letter.dlq_id
        if not search or search in f"{_searchable(letter.message)}\n{last}\n{_failure(letter.outcome)}".lower():
            found.append(_dead_letter_row(letter))
    return {"messages": found, "searched": searched}


def _newest_first(account: Account) -> Iterator[Message]:
    """Return the messages of memory and log, each once: both are in order of acceptance."""
    logged = (entry.message for entry in account.history.newest_first() if entry.state is LogState.CREATED)
    last: Message | None = None
    for message in heapq.merge(reversed(account.messages.values()), logged, key=lambda item: -item.seq):
        if message is not last:
            yield message
        last = message


def _searchable(message: Message) -> str:
    spec = message.spec
    flow = None if spec.flow is None else spec.flow.key
    run = None if spec.workflow is None else spec.workflow.run_id
    parts = (message.id, spec.method, spec.url, spec.queue, flow, spec.topic, spec.schedule_id, run, *spec.labels)
    return "\n".join(part for part in parts if part).lower()


def _row(message: Message) -> dict[str, Any]:
    spec = message.spec
    data: dict[str, Any] = {
        "messageId": message.id,
        "url": spec.url,
        "method": spec.method,
        "state": message.phase.value,
        "cancelRequested": message.cancel_requested,
        "createdAt": message.created_ms,
        "retried": message.retried,
        "maxRetries": spec.max_retries,
        "bodyBytes": len(message.body),
    }
    optional = {
        "due": int(message.due * 1000) if message.phase is Phase.WAITING else None,
        "finishedAt": int(message.finished_at * 1000) if message.finished_at else None,
        "queueName": spec.queue,
        "flowControlKey": None if spec.flow is None else spec.flow.key,
        "topicName": spec.topic,
        "scheduleId": spec.schedule_id,
        "workflowRunId": None if spec.workflow is None else spec.workflow.run_id,
        "labels": list(spec.labels) or None,
    }
    return data | {name: value for name, value in optional.items() if value is not None}


def _dead_letter_row(letter: DeadLetter) -> dict[str, Any]:
    return _row(letter.message) | {
        # One that was read back from the store has forgotten how it ended.
        "state": Phase.FAILED.value,
        "dlqId": letter.dlq_id,
        "failedAt": letter.entered_ms,
        "failure": _failure(letter.outcome),
        "retryable": letter.can_be_retried,
    }


def _failure(outcome: Outcome) -> str:
    return outcome.error or f"the destination answered {outcome.status}"


def _detail(account: Account, message_id: str) -> dict[str, Any]:
    """Return one message with everything that is known of its attempts."""
    entries = [entry for entry in account.history.oldest_first() if entry.message.id == message_id]
    letter = next((item for item in account.dead_letters.values() if item.message.id == message_id), None)
    message = account.messages.get(message_id)
    if message is None and entries:
        message = entries[0].message
    if message is None and letter is not None:
        message = letter.message
    if message is None:
        raise not_found(f"message {message_id[:80]} not found")
    if not entries and letter is not None:
        entries = list(_entries_of(letter))
    data = message_view(message)
    text, _ = data.pop("body", None), data.pop("bodyBase64", None)
    # The text may be a hash in place of a redacted body.
    body = message.body if text is None else text.encode("utf-8")
    data |= _row(message) if letter is None else _dead_letter_row(letter)
    timeout = message.spec.timeout_seconds
    return data | {
        "body": _content(body),
        "events": [_event(entry) for entry in entries],
        **({} if timeout is None else {"timeoutSeconds": timeout}),
    }


def _entries_of(letter: DeadLetter) -> Iterable[LogEntry]:
    """Return what the log would hold of the last attempt, had it survived the restart."""
    for state, outcome in ((LogState.ERROR, letter.outcome), (LogState.FAILED, None)):
        yield LogEntry(seq=0, time_ms=letter.entered_ms, state=state, message=letter.message, outcome=outcome)


def _event(entry: LogEntry) -> dict[str, Any]:
    data: dict[str, Any] = {"time": entry.time_ms, "state": entry.state.value}
    if entry.next_delivery_ms is not None:
        data["nextDeliveryTime"] = entry.next_delivery_ms
    outcome = entry.outcome
    if outcome is not None:
        if outcome.error:
            data["error"] = outcome.error
        if outcome.status:
            data["status"] = outcome.status
            data["header"] = header_map(outcome.headers)
            data["body"] = _content(outcome.body)
    return data


def _content(body: bytes) -> dict[str, Any]:
    return {"base64": b64encode(body[:SHOWN_BYTES]).decode("ascii"), "bytes": len(body)}
