"""`/v2/messages`: reading and cancelling messages (protocol section 4)."""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.errors import not_found
from queuebridge.backends.qstash.devserver.filters import MESSAGE_FILTERS, Query
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, read_ids, refuse_empty_id, respond
from queuebridge.backends.qstash.devserver.views import message_view
from queuebridge.backends.qstash.protocol import MAX_CANCEL_COUNT


class Messages:
    """Answers for messages on their way, or finished a short while ago."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        if request.method == "GET" and request.rest:
            return self._read(request.account, unquote(request.rest))
        if request.method == "DELETE":
            if request.rest:
                return await self._cancel(request.account, unquote(request.rest))
            refuse_empty_id(request)
            return await self._cancel_many(request)
        raise request.no_route()

    def _read(self, account: Account, message_id: str) -> web.Response:
        message = account.messages.get(message_id)
        if message is None:
            raise not_found(f"message {message_id[:80]} not found")
        return respond(message_view(message))

    async def _cancel(self, account: Account, message_id: str) -> web.Response:
        """Cancel one message.

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

    async def _cancel_many(self, request: ApiRequest) -> web.Response:
        """Cancel by ids in the query or the body, by filters, or all."""
        account = request.account
        wanted = Query(request.query, MESSAGE_FILTERS | {"fromDate", "toDate", "count"})
        count = wanted.integer("count", 0, low=1, high=MAX_CANCEL_COUNT)
        ids = await read_ids(request, wanted, "messageIds")
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
