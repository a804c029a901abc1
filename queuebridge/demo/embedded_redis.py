"""An embedded Redis over TCP, for machines without redis-server: `python -m queuebridge.demo.embedded_redis PORT`."""

from __future__ import annotations

import sys
from typing import Any

from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from redis.exceptions import ResponseError


class Handler(TCPFakeRequestHandler):
    """fakeredis' handler, made fit for Celery and RQ workers.

    It closes the connection after each error, although clients expect errors in the normal course of things (a
    script that is not loaded yet); and it writes replies in pieces, which costs 40 ms each as long as the
    operating system waits for more.
    """

    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Prepare the connection."""
        super().setup()
        read = self.current_client.read_response

        def read_with_errors(*args: Any, **kwargs: Any) -> Any:
            try:
                return read(*args, **kwargs)
            except ResponseError as error:
                return error

        self.current_client.read_response = read_with_errors  # type: ignore[method-assign]


def main(port: int) -> None:
    """Serve on loopback until the process is ended."""
    server = TcpFakeServer(("127.0.0.1", port), server_type="redis")
    server.RequestHandlerClass = Handler
    server.daemon_threads = True
    # The line that redis-server prints too.
    sys.stdout.write("Ready to accept connections\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
