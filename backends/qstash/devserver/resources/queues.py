"""`/v2/queues`: FIFO queues (protocol section 5)."""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.destination import check_name
from queuebridge.backends.qstash.devserver.errors import not_found, unsupported
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.views import queue_view


class Queues:
    """Answers for queues."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        if request.method != "GET":
            raise unsupported("changing, pausing and deleting queues")
        queues = request.account.queues
        if not request.rest:
            return respond([queue_view(queue) for queue in queues.values()])
        name = check_name("queue name", unquote(request.rest))
        queue = queues.get(name)
        if queue is None:
            raise not_found(f"queue {name} not found")
        return respond(queue_view(queue))
