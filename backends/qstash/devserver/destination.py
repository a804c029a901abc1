"""Reading `/v2/publish/<destination>` paths: the raw remainder is the destination (3.2, 3.6)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus, urlsplit

from queuebridge.backends.qstash.devserver.errors import (
    INVALID_SCHEME,
    Refusal,
    bad_request,
    not_found,
    unsupported,
)
from queuebridge.backends.qstash.protocol import TOKEN_PARAMETER

NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_OURS: Final = "upstash-"


def split_query(query: str) -> tuple[dict[str, str], str]:
    """Split a raw query string into our configuration parameters and the destination's rest.

    Ours are `qstash_token` and every name that starts with `upstash-`; they come back decoded, with
    lower-case names. The rest keeps its spelling and order.
    """
    ours: dict[str, str] = {}
    rest: list[str] = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        lowered = name.lower()
        if lowered == TOKEN_PARAMETER or lowered.startswith(_OURS):
            ours.setdefault(lowered, unquote_plus(value))
        else:
            rest.append(part)
    return ours, "&".join(rest)


@lru_cache(maxsize=2048)
def _problem(destination: str) -> Refusal | None:
    """Return why a text is not a URL destination, or None: scheme and host are all that is checked."""
    if destination.lower().startswith(("http://", "https://")):
        flaw = _flaw(destination)
        return None if flaw is None else bad_request(f"invalid destination url: {flaw}")
    if destination.startswith("api/"):
        return unsupported(f"destination {destination[:60]!r}", 400)
    if NAME.fullmatch(destination):
        return not_found(f"url group {destination[:60]} not found; a URL starts with http:// or https://")
    return bad_request(INVALID_SCHEME)


def _flaw(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        url.encode("utf-8")
    except UnicodeEncodeError:
        return "not valid UTF-8"
    except ValueError as error:
        return str(error)
    if not host:
        return "the host is missing"
    if not url.isprintable() or " " in url or "\\" in parts.netloc:
        return "a character must be percent-encoded"
    return None


def check_destination(destination: str) -> str:
    """Return the destination if it is a URL, unchanged.

    Raises:
        Refusal: 400 for a bad URL, 404 for the name of a URL group.
    """
    problem = _problem(destination)
    if problem is not None:
        raise Refusal(problem.status, problem.text)
    return destination


def check_url(text: str) -> str:
    """Return a text if it is a URL, unchanged.

    Raises:
        Refusal: 400.
    """
    problem = _problem(text)
    if problem is not None:
        raise bad_request(problem.text if problem.status == 400 else INVALID_SCHEME)
    return text


def check_name(kind: str, name: str) -> str:
    """Return the name of a queue or group if it is allowed: letters, digits, `-`, `_` and `.` (2.1).

    Raises:
        Refusal: 400.
    """
    if not NAME.fullmatch(name):
        raise bad_request(f"invalid {kind} {name[:60]!r}: use letters, digits, hyphens, underscores and dots")
    return name
