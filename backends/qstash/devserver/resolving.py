"""Deliveries meant for public hosts that go to local addresses: `--resolve HOST=URL`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from queuebridge.errors import ConfigurationError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FORM: Final = "HOST=URL or HOST:PORT=URL, for example api.example.com=http://127.0.0.1:3000"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where the deliveries for one public host go.

    Attributes:
        host: In lower case, without brackets.
        port: Only deliveries for this port; None for every port.
        url: What takes the place of scheme, host and port; its path, if any, goes before the path.
    """

    host: str
    port: int | None
    url: str

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """Return what `HOST[:PORT]=URL` says.

        Raises:
            ConfigurationError: it is not of this form; says what is wrong.
        """
        if "@" in text:  # not shown: it may be a password
            raise ConfigurationError(f"--resolve: neither HOST nor URL may have a user or password. Write {_FORM}.")
        name, separator, url = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--resolve {text!r}: there is no '='. Write {_FORM}.")
        host, port = _host_and_port(name.strip(), text)
        return cls(host, port, _local_url(url.strip(), text))


class Resolver:
    """Finds where a delivery goes.

    Raises (on construction):
        ConfigurationError: one host and port is given twice.
    """

    def __init__(self, resolutions: Iterable[Resolution]) -> None:
        self._places: dict[tuple[str, int | None], str] = {}
        for resolution in resolutions:
            key = (resolution.host, resolution.port)
            if key in self._places:
                port = "" if resolution.port is None else f":{resolution.port}"
                raise ConfigurationError(f"--resolve: {resolution.host}{port} is given twice. Give it one URL.")
            self._places[key] = resolution.url
        # The same few destinations are asked for again and again.
        self.place_of = lru_cache(maxsize=1024)(self._place_of)

    def _place_of(self, url: str) -> tuple[str, str] | None:
        """Return the local URL of a destination and the `Host` header to send there; None if it is not resolved.

        The header is that of the public URL, as from a reverse proxy: what a receiver says about its own address
        stays true. A host with a port goes before one without.
        """
        parts = urlsplit(url)
        host = _canonical_host(parts.hostname or "")
        port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(parts.scheme.lower())
        place = self._places.get((host, port)) or self._places.get((host, None))
        if place is None:
            return None
        local = urlsplit(place)
        userinfo, at, public = parts.netloc.rpartition("@")
        path = local.path.rstrip("/") + (parts.path or "/")
        return (
            urlunsplit((local.scheme, userinfo + at + local.netloc, path, parts.query, "")),
            public,
        )


def _host_and_port(name: str, text: str) -> tuple[str, int | None]:
    if not name:
        raise ConfigurationError(f"--resolve {text!r}: the host before '=' is missing. Write {_FORM}.")
    if "/" in name:
        raise ConfigurationError(
            f"--resolve {text!r}: before '=' stands a host, without scheme and path. Write {_FORM}."
        )
    try:
        parts = urlsplit(f"//{name}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"--resolve {text!r}: {error}. Write {_FORM}.") from None
    if not host or parts.netloc != name or name.endswith(":") or any(character.isspace() for character in name):
        raise ConfigurationError(f"--resolve {text!r}: {name!r} is no host. Write {_FORM}.")
    return _canonical_host(host), port


def _local_url(url: str, text: str) -> str:
    if not url:
        raise ConfigurationError(f"--resolve {text!r}: the URL after '=' is missing. Write {_FORM}.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"--resolve {text!r}: {error}. Write {_FORM}.") from None
    if parts.scheme.lower() not in _DEFAULT_PORTS:
        raise ConfigurationError(
            f"--resolve {text!r}: the URL after '=' must begin with http:// or https://. Write {_FORM}."
        )
    if not host:
        raise ConfigurationError(f"--resolve {text!r}: the URL has no host. Write {_FORM}.")
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        raise ConfigurationError(
            f"--resolve {text!r}: the URL may have a path, but no query, fragment or space: "
            "path and query come from the delivery."
        )
    return url


def _canonical_host(host: str) -> str:
    host = host.lower().rstrip(".")
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host  # an odd name is compared as it is
