"""Serving the page: its files without a token, the JSON behind it with one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import web

from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.page.hosts import is_own_host
from queuebridge.backends.qstash.devserver.page.overview import Overview
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services
from queuebridge.backends.qstash.protocol import DEV_USERS

OVERVIEW_PATH: Final = "/_queuebridge/overview"
USERS_PATH: Final = "/_queuebridge/page/users.json"

_SCRIPTS: Final = ("actions.js", "details.js", "dom.js", "page.js", "sections.js", "state.js")
_FILES: Final = {
    "/": ("page.html", "text/html"),
    "/_queuebridge/page/page.css": ("page.css", "text/css"),
    **{f"/_queuebridge/page/{name}": (name, "text/javascript") for name in _SCRIPTS},
}
_HEADERS: Final = {
    # Nothing but the page's own files is loaded, and no text can become markup or script.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str


class Page:
    """Answers for the page; `host` is the name or address the server was told to listen on."""

    def __init__(self, services: Services, host: str) -> None:
        self._host = host
        self._overview = Overview(services)
        folder = files(__package__)
        self._files = {
            path: _File(folder.joinpath(name).read_bytes(), content_type)
            for path, (name, content_type) in _FILES.items()
        }
        # Their tokens are published, and only theirs: a page without a token must not give away another.
        published = [
            {"name": user.name, "token": user.token} for user in services.engine.settings.users if user in DEV_USERS
        ]
        self._files[USERS_PATH] = _File(json.dumps({"users": published}).encode("ascii"), "application/json")

    def file(self, request: web.BaseRequest, path: str) -> web.Response | None:
        """Return a file of the page, or None for a request of something else; no token is looked at.

        Raises:
            Refusal: 403 for a host that is not this server's own.
        """
        found = self._files.get(path)
        if found is None or request.method not in {"GET", "HEAD"}:
            return None
        self._check_host(request)
        return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=_HEADERS)

    async def overview(self, request: ApiRequest) -> web.Response:
        """Answer a request whose path begins with `OVERVIEW_PATH`.

        Raises:
            Refusal: 403 for a host that is not this server's own, 400 or 404 as the API.
        """
        self._check_host(request.http)
        response = self._overview.answer(request, request.path[len(OVERVIEW_PATH) :])
        response.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
        return response

    def _check_host(self, request: web.BaseRequest) -> None:
        if not is_own_host(request.headers.getall("Host", []), self._host):
            raise Refusal(403, f"served for localhost, loopback addresses and {self._host} only: use one of them")
