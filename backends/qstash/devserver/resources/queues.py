"""`/v2/queues`: FIFO queues (protocol section 5)."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import check_name
from queuebridge.backends.qstash.devserver.errors import (
    Refusal,
    bad_request,
    check_queue_count,
    not_found,
    over_quota,
)
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.queue_commands import change_queue, delete_queue
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, read_object, respond
from queuebridge.backends.qstash.devserver.views import queue_view

_PAUSED: Final = {"pause": True, "resume": False}


class Queues:
    """Answers for queues."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake
        self._plan = services.engine.settings.plan

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        Query(request.query, frozenset())
        account, method = request.account, request.method
        if not request.rest:
            if method == "POST":
                return await self._upsert(request)
            if method == "GET":
                return respond([queue_view(queue) for queue in account.queues.values()])
            raise request.no_route()
        encoded, _, action = request.rest.partition("/")
        name = check_name("queue name", unquote(encoded))
        if method == "POST" and action in _PAUSED:
            return await self._pause(account, name, _PAUSED[action])
        if method == "GET" and not action:
            if name not in account.queues:
                raise _unknown(name)
            return respond(queue_view(account.queues[name]))
        if method == "DELETE" and not action:
            return await self._delete(account, name)
        raise request.no_route()

    async def _upsert(self, request: ApiRequest) -> web.Response:
        """Create a queue or overwrite its settings; what is not given becomes the default again."""
        data = await read_object(request, {"queueName", "parallelism", "paused"})
        name, parallelism, paused = data.get("queueName"), data.get("parallelism"), data.get("paused")
        if not isinstance(name, str):
            raise bad_request("queueName must be a string")
        check_name("queue name", name)
        if parallelism is None:
            parallelism = 1
        if not isinstance(parallelism, int) or isinstance(parallelism, bool) or parallelism < 1:
            raise bad_request("parallelism must be a whole number of at least 1")
        if not isinstance(paused, bool | None):
            raise bad_request("paused must be true or false")
        if parallelism > self._plan.max_queue_parallelism:
            raise over_quota("maxParallelism", self._plan.max_queue_parallelism)
        account = request.account
        if name not in account.queues:
            check_queue_count(self._plan, len(account.queues))
        queue = change_queue(self._engine, account, name, parallelism=parallelism, paused=bool(paused))
        await self._engine.store.commit()
        self._wake()
        return respond(queue_view(queue))

    async def _pause(self, account: Account, name: str, paused: bool) -> web.Response:
        """Pause or resume a queue; one that is so already stays as it is."""
        queue = account.queues.get(name)
        if queue is None:
            raise _unknown(name)
        if queue.record.paused is not paused:
            change_queue(self._engine, account, name, paused=paused)
        await self._engine.store.commit()
        self._wake()
        return respond(queue_view(queue))

    async def _delete(self, account: Account, name: str) -> web.Response:
        """Delete a queue with the messages it has not delivered; an unknown one is fine."""
        delete_queue(self._engine, account, name)
        await self._engine.store.commit()
        self._wake()
        return respond({})


def _unknown(name: str) -> Refusal:
    return not_found(f"queue {name} not found")
