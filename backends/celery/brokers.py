"""Which broker a connection leads to, and whether it is that of an app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import celery
import kombu

from queuebridge.errors import OptionNotSupported

_OWN_HOST = ("127.0.0.1", "::1", "")
# Those by which one server holds several sets of queues.
_APART = ("global_keyprefix", "queue_name_prefix", "master_name", "region", "data_folder_out")


@dataclass(frozen=True)
class _Address:
    """Where one server is, and which of its queues are meant; nothing of who asks."""

    transport: str
    host: str = ""
    port: int | None = None
    virtual_host: str = ""
    apart: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        # What follows a question mark may be a password.
        where = f"{self.transport}://{self.host}{port}/{self.virtual_host.partition('?')[0]}"
        named = ", ".join(f"{name}={value}" for name, value in self.apart)
        return f"{where} ({named})" if named else where


class BrokerCheck:
    """Refuses producers that lead to another broker than that of an app.

    Args:
        app: The app.
    """

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._known: WeakSet[Any] = WeakSet()

    def check(self, producer: Any) -> None:
        """Check the broker of a producer.

        Two lists of servers are the same broker if they have one in common. What has no connection is not looked at.

        Raises:
            OptionNotSupported: It is another broker.
        """
        connection = getattr(producer, "connection", None)
        if not isinstance(connection, kombu.Connection) or connection in self._known:
            return
        theirs = _addresses(connection)
        ours = _addresses(self._app.connection_for_write()) | _addresses(self._app.connection_for_read())
        if not theirs & ours:
            raise OptionNotSupported(
                "celery",
                "producer= or connection=",
                f"it leads to {_shown(theirs)}, and jobs of the app {self._app.main!r} go where that one's broker is: "
                f"{_shown(ours)}. Leave the option out, or leave the task in stage legacy.",
            )
        self._known.add(connection)


def _addresses(connection: kombu.Connection) -> frozenset[_Address]:
    """Return where a connection may lead: where it leads now, and to which servers it would switch."""
    options = connection.transport_options
    others = [kombu.Connection(url, transport_options=options) for url in connection.alt or ()]
    return frozenset(_address(one) for one in (connection, *others))


def _address(connection: Any) -> _Address:
    transport = connection.get_transport_cls()
    if transport.driver_type == "memory":
        # All of a process share one.
        return _Address("memory")
    options = connection.transport_options or {}
    apart = tuple((name, str(options[name])) for name in _APART if options.get(name))
    if "://" in (connection.hostname or ""):
        # Not parsed by kombu: a database, a cloud service, a socket.
        url = urlsplit(connection.hostname)
        path = url.path + (f"?{url.query}" if url.query else "")
        return _Address(url.scheme, _host(url.hostname), _port(url), path, apart)
    default = connection.transport.default_connection_params
    host = connection.hostname or default.get("hostname")
    port = connection.port or default.get("port") or transport.default_port
    virtual_host = connection.virtual_host or default.get("virtual_host") or "/"
    if transport.driver_type == "redis":
        # The number of a database, of which 0 is the default.
        virtual_host = str(virtual_host).lstrip("/") or "0"
    return _Address(transport.driver_type, _host(host), int(port) if port else None, str(virtual_host), apart)


def _host(name: str | None) -> str:
    name = (name or "").lower().rstrip(".")
    return "localhost" if name in _OWN_HOST else name


def _port(url: Any) -> int | None:
    try:
        port: int | None = url.port
    except ValueError:
        return None
    return port


def _shown(addresses: frozenset[_Address]) -> str:
    return " or ".join(sorted(str(address) for address in addresses))
