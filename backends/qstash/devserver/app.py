"""The HTTP surface: one handler over the raw request path.

aiohttp's router is not used: it decodes and normalises paths, and a destination must arrive as sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.admin.resource import PREFIX as ADMIN_PREFIX
from queuebridge.backends.qstash.devserver.admin.resource import Admin
from queuebridge.backends.qstash.devserver.errors import READ_ONLY, UNAUTHENTICATED, Refusal, not_found, unsupported
from queuebridge.backends.qstash.devserver.page.page import OVERVIEW_PATH, Page
from queuebridge.backends.qstash.devserver.publishing import Publisher
from queuebridge.backends.qstash.devserver.quotas import BurstQuota
from queuebridge.backends.qstash.devserver.request import Answer, ApiRequest, Services, query_token, respond
from queuebridge.backends.qstash.devserver.resources.dead_letters import DeadLetters
from queuebridge.backends.qstash.devserver.resources.flow_control import FlowControls, global_parallelism
from queuebridge.backends.qstash.devserver.resources.keys import Keys
from queuebridge.backends.qstash.devserver.resources.logs import Logs
from queuebridge.backends.qstash.devserver.resources.messages import Messages
from queuebridge.backends.qstash.devserver.resources.queues import Queues
from queuebridge.backends.qstash.devserver.resources.schedules import SchedulesResource
from queuebridge.backends.qstash.devserver.resources.url_groups import UrlGroups
from queuebridge.backends.qstash.devserver.resources.workflows import Workflows
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES, TOKEN_PARAMETER

logger = logging.getLogger(__name__)

_PREFIX: Final = "/v2/"
_WITHOUT_BURST_LIMIT: Final = frozenset({"publish", "enqueue", "batch"})
# Of Upstash Workflow.
_MISSING: Final = frozenset({"wait", "notify", "waiters", "trigger"})


class App:
    """Authenticates, routes and turns every error into JSON; `host` is what the server listens on."""

    def __init__(self, services: Services, admin: Admin, *, host: str = "127.0.0.1") -> None:
        self._admin = admin
        self._accounts = {account.user.token: account for account in services.engine.accounts.values()}
        self._readers = {account.user.read_only_token: account for account in services.engine.accounts.values()}
        burst = services.engine.settings.burst_per_second
        self._burst = None if burst is None else BurstQuota(burst)
        self._resources = _resources(services)
        self._page = Page(services, host)

    def server(self) -> web.Server:
        """Return the aiohttp protocol factory to listen with; needs a running loop."""
        return web.Server(self.handle, request_factory=_request_factory(), access_log=None, logger=_http_logger())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._route(request)
        except Refusal as refusal:
            logger.debug("refused: method=%s status=%d", request.method, refusal.status)
            return respond({"error": refusal.text}, refusal.status, refusal.headers)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            logger.exception("request failed: method=%s", request.method)
            return respond({"error": "internal server error"}, 500)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        page_file = self._page.file(request, path)
        if page_file is not None:
            return page_file
        account = self._authenticate(request, query)
        if path == OVERVIEW_PATH or path.startswith(OVERVIEW_PATH + "/"):
            return await self._page.overview(ApiRequest(request, account, request.method, path, "", query))
        if not path.startswith(_PREFIX):
            if path.startswith(ADMIN_PREFIX):
                rest = path[len(ADMIN_PREFIX) :]
                return await self._admin.answer(ApiRequest(request, account, request.method, path, rest, query))
            if path.startswith(("/v1/", "/llm/")):
                raise unsupported(path[:60])
            raise not_found(f"no such path: {path[:60]}")
        resource, _, rest = path[len(_PREFIX) :].partition("/")
        if self._burst is not None and resource not in _WITHOUT_BURST_LIMIT:
            self._burst.take(account)
        answer = self._resources.get(resource)
        if answer is None:
            if resource in _MISSING:
                raise unsupported(f"Upstash Workflow: /v2/{resource}")
            raise not_found(f"no such endpoint: {request.method} {path[:60]}")
        return await answer(ApiRequest(request, account, request.method, path, rest, query))

    def _authenticate(self, request: web.BaseRequest, query: str) -> Account:
        """Return the account of the request's token.

        Raises:
            Refusal: 401, before anything else is looked at; 403 for a write with a read-only token.
        """
        header = request.headers.get("Authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            if scheme.lower() == "bearer":
                account = self._account(token.strip(), request.method)
                if account is not None:
                    return account
        if query:
            token_in_query = query_token(query, TOKEN_PARAMETER)
            if token_in_query is not None:
                account = self._account(token_in_query, request.method)
                if account is not None:
                    return account
        raise Refusal(401, UNAUTHENTICATED)

    def _account(self, token: str, method: str) -> Account | None:
        account = self._accounts.get(token)
        if account is None:
            account = self._readers.get(token)
            if account is not None and method != "GET":
                raise Refusal(403, READ_ONLY)
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
        "schedules": SchedulesResource(services).answer,
        "flowControl": FlowControls(services).answer,
        "globalParallelism": global_parallelism,
        "topics": UrlGroups(services).answer,
        "keys": Keys(services).answer,
        "workflows": Workflows(services).answer,
    }


class _WithoutRequests(logging.Filter):
    """Says of a request that is not HTTP no more than that: aiohttp would quote it, tokens included."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = "refused: not an HTTP request (%s)", (type(record.exc_info[1]).__name__,)
            record.exc_info = record.exc_text = None
        return True


def _http_logger() -> logging.Logger:
    found = logging.getLogger(f"{__name__}.http")
    if not found.filters:
        found.addFilter(_WithoutRequests())
    return found


def _request_factory() -> Callable[..., web.BaseRequest]:
    loop = asyncio.get_running_loop()

    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=MAX_BATCH_BYTES + 1
        )

    return make
