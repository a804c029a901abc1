"""`/v2/topics`: URL groups (protocol section 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.destination import check_name, check_url
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found, over_quota
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.groups import KIND, encode_group
from queuebridge.backends.qstash.devserver.messages import UrlGroup
from queuebridge.backends.qstash.devserver.option_values import check_utf8
from queuebridge.backends.qstash.devserver.options import OptionReader, read_directives
from queuebridge.backends.qstash.devserver.request import (
    ApiRequest,
    Services,
    read_object,
    refuse_empty_id,
    respond,
)
from queuebridge.backends.qstash.devserver.views import group_view

Endpoints = dict[str, str | None]


class UrlGroups:
    """Answers for URL groups."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._plan = services.engine.settings.plan
        self._reader = OptionReader(self._plan)

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        Query(request.query, frozenset())
        groups, method = request.account.groups, request.method
        if not request.rest:
            if method != "GET":
                raise request.no_route()
            return respond([group_view(group) for group in groups.values()])
        refuse_empty_id(request)
        encoded, _, part = request.rest.partition("/")
        name = check_name("url group name", unquote(encoded))
        if part == "endpoints" and method == "POST":
            return await self._upsert(request, name)
        if part == "endpoints" and method == "DELETE":
            return await self._remove(request, name)
        if part or method not in {"GET", "DELETE", "PATCH"}:
            raise request.no_route()
        if method == "DELETE":
            return await self._delete(request.account, name)
        if name not in groups:
            raise not_found(f"url group {name} not found")
        if method == "GET":
            return respond(group_view(groups[name]))
        return await self._set_headers(request, name)

    async def _upsert(self, request: ApiRequest, name: str) -> web.Response:
        """Add endpoints, or change the ones of the same name or URL; creates the group."""
        wanted = [_endpoint(item) for item in await _read_endpoints(request)]
        for url, _ in wanted:
            check_url(url)
        account, plan = request.account, self._plan
        group = account.groups.get(name)
        if group is None and len(account.groups) >= plan.max_url_groups:
            raise over_quota("maxTopics", plan.max_url_groups)
        endpoints: Endpoints = {} if group is None else dict(group.endpoints)
        for url, label in wanted:
            endpoints = _with_endpoint(endpoints, url, label)
        if len(endpoints) > plan.max_endpoints_per_group:
            raise over_quota("maxEndpointsPerTopic", plan.max_endpoints_per_group)
        now_ms = int(self._engine.clock() * 1000)
        if group is None:
            group = UrlGroup(
                account=account.user.name,
                name=name,
                created_ms=now_ms,
                updated_ms=now_ms,
                endpoints=endpoints,
            )
        return await self._store(account, replace(group, endpoints=endpoints))

    async def _remove(self, request: ApiRequest, name: str) -> web.Response:
        """Remove endpoints by URL, by name or by both; those that are not there are passed over."""
        unwanted = [_endpoint(item) for item in await _read_endpoints(request)]
        account = request.account
        group = account.groups.get(name)
        if group is None:
            return respond({})
        left = {
            url: label
            for url, label in group.endpoints.items()
            if not any(_means(item, url, label) for item in unwanted)
        }
        if not left:
            return await self._delete(account, name)
        return await self._store(account, replace(group, endpoints=left))

    async def _delete(self, account: Account, name: str) -> web.Response:
        """Delete a group; messages on their way are not touched, and an unknown one is fine."""
        targeting = [schedule.id for schedule in account.schedules.values() if schedule.definition.destination == name]
        if name in account.groups and targeting:
            raise bad_request(f"url group {name} is the destination of schedule {targeting[0]}: delete that first")
        if account.groups.pop(name, None) is not None:
            self._engine.store.remove_document(account.user.name, KIND, name)
        await self._engine.store.commit()
        return respond({})

    async def _set_headers(self, request: ApiRequest, name: str) -> web.Response:
        """Replace the default headers of every publish to the group."""
        data = await read_object(request, {"headers"})
        if not isinstance(data.get("headers"), dict):
            raise bad_request('the body must be {"headers": {...}}')
        headers = tuple(_header(key, value) for key, value in data["headers"].items())
        account = request.account
        # Whatever would make each later publish fail is refused here.
        found = read_directives(headers, {}, token=account.user.token)
        self._reader.publication("http://host", found, now=self._engine.clock())
        group = account.groups.get(name)
        if group is None:
            raise not_found(f"url group {name} not found")
        return await self._store(account, replace(group, headers=headers))

    async def _store(self, account: Account, group: UrlGroup) -> web.Response:
        group = replace(group, updated_ms=max(int(self._engine.clock() * 1000), group.created_ms))
        account.groups[group.name] = group
        self._engine.store.put_document(encode_group(group))
        await self._engine.store.commit()
        return respond(group_view(group))


async def _read_endpoints(request: ApiRequest) -> list[Any]:
    data = await read_object(request, {"endpoints"})
    items = data.get("endpoints")
    if not isinstance(items, list) or not items:
        raise bad_request('the body must be {"endpoints": [...]}, a list that is not empty')
    return items


def _endpoint(item: Any) -> tuple[str, str | None]:
    """Return the URL and the name of one element of a request; an absent URL is empty."""
    if not isinstance(item, dict) or not set(item) <= {"url", "name"}:
        raise bad_request(f"an endpoint must be an object with a url or a name or both, not this {type(item).__name__}")
    url, name = item.get("url") or "", item.get("name") or None
    if not isinstance(url, str) or not isinstance(name, str | None):
        raise bad_request("the url and the name of an endpoint must be strings")
    if not url and name is None:
        raise bad_request("an endpoint needs a url or a name")
    if name is not None:
        check_utf8("an endpoint's name", name)
    return url, name


def _means(wanted: tuple[str, str | None], url: str, name: str | None) -> bool:
    wanted_url, wanted_name = wanted
    return (not wanted_url or wanted_url == url) and (wanted_name is None or wanted_name == name)


def _with_endpoint(endpoints: Endpoints, url: str, name: str | None) -> Endpoints:
    """Return the endpoints with one more, or with the one of the same name or URL changed in its place."""
    if name is None:
        return endpoints if url in endpoints else {**endpoints, url: None}
    if name in endpoints.values():
        kept = [(old, label) for old, label in endpoints.items() if old != url or label == name]
        return {url if label == name else old: label for old, label in kept}
    return {**endpoints, url: name}


def _header(name: str, value: Any) -> tuple[str, str]:
    """Return one default header; several values of it are joined as HTTP does."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) for item in values):
        raise bad_request(f"the value of the header {name[:60]!r} must be a string or a list of strings")
    return name, ", ".join(values)
