"""Which requests are meant for this server, by their `Host` header.

A web site can let its own name point to the loopback (DNS rebinding); a browser then takes the server's
answers for that site's own. What the page shows is given only to names that no site can point anywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence


def is_own_host(headers: Sequence[str], listening: str) -> bool:
    """Say whether a request came to the loopback or to the address the server was told to listen on.

    Args:
        headers: the values of all `Host` headers; one is due.
        listening: name or address. For one that stands for all addresses (`0.0.0.0`, `::`) any address
            in figures will do: only names can be pointed elsewhere.
    """
    if len(headers) != 1:
        return False
    name = _without_port(headers[0].strip().lower())
    if name is None:
        return False
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost") or name == listening.lower()
    told = _address(listening)
    return address.is_loopback or address == told or (told is not None and told.is_unspecified)


def _without_port(host: str) -> str | None:
    """Return name or address of a `Host` header, None for one that is malformed."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in {"", ":"}:
            return None
    else:
        name, _, port = host.partition(":")
    if not name or (port and not (port.isascii() and port.isdigit())):
        return None
    return name.removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
