"""The HTTP surface: one handler over the raw request path.

aiohttp's router is not used: it decodes and normalises paths, and a destination must arrive as sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import (
    UNAUTHENTICATED,
    Refusal,
    bad_request,
    not_found,
    unsupported,
)
from queuebridge.backends.qstash.devserver.publishing import Publisher
from queuebridge.backends.qstash.devserver.reading import Reader, query_token, respond
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES, TOKEN_PARAMETER

logger = logging.getLogger(__name__)

_PUBLISH: Final = "/v2/publish/"
_ENQUEUE: Final = "/v2/enqueue/"
_MISSING: Final = {
    "schedules": "schedules",
    "topics": "URL groups",
    "flowControl": "flow-control management",
    "globalParallelism": "flow-control management",
    "workflows": "Upstash Workflow",
}


class App:
    """Authenticates, routes and turns every error into JSON."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._accounts = {account.user.token: account for account in engine.accounts.values()}
        self._publisher = Publisher(engine, wake)
        self._reader = Reader(engine, wake)

    def server(self) -> web.Server:
        """Return the aiohttp protocol factory to listen with; needs a running loop."""
        return web.Server(self.handle, request_factory=_request_factory(), access_log=None)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._route(request)
        except Refusal as refusal:
            logger.debug("refused: method=%s status=%d", request.method, refusal.status)
            return respond({"error": refusal.text}, refusal.status)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            logger.exception("request failed: method=%s", request.method)
            return respond({"error": "internal server error"}, 500)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        account = self._authenticate(request, query)
        if request.method == "POST":
            if path.startswith(_PUBLISH):
                return await self._publisher.publish(request, account, path[len(_PUBLISH) :], query)
            if path.startswith(_ENQUEUE):
                queue, _, target = path[len(_ENQUEUE) :].partition("/")
                return await self._publisher.publish(request, account, target, query, queue)
        if not path.startswith("/v2/"):
            if path.startswith(("/v1/", "/llm/")):
                raise unsupported(path[:60])
            raise not_found(f"no such path: {path[:60]}")
        return await self._resource(request, account, path, query)

    async def _resource(
        self, request: web.BaseRequest, account: Account, path: str, query: str
    ) -> web.StreamResponse:
        kind, _, rest = path[len("/v2/") :].partition("/")
        method = request.method
        if kind in _MISSING:
            raise unsupported(_MISSING[kind])
        if kind == "batch" and method == "POST" and not rest:
            return await self._publisher.batch(request, account)
        if kind == "messages":
            return await self._messages(request, account, path, rest, query)
        if kind == "dlq":
            return await self._dlq(request, account, path, rest, query)
        if kind in {"events", "logs"} and method == "GET" and not rest:
            return self._reader.logs(account, query, key=kind)
        if kind == "queues":
            return self._queues(method, account, rest)
        if kind == "keys":
            if method == "GET" and not rest:
                return self._reader.keys(account)
            if rest == "rotate":
                raise unsupported("rotating keys")
        raise _no_route(method, path)

    async def _messages(
        self, request: web.BaseRequest, account: Account, path: str, rest: str, query: str
    ) -> web.StreamResponse:
        method = request.method
        if method == "GET" and rest:
            return self._reader.message(account, unquote(rest))
        if method == "DELETE":
            if rest:
                return await self._reader.cancel(account, unquote(rest))
            _refuse_empty_id(path)
            return await self._reader.cancel_many(request, account, query)
        raise _no_route(method, path)

    async def _dlq(
        self, request: web.BaseRequest, account: Account, path: str, rest: str, query: str
    ) -> web.StreamResponse:
        method = request.method
        if method == "GET":
            if rest:
                return self._reader.dead_letter(account, unquote(rest))
            return self._reader.dead_letters(account, query)
        if method == "DELETE":
            if rest:
                return await self._reader.delete_dead_letter(account, unquote(rest))
            _refuse_empty_id(path)
            return await self._reader.delete_dead_letters(request, account, query)
        if method == "POST" and rest == "retry":
            return await self._publisher.retry_dead_letters(request, account, query)
        if method == "POST" and rest.startswith("retry/"):
            dlq_id = unquote(rest[len("retry/") :])
            return await self._publisher.retry_dead_letter(request, account, dlq_id, query)
        raise _no_route(method, path)

    def _queues(self, method: str, account: Account, rest: str) -> web.StreamResponse:
        if method == "GET":
            return self._reader.queue(account, unquote(rest)) if rest else self._reader.queues(account)
        raise unsupported("changing, pausing and deleting queues")

    def _authenticate(self, request: web.BaseRequest, query: str) -> Account:
        """Return the account of the request's token.

        Raises:
            Refusal: 401; before anything else is looked at.
        """
        header = request.headers.get("Authorization")
        account: Account | None = None
        if header is not None:
            scheme, _, token = header.partition(" ")
            if scheme.lower() == "bearer":
                account = self._accounts.get(token.strip())
        if account is None and query:
            token_in_query = query_token(query, TOKEN_PARAMETER)
            if token_in_query is not None:
                account = self._accounts.get(token_in_query)
        if account is None:
            raise Refusal(401, UNAUTHENTICATED)
        return account


def _refuse_empty_id(path: str) -> None:
    # The hosted service takes `DELETE /v2/messages/` for "all": an empty id must not do that.
    if path.endswith("/"):
        raise bad_request("the id is empty")


def _no_route(method: str, path: str) -> Refusal:
    return not_found(f"no such endpoint: {method} {path[:60]}")


def _request_factory() -> Callable[..., web.BaseRequest]:
    loop = asyncio.get_running_loop()

    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=MAX_BATCH_BYTES + 1
        )

    return make
