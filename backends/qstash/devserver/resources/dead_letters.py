"""`/v2/dlq`: the dead letter queue (protocol section 8)."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import split_query
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found
from queuebridge.backends.qstash.devserver.filters import DLQ_FILTERS, PAGING, Query, dlq_position
from queuebridge.backends.qstash.devserver.messages import DeadLetter, Message
from queuebridge.backends.qstash.devserver.options import Directives, OptionReader, read_directives
from queuebridge.backends.qstash.devserver.publishing import Publisher
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, read_ids, refuse_empty_id, respond
from queuebridge.backends.qstash.devserver.views import dead_letter_view
from queuebridge.backends.qstash.protocol import MAX_DLQ_PAGE

_FILTERS: Final = DLQ_FILTERS | PAGING | {"dlqIds", "responseStatus"}


class DeadLetters:
    """Answers for messages that were given up."""

    def __init__(self, services: Services, publisher: Publisher) -> None:
        self._engine = services.engine
        self._publisher = publisher
        self._reader = OptionReader(services.engine.settings.plan)

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        account, method, rest = request.account, request.method, request.rest
        if method == "GET":
            return self._read(account, unquote(rest)) if rest else self._list(request)
        if method == "DELETE":
            if rest:
                return await self._delete(account, unquote(rest))
            refuse_empty_id(request)
            return await self._delete_many(request)
        if method == "POST" and rest == "retry":
            return await self._retry_many(request)
        if method == "POST" and rest.startswith("retry/"):
            return await self._retry(request, unquote(rest[len("retry/") :]))
        raise request.no_route()

    def _list(self, request: ApiRequest) -> web.Response:
        letters, cursor = _page(request.account, Query(request.query, _FILTERS))
        return respond(_with_cursor({"messages": [dead_letter_view(letter) for letter in letters]}, cursor))

    def _read(self, account: Account, dlq_id: str) -> web.Response:
        return respond(dead_letter_view(_dead_letter(account, dlq_id)))

    async def _delete(self, account: Account, dlq_id: str) -> web.Response:
        self._engine.remove_dead_letter(account, _dead_letter(account, dlq_id))
        await self._engine.store.commit()
        return respond({"deleted": 1})

    async def _delete_many(self, request: ApiRequest) -> web.Response:
        """Delete by ids in the query or the body, else a page of what the filters match."""
        account = request.account
        wanted = Query(request.query, _FILTERS)
        chosen, cursor = await _chosen(request, wanted)
        for letter in chosen:
            self._engine.remove_dead_letter(account, letter)
        await self._engine.store.commit()
        return respond(_with_cursor({"deleted": len(chosen)}, cursor))

    async def _retry(self, request: ApiRequest, dlq_id: str) -> web.Response:
        """Publish one dead letter anew: a new message in place of the entry."""
        letter = _dead_letter(request.account, dlq_id)
        if not letter.can_be_retried:
            raise bad_request(
                f"dlq message {dlq_id[:80]} belongs to a workflow run, which has failed: a step cannot be retried "
                "without its run; start the workflow again"
            )
        parameters, rest = split_query(request.query)
        Query(rest, frozenset())
        messages = await self._publish_anew(request, [letter], parameters)
        return respond({"messageId": messages[0].id}, 201)

    async def _retry_many(self, request: ApiRequest) -> web.Response:
        """Publish dead letters anew: by `dlqIds` in query or body, else by filters, a page at a time."""
        parameters, rest = split_query(request.query)
        letters, cursor = await _chosen(request, Query(rest, _FILTERS))
        letters = [letter for letter in letters if letter.can_be_retried]
        messages = await self._publish_anew(request, letters, parameters)
        responses = [{"messageId": message.id} for message in messages]
        return respond({"responses": responses, "cursor": cursor or ""}, 201)

    async def _publish_anew(
        self, request: ApiRequest, letters: list[DeadLetter], parameters: dict[str, str]
    ) -> list[Message]:
        account = request.account
        found = read_directives(request.http.headers.items(), parameters, token=account.user.token)
        messages = self._stage_anew(account, letters, found)
        await self._publisher.settle(messages, undo=False)
        return messages

    def _stage_anew(self, account: Account, letters: list[DeadLetter], found: Directives) -> list[Message]:
        now = self._engine.clock()
        wanted = [(letter, self._reader.override(letter.message.spec, found, now=now)) for letter in letters]
        return [
            self._engine.retry_dead_letter(account, letter, publication.spec, not_before=publication.not_before)
            for letter, publication in wanted
        ]


def _with_cursor(data: dict[str, Any], cursor: str | None) -> dict[str, Any]:
    return data if cursor is None else {**data, "cursor": cursor}


async def _chosen(request: ApiRequest, wanted: Query) -> tuple[list[DeadLetter], str | None]:
    """Return what a bulk request means: ids in its query or body, else a page by filters and its cursor."""
    letters = request.account.dead_letters
    ids = await read_ids(request, wanted, "dlqIds")
    if ids is None:
        return _page(request.account, wanted)
    return [letters[name] for name in dict.fromkeys(ids) if name in letters], None


def _page(account: Account, wanted: Query) -> tuple[list[DeadLetter], str | None]:
    """Return a page of dead letters, oldest first unless asked otherwise, and the next page's cursor.

    With `dlqIds` the other filters are ignored, and ids that are not there are passed over.
    """
    if "dlqIds" in wanted:
        ids = wanted.ids("dlqIds")
        return [account.dead_letters[name] for name in ids if name in account.dead_letters], None
    count = wanted.integer("count", MAX_DLQ_PAGE, low=1, high=MAX_DLQ_PAGE)
    first, last = wanted.period()
    statuses = wanted.values("responseStatus") if "responseStatus" in wanted else None
    earliest_first = wanted.order_is_earliest_first(default=True)
    cursor = wanted.text("cursor")
    after = None if cursor is None else dlq_position(cursor)
    letters = account.dead_letters.values()
    found: list[DeadLetter] = []
    for letter in letters if earliest_first else reversed(letters):
        if after is not None:
            position = dlq_position(letter.dlq_id)
            if position <= after if earliest_first else position >= after:
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


def _dead_letter(account: Account, dlq_id: str) -> DeadLetter:
    letter = account.dead_letters.get(dlq_id)
    if letter is None:
        raise not_found(f"dlq message {dlq_id[:80]} not found")
    return letter
