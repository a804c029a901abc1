"""What the resources of the HTTP API have in common: the request, and answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request, not_found
from queuebridge.backends.qstash.devserver.filters import Query

MAX_JSON_BYTES: Final = 10 * 1024 * 1024

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request whose token was accepted.

    Attributes:
        http: As aiohttp has it.
        account: Of the token.
        method: In upper case.
        path: As sent, without the query string.
        rest: What follows `/v2/<resource>/` in the path, as sent; empty if nothing does.
        query: The query string, as sent.
    """

    http: web.BaseRequest
    account: Account
    method: str
    path: str
    rest: str
    query: str

    def no_route(self) -> Refusal:
        """Return the refusal of a path or method that the resource does not have."""
        return not_found(f"no such endpoint: {self.method} {self.path[:60]}")


@dataclass(frozen=True, slots=True)
class Services:
    """What resources work with; `wake` tells the driver that something may be due."""

    engine: Engine
    wake: Callable[[], None]


Answer = Callable[[ApiRequest], Awaitable[web.StreamResponse]]


def respond(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON answer."""
    return web.Response(
        body=_encode(data).encode("ascii"), status=status, headers=headers, content_type="application/json"
    )


async def read_json(request: ApiRequest, default: Any = None) -> Any:
    """Return the JSON body of a request, `default` for an empty one.

    Raises:
        Refusal: 400 for a body that is too large or no JSON.
    """
    if (request.http.content_length or 0) > MAX_JSON_BYTES:
        raise bad_request("the body is too large")
    body = await request.http.read()
    if not body.strip():
        return default
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not valid JSON") from None


async def read_object(request: ApiRequest, known: set[str]) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        Refusal: 400 for anything else, or an object with other fields than the known ones.
    """
    data = await read_json(request)
    if not isinstance(data, dict):
        raise bad_request("the body must be a JSON object")
    unknown = sorted(set(data) - known)
    if unknown:
        raise bad_request(f"unknown field {unknown[0][:60]!r}; known: {', '.join(sorted(known))}")
    return data


async def read_ids(request: ApiRequest, wanted: Query, name: str) -> list[str] | None:
    """Return the ids a bulk request names, or None when it names none: an empty list is a list.

    Raises:
        Refusal: 400 for a body that is not an object with that list, which must never mean "all".
    """
    if name in wanted:
        return wanted.ids(name)
    data = await read_json(request)
    if data is None or data == {}:
        return None
    ids = data.get(name) if isinstance(data, dict) and set(data) == {name} else None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise bad_request(f'the body must be {{"{name}": [...]}}, a list of strings')
    return ids


def refuse_empty_id(request: ApiRequest) -> None:
    """Refuse a path that ends in a slash.

    The hosted service takes `DELETE /v2/messages/` for "all": an empty id must not do that.

    Raises:
        Refusal: 400.
    """
    if request.path.endswith("/"):
        raise bad_request("the id is empty")


def query_token(query: str, parameter: str) -> str | None:
    """Return the token of a query string, or None."""
    for name, value in parse_qsl(query):
        if name.lower() == parameter:
            return value
    return None
