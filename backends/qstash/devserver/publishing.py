"""`/v2/publish`, `/v2/enqueue` and `/v2/batch` (protocol section 3)."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import check_destination, check_name, split_query
from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request, over_quota
from queuebridge.backends.qstash.devserver.messages import Accepted, Message
from queuebridge.backends.qstash.devserver.options import (
    Directives,
    OptionReader,
    Publication,
    read_directives,
)
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.backends.qstash.devserver.workflow import accepting
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES


class Publisher:
    """Takes messages in: parses, stages, commits, then lets them go and answers."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake
        self._plan = services.engine.settings.plan
        self._reader = OptionReader(self._plan)

    async def publish(self, request: ApiRequest) -> web.Response:
        """Answer `/v2/publish/{destination}`."""
        if request.method != "POST":
            raise request.no_route()
        return await self._publish(request, request.rest)

    async def enqueue(self, request: ApiRequest) -> web.Response:
        """Answer `/v2/enqueue/{queue}/{destination}`."""
        if request.method != "POST":
            raise request.no_route()
        queue, _, target = request.rest.partition("/")
        return await self._publish(request, target, queue)

    async def _publish(self, request: ApiRequest, target: str, queue: str | None = None) -> web.Response:
        http, account, query = request.http, request.account, request.query
        parameters: dict[str, str] = {}
        if query:
            parameters, rest = split_query(query)
            if rest:
                target = f"{target}?{rest}"
        found = read_directives(http.headers.items(), parameters, token=account.user.token)
        publication = self._publication(account, target, found, queue=queue, caller_ip=http.remote or "")
        body = await _read_body(http, self._plan.max_message_bytes)
        accepted, message = self._accept(account, publication, body)
        await self.settle([message] if message is not None else [])
        return respond(_result(accepted), 202 if accepted.deduplicated else 200)

    async def batch(self, request: ApiRequest) -> web.Response:
        """Answer `/v2/batch`: every item on its own, an unacceptable one as an error element."""
        if request.method != "POST" or request.rest:
            raise request.no_route()
        account = request.account
        items = _batch_items(await _read_body(request.http, MAX_BATCH_BYTES))
        caller_ip = request.http.remote or ""
        results: list[dict[str, Any]] = []
        messages: list[Message] = []
        for item in items:
            try:
                headers = (item.get("headers") or {}).items()
                found = read_directives(headers, {}, token=account.user.token)
                publication = self._publication(
                    account, item["destination"], found, queue=item.get("queue"), caller_ip=caller_ip
                )
                body = (item.get("body") or "").encode("utf-8", "surrogatepass")
                self._check_size(len(body))
                accepted, message = self._accept(account, publication, body)
            except Refusal as refusal:
                if _of_a_workflow(item):
                    # Its SDKs look at the status only: nothing of the batch is accepted.
                    for message in messages:
                        self._engine.discard(message)
                    raise
                results.append({"error": refusal.text})
                continue
            results.append(_result(accepted))
            if message is not None:
                messages.append(message)
        await self.settle(messages)
        return respond(results)

    def _publication(
        self,
        account: Account,
        target: str,
        found: Directives,
        *,
        queue: str | None,
        caller_ip: str,
    ) -> Publication:
        url = check_destination(target)
        if queue is not None:
            check_name("queue name", queue)
            if queue not in account.queues and len(account.queues) >= self._plan.max_queues:
                raise over_quota("maxQueues", self._plan.max_queues)
        now = self._engine.clock()
        return self._reader.publication(url, found, now=now, queue=queue, caller_ip=caller_ip)

    def _check_size(self, size: int) -> None:
        if size > self._plan.max_message_bytes:
            raise over_quota("maxMessageSize", self._plan.max_message_bytes)

    def _accept(
        self, account: Account, publication: Publication, body: bytes
    ) -> tuple[Accepted, Message | None]:
        key = None
        if publication.dedup_id is not None:
            key = f"id:{publication.dedup_id}"
        elif publication.hash_content:
            key = f"hash:{_content_hash(publication, body)}"
        spec = publication.spec
        if spec.workflow is not None:
            return accepting.accept(
                self._engine,
                account,
                spec.workflow,
                spec,
                body,
                not_before=publication.not_before,
                dedup_key=key,
            )
        return self._engine.accept(account, spec, body, not_before=publication.not_before, dedup_key=key)

    async def settle(self, messages: list[Message], *, undo: bool = True) -> None:
        """Make what was accepted durable, then let it go; a duplicate waits for the first one's commit.

        A failed commit undoes a publish, because the publisher will repeat it. The retry of a dead
        letter cannot be repeated, so its message goes on in memory and is stored later.
        """
        try:
            await self._engine.store.commit()
        except StoreError:
            if undo:
                for message in messages:
                    self._engine.discard(message)
            else:
                self._let_go(messages)
            raise
        self._let_go(messages)

    def _let_go(self, messages: list[Message]) -> None:
        for message in messages:
            self._engine.release(message)
        if messages:
            self._wake()


def _result(accepted: Accepted) -> dict[str, Any]:
    data: dict[str, Any] = {"messageId": accepted.message_id, "url": accepted.url}
    if accepted.deduplicated:
        data["deduplicated"] = True
    return data


async def _read_body(request: web.BaseRequest, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise over_quota("maxMessageSize", limit)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise over_quota("maxMessageSize", limit) from None
    if len(body) > limit:
        raise over_quota("maxMessageSize", limit)
    return body


def _batch_items(body: bytes) -> list[dict[str, Any]]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the batch is not valid JSON") from None
    if not isinstance(items, list):
        raise bad_request("the batch must be a JSON array")
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("destination"), str):
            raise bad_request(f"batch item {index}: an object with a string destination is needed")
        for name in ("body", "queue"):
            if not isinstance(item.get(name), str | None):
                raise bad_request(f"batch item {index}: {name} must be a string or null")
        headers = item.get("headers")
        if headers is not None and not (
            isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values())
        ):
            raise bad_request(f"batch item {index}: headers must be an object of strings")
    return items


def _of_a_workflow(item: dict[str, Any]) -> bool:
    return any(name.lower() == "upstash-workflow-runid" for name in item.get("headers") or {})


def _content_hash(publication: Publication, body: bytes) -> str:
    """Return the content-based id: destination, body, `Content-Type` and forwarded headers (3.7)."""
    spec = publication.spec
    digest = sha256(json.dumps([spec.url, sorted(spec.headers)]).encode())
    digest.update(b"\0")
    digest.update(body)
    return digest.hexdigest()
