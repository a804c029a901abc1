"""The Flask receiver of queuebridge, in a thread of the test's process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from queuebridge.bridge import Bridge, set_bridge
from queuebridge.loading import import_optional
from queuebridge.testing.server import QStashServer
from queuebridge.testing.threads import serving


class BridgeReceiver:
    """A running receiver, and the bridge that publishes to it. Made by the fixture `queuebridge_receiver`.

    Attributes:
        url: Its public address, without a slash at the end.
        bridge: The bridge in use while it runs.
    """

    def __init__(self, url: str, bridge: Bridge) -> None:
        self.url = url
        self.bridge = bridge

    @classmethod
    @contextmanager
    def running(cls, server: QStashServer, settings: Mapping[str, str]) -> Iterator[BridgeReceiver]:
        """Run a receiver for the registered tasks, with its bridge as the process's, for the length of a `with` block.

        Args:
            server: Delivers.
            settings: Further variables for the bridge; they win over those that the server gives.

        Raises:
            ConfigurationError: A setting is wrong.
            MissingExtra: Flask, PyJWT or the SDK is not installed.
        """
        application = import_optional("bridge_app", feature="The receiver")
        with _Server(("127.0.0.1", 0), _Handler) as http:
            url = f"http://127.0.0.1:{http.server_port}"
            environ = {**server.env, "QUEUEBRIDGE_BACKEND": "qstash", "QUEUEBRIDGE_PUBLIC_URL": url, **settings}
            with Bridge(environ=environ) as bridge:
                http.set_app(application.create_app(bridge, environ=environ))
                # For the threads in which tasks run, too. Afterwards the next use makes one from the environment.
                set_bridge(bridge)
                try:
                    with serving(http, "queuebridge-receiver"):
                        yield cls(url, bridge)
                finally:
                    set_bridge(None)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A task that hangs must not keep the test run from ending.
    block_on_close = False


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the receiver does."""
