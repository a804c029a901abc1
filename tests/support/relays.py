"""A TCP relay in front of a server, which a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Passes bytes between a local port and a server, as long as it is not cut.

    Args:
        port: The port of 127.0.0.1 to listen on.
        host, target: The server.
    """

    def __init__(self, port: int, host: str, target: int) -> None:
        self.port = port
        self._address = ("127.0.0.1", port)
        self._server = (host, target)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._answers_to_lose = 0

    def __enter__(self) -> Relay:
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def mend(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(self._address)
        self._start(self._listen, self._listener)

    def cut(self) -> None:
        """Break all connections and accept no more."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
            if self._listener is not None:
                sockets.append(self._listener)
                self._listener = None
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for each in sockets:
            each.close()

    def lose_answers(self, count: int = 1) -> None:
        """Break a connection when the server has answered on it, so that the answer is lost; so often."""
        with self._lock:
            self._answers_to_lose = count

    def _loses_answer(self, source: socket.socket) -> bool:
        with self._lock:
            if not self._answers_to_lose or source.getpeername()[1] != self._server[1]:
                return False
            self._answers_to_lose -= 1
            return True

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            with self._lock:
                self._sockets += [client, server]
            self._start(self._pass, client, server)
            self._start(self._pass, server, client)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._loses_answer(source):
                    break
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _start(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
