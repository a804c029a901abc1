"""`/v2/keys`: the signing keys (protocol section 10)."""

from __future__ import annotations

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.messages import SigningKeys, new_signing_key
from queuebridge.backends.qstash.devserver.records import encode_keys
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.store import StoreError


class Keys:
    """Answers for the keys that deliveries are signed with."""

    def __init__(self, services: Services) -> None:
        self._store = services.engine.store

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        rotates = request.method == "POST" and request.rest == "rotate"
        if not rotates and (request.method != "GET" or request.rest):
            raise request.no_route()
        Query(request.query, frozenset())
        keys = await self._rotate(request.account) if rotates else request.account.keys
        return respond({"current": keys.current, "next": keys.next})

    async def _rotate(self, account: Account) -> SigningKeys:
        """Let the next key sign from now on; a failed commit undoes it, because it will be asked for again."""
        old = account.keys
        new = SigningKeys(old.next, new_signing_key())
        self._set(account, new)
        try:
            await self._store.commit()
        except StoreError:
            if account.keys == new:
                self._set(account, old)
            raise
        return new

    def _set(self, account: Account, keys: SigningKeys) -> None:
        account.keys = keys
        self._store.put_document(encode_keys(account.user.name, keys))
