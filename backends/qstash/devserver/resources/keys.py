"""`/v2/keys`: the signing keys (protocol section 10)."""

from __future__ import annotations

from aiohttp import web

from queuebridge.backends.qstash.devserver.errors import unsupported
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond


class Keys:
    """Answers for the keys that deliveries are signed with."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        if request.method == "GET" and not request.rest:
            keys = request.account.keys
            return respond({"current": keys.current, "next": keys.next})
        if request.rest == "rotate":
            raise unsupported("rotating keys")
        raise request.no_route()
