"""`/v2/publish`, `/v2/enqueue` and `/v2/batch` (protocol section 3)."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import NAME, check_name, split_query
from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request, check_queue_count, over_quota
from queuebridge.backends.qstash.devserver.groups import Endpoint, resolve
from queuebridge.backends.qstash.devserver.messages import Accepted, Message
from queuebridge.backends.qstash.devserver.options import (
    Directives,
    OptionReader,
    Publication,
    read_directives,
)
from queuebridge.backends.qstash.devserver.quotas import DailyQuota
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, respond
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.backends.qstash.devserver.workflow import accepting
from queuebridge.backends.qstash.protocol import MAX_BATCH_BYTES


@dataclass(slots=True)
class _Draft:
    """A message about to be taken in, and what an equal publish is recognised by."""

    publication: Publication
    body: bytes
    key: str | None


class Publisher:
    """Takes messages in: parses, stages, commits, then lets them go and answers."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake
        self._plan = services.engine.settings.plan
        self._reader = OptionReader(self._plan)
        self._daily = DailyQuota(services.engine)

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
                if NAME.fullmatch(target):
                    raise bad_request("a URL group takes no query parameters but those that start with upstash-")
                target = f"{target}?{rest}"
        endpoints = resolve(account, target)
        found = read_directives(
            http.headers.items(), parameters, token=account.user.token, defaults=endpoints[0].headers
        )
        publication = self._publication(endpoints[0], found, queue=queue, caller_ip=http.remote or "")
        body = await read_body(http, self._plan.max_message_bytes)
        # From here to the acceptance nothing else runs, so that no limit is overrun by several at once.
        if queue is not None:
            self._check_queue(account, queue)
        drafts = _drafts(publication, endpoints, body)
        if self._daily.limit is not None:
            self._check_daily(account, drafts)
        accepted, messages = self._accept(account, drafts)
        await self.settle(messages)
        return respond(_answer(accepted, endpoints), 200 if messages else 202)

    async def batch(self, request: ApiRequest) -> web.Response:
        """Answer `/v2/batch`: every item on its own, an unacceptable one as an error element."""
        if request.method != "POST" or request.rest:
            raise request.no_route()
        account = request.account
        items = _batch_items(await read_body(request.http, MAX_BATCH_BYTES))
        caller_ip = request.http.remote or ""
        read: list[tuple[list[Endpoint], list[_Draft]] | Refusal] = []
        new_queues: set[str] = set()
        for item in items:
            try:
                endpoints = resolve(account, item["destination"])
                headers = (item.get("headers") or {}).items()
                found = read_directives(
                    headers, {}, token=account.user.token, defaults=endpoints[0].headers
                )
                queue = item.get("queue")
                publication = self._publication(endpoints[0], found, queue=queue, caller_ip=caller_ip)
                if queue is not None:
                    self._check_queue(account, queue, new_queues)
                body = (item.get("body") or "").encode("utf-8", "surrogatepass")
                self._check_size(len(body))
            except Refusal as refusal:
                if _of_a_workflow(item):
                    # Its SDKs look at the status only: nothing of the batch is accepted.
                    raise
                read.append(refusal)
                continue
            if queue is not None and queue not in account.queues:
                new_queues.add(queue)
            read.append((endpoints, _drafts(publication, endpoints, body)))
        if self._daily.limit is not None:
            self._check_daily(account, [draft for one in read if isinstance(one, tuple) for draft in one[1]])
        results: list[Any] = []
        messages: list[Message] = []
        for one in read:
            if isinstance(one, Refusal):
                results.append({"error": one.text})
                continue
            endpoints, drafts = one
            try:
                accepted, new = self._accept(account, drafts)
            except Refusal:
                # Only a workflow's message is refused here; its SDKs look at the status only, so that nothing of the
                # batch may be accepted.
                self._undo(messages)
                raise
            results.append(_answer(accepted, endpoints))
            messages += new
        await self.settle(messages)
        return respond(results)

    def _publication(
        self,
        endpoint: Endpoint,
        found: Directives,
        *,
        queue: str | None,
        caller_ip: str,
    ) -> Publication:
        if queue is not None:
            check_name("queue name", queue)
        now = self._engine.clock()
        publication = self._reader.publication(
            endpoint.url,
            found,
            now=now,
            queue=queue,
            caller_ip=caller_ip,
            topic=endpoint.topic,
            endpoint=endpoint.name,
        )
        if publication.spec.workflow is not None and endpoint.topic is not None:
            raise bad_request("a workflow run has one endpoint: its messages cannot go to a URL group")
        return publication

    def _check_queue(self, account: Account, queue: str, new: Collection[str] = ()) -> None:
        """Refuse a queue too many; `new` are those that others of the same batch will create."""
        if queue not in account.queues and queue not in new:
            check_queue_count(self._plan, len(account.queues) + len(new))

    def _check_size(self, size: int) -> None:
        if size > self._plan.max_message_bytes:
            raise over_quota("maxMessageSize", self._plan.max_message_bytes)

    def _check_daily(self, account: Account, drafts: list[_Draft]) -> None:
        """Refuse all of these messages if those that are no duplicates go beyond the daily limit."""
        now = self._engine.clock()
        keys = {draft.key for draft in drafts if draft.key is not None}
        new = sum(account.earlier_publish(key, now) is None for key in keys)
        self._daily.check(account, new + sum(draft.key is None for draft in drafts))

    def _accept(self, account: Account, drafts: list[_Draft]) -> tuple[list[Accepted], list[Message]]:
        accepted: list[Accepted] = []
        messages: list[Message] = []
        for draft in drafts:
            publication = draft.publication
            spec = publication.spec
            if spec.workflow is None:
                result, message = self._engine.accept(
                    account, spec, draft.body, not_before=publication.not_before, dedup_key=draft.key
                )
            else:
                result, message = accepting.accept(
                    self._engine,
                    account,
                    spec.workflow,
                    spec,
                    draft.body,
                    not_before=publication.not_before,
                    dedup_key=draft.key,
                )
            accepted.append(result)
            if message is not None:
                messages.append(message)
        if self._daily.limit is not None:
            self._daily.count(account, len(messages))
        return accepted, messages

    async def settle(self, messages: list[Message], *, undo: bool = True) -> None:
        """Make what was accepted durable, then let it go; a duplicate waits for the first one's commit.

        A failed commit undoes a publish, because the publisher will repeat it. The retry of a dead
        letter cannot be repeated, so its message goes on in memory and is stored later.
        """
        try:
            await self._engine.store.commit()
        except StoreError:
            if undo:
                self._undo(messages)
            else:
                self._let_go(messages)
            raise
        self._let_go(messages)

    def _undo(self, messages: list[Message]) -> None:
        for message in messages:
            self._engine.discard(message)
            self._daily.count(self._engine.accounts[message.account], -1)

    def _let_go(self, messages: list[Message]) -> None:
        for message in messages:
            self._engine.release(message)
        if messages:
            self._wake()


def _drafts(publication: Publication, endpoints: list[Endpoint], body: bytes) -> list[_Draft]:
    """Return the messages of a publish: the one that was read, for the first endpoint and each other one."""
    drafts = [_Draft(publication, body, _dedup_key(publication, body))]
    if len(endpoints) == 1:
        return drafts
    for endpoint in endpoints[1:]:
        spec = replace(publication.spec, url=endpoint.url, endpoint=endpoint.name)
        other = replace(publication, spec=spec)
        drafts.append(_Draft(other, body, _dedup_key(other, body)))
    return drafts


def _dedup_key(publication: Publication, body: bytes) -> str | None:
    """Return what equal publishes have in common (3.7): for a URL group, each endpoint has its own."""
    if publication.dedup_id is None and not publication.hash_content:
        return None
    if publication.dedup_id is not None:
        spec = publication.spec
        own = "" if spec.topic is None else f":{spec.url}"
        return f"id:{publication.dedup_id}{own}"
    return f"hash:{content_hash(publication, body)}"


def _answer(accepted: list[Accepted], endpoints: list[Endpoint]) -> Any:
    if endpoints[0].topic is None:
        return _result(accepted[0])
    return [_result(one) for one in accepted]


def _result(accepted: Accepted) -> dict[str, Any]:
    data: dict[str, Any] = {"messageId": accepted.message_id, "url": accepted.url}
    if accepted.deduplicated:
        data["deduplicated"] = True
    return data


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        Refusal: 412 for one beyond `limit` bytes.
    """
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
        unknown = set(item) - {"destination", "headers", "body", "queue"}
        if unknown:
            raise bad_request(f"batch item {index}: unknown field {min(unknown)[:60]!r}")
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


def content_hash(publication: Publication, body: bytes) -> str:
    """Return the content-based id: destination, body, `Content-Type` and forwarded headers (3.7)."""
    spec = publication.spec
    destination = [spec.url] if spec.topic is None else [spec.topic, spec.url]
    digest = sha256(json.dumps([*destination, sorted(spec.headers)]).encode())
    digest.update(b"\0")
    digest.update(body)
    return digest.hexdigest()
