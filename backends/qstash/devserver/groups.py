"""URL groups (protocol section 7), and what any destination stands for: one URL, or each of a group's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from queuebridge.backends.qstash.devserver.destination import check_destination
from queuebridge.backends.qstash.devserver.messages import Document, HeaderPairs, UrlGroup

if TYPE_CHECKING:
    from queuebridge.backends.qstash.devserver.account import Account

KIND: Final = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One URL that a publish goes to.

    `topic` and `name` are those of the URL group and of the endpoint in it; `headers` are the group's
    default headers, which any header of the publish overrides. All three are empty for a plain URL.
    """

    url: str
    topic: str | None = None
    name: str | None = None
    headers: HeaderPairs = ()


def resolve(account: Account, destination: str) -> list[Endpoint]:
    """Return what a destination stands for now: itself if it is a URL, else the endpoints of a URL group.

    Never empty: a group without endpoints does not exist.

    Raises:
        Refusal: 400 for a bad URL, 404 for an unknown URL group.
    """
    group = account.groups.get(destination)
    if group is None:
        return [_plain(destination)]
    return [
        Endpoint(url=url, topic=group.name, name=name, headers=group.headers)
        for url, name in group.endpoints.items()
    ]


@lru_cache(maxsize=2048)
def _plain(destination: str) -> Endpoint:
    return Endpoint(url=check_destination(destination))


def encode_group(group: UrlGroup) -> Document:
    """Return the document of a URL group."""
    data = {
        "endpoints": list(group.endpoints.items()),
        "headers": group.headers,
        "created": group.created_ms,
        "updated": group.updated_ms,
    }
    return Document(account=group.account, kind=KIND, key=group.name, data=data)


def decode_group(document: Document) -> UrlGroup:
    """Return the URL group of its document."""
    data = document.data
    return UrlGroup(
        account=document.account,
        name=document.key,
        endpoints=dict(data["endpoints"]),
        headers=tuple((name, value) for name, value in data["headers"]),
        created_ms=data["created"],
        updated_ms=data["updated"],
    )
