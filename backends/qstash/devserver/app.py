"""The HTTP surface: one handler over the raw request path.

aiohttp's router is not used: it decodes and normalises paths, and a destination must arrive as sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.errors import UNAUTHENTICATED, Refusal, not_found, unsupported
from queuebridge.backends.qstash.devserver.publishing import Publisher
from queuebridge.backends.qstash.devserver.request import Answer, ApiRequest, Services, query_token, respond
from queuebridge.backends.qstash.devserver.resources.dead_letters import DeadLetters
from queuebridge.backends.qstash.devserver.resources.keys import Keys
from queuebridge.backends.qstash.devserver.resources.logs import Logs
from queuebridge.backends.qstash.devserver.resources.messages import Messages
from queuebridge.backends.qstash.devserver.resources.queues import Queues
from queuebridge.backends.qstash.devserver.resources.workflows import Workflows
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES, TOKEN_PARAMETER

logger = logging.getLogger(__name__)

_PREFIX: Final = "/v2/"
_MISSING: Final = {
    "schedules": "schedules",
    "topics": "URL groups",
    "flowControl": "flow-control management",
    "globalParallelism": "flow-control management",
}


class App:
    """Authenticates, routes and turns every error into JSON."""

    def __init__(self, services: Services) -> None:
        self._accounts = {account.user.token: account for account in services.engine.accounts.values()}
        self._resources = _resources(services)

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
        if not path.startswith(_PREFIX):
            if path.startswith(("/v1/", "/llm/")):
                raise unsupported(path[:60])
            raise not_found(f"no such path: {path[:60]}")
        resource, _, rest = path[len(_PREFIX) :].partition("/")
        answer = self._resources.get(resource)
        if answer is None:
            if resource in _MISSING:
                raise unsupported(_MISSING[resource])
            raise not_found(f"no such endpoint: {request.method} {path[:60]}")
        return await answer(ApiRequest(request, account, request.method, path, rest, query))

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


def _resources(services: Services) -> Mapping[str, Answer]:
    """Return what answers for each resource: the part of the path that follows `/v2/`."""
    publisher = Publisher(services)
    return {
        "publish": publisher.publish,
        "enqueue": publisher.enqueue,
        "batch": publisher.batch,
        "messages": Messages(services).answer,
        "dlq": DeadLetters(services, publisher).answer,
        "events": Logs("events").answer,
        "logs": Logs("logs").answer,
        "queues": Queues(services).answer,
        "keys": Keys(services).answer,
        "workflows": Workflows(services).answer,
    }


def _request_factory() -> Callable[..., web.BaseRequest]:
    loop = asyncio.get_running_loop()

    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=MAX_BATCH_BYTES + 1
        )

    return make
