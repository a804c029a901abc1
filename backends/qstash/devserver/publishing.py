"""Publish, enqueue and batch (protocol section 3), and the retry of dead letters (section 8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import check_destination, check_name, split_query
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request, over_quota
from queuebridge.backends.qstash.devserver.filters import DLQ_FILTERS, Query
from queuebridge.backends.qstash.devserver.messages import Accepted, DeadLetter, Message
from queuebridge.backends.qstash.devserver.options import (
    Directives,
    OptionReader,
    Publication,
    read_directives,
)
from queuebridge.backends.qstash.devserver.reading import matching_dead_letters, respond
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES, MAX_DLQ_PAGE


class Publisher:
    """Takes messages in: parses, stages, commits, then lets them go and answers.

    `wake` tells the driver that something may be due.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self._plan = engine.settings.plan
        self._reader = OptionReader(self._plan)

    async def publish(
        self, request: web.BaseRequest, account: Account, target: str, query: str, queue: str | None = None
    ) -> web.Response:
        """Answer a publish, or an enqueue when `queue` is given; `target` is the raw destination."""
        parameters: dict[str, str] = {}
        if query:
            parameters, rest = split_query(query)
            if rest:
                target = f"{target}?{rest}"
        found = read_directives(request.headers.items(), parameters, token=account.user.token)
        publication = self._publication(account, target, found, queue=queue, caller_ip=request.remote or "")
        body = await _read_body(request, self._plan.max_message_bytes)
        accepted, message = self._accept(account, publication, body)
        await self._settle([message] if message is not None else [])
        return respond(_result(accepted), 202 if accepted.deduplicated else 200)

    async def batch(self, request: web.BaseRequest, account: Account) -> web.Response:
        """Answer a batch: every item on its own, an unacceptable one as an error element."""
        items = _batch_items(await _read_body(request, MAX_BATCH_BYTES))
        caller_ip = request.remote or ""
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
                results.append({"error": refusal.text})
                continue
            results.append(_result(accepted))
            if message is not None:
                messages.append(message)
        await self._settle(messages)
        return respond(results)

    async def retry_dead_letter(
        self, request: web.BaseRequest, account: Account, dlq_id: str, query: str
    ) -> web.Response:
        """Answer the retry of one dead letter: a new message in place of the entry."""
        letter = account.dead_letters.get(dlq_id)
        if letter is None:
            raise Refusal(404, f"dlq message {dlq_id[:80]} not found")
        parameters, _ = split_query(query)
        found = read_directives(request.headers.items(), parameters, token=account.user.token)
        messages = self._retry(account, [letter], found)
        await self._settle(messages, undo=False)
        return respond({"messageId": messages[0].id}, 201)

    async def retry_dead_letters(
        self, request: web.BaseRequest, account: Account, query: str
    ) -> web.Response:
        """Answer a bulk retry: by `dlqIds`, else by filters, a page at a time."""
        parameters, rest = split_query(query)
        allowed = DLQ_FILTERS | {"dlqIds", "responseStatus", "fromDate", "toDate", "count", "cursor", "order"}
        letters, cursor = matching_dead_letters(account, Query(rest, allowed), default_count=MAX_DLQ_PAGE)
        found = read_directives(request.headers.items(), parameters, token=account.user.token)
        messages = self._retry(account, letters, found)
        await self._settle(messages, undo=False)
        responses = [{"messageId": message.id} for message in messages]
        return respond({"responses": responses, "cursor": cursor or ""}, 201)

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
        return self._engine.accept(
            account, publication.spec, body, not_before=publication.not_before, dedup_key=key
        )

    def _retry(self, account: Account, letters: list[DeadLetter], found: Directives) -> list[Message]:
        now = self._engine.clock()
        wanted = [(letter, self._reader.override(letter.message.spec, found, now=now)) for letter in letters]
        return [
            self._engine.retry_dead_letter(
                account, letter, publication.spec, not_before=publication.not_before
            )
            for letter, publication in wanted
        ]

    async def _settle(self, messages: list[Message], *, undo: bool = True) -> None:
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


def _content_hash(publication: Publication, body: bytes) -> str:
    """Return the content-based id: destination, body, `Content-Type` and forwarded headers (3.7)."""
    spec = publication.spec
    digest = sha256(json.dumps([spec.url, sorted(spec.headers)]).encode())
    digest.update(b"\0")
    digest.update(body)
    return digest.hexdigest()
