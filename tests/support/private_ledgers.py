"""Servers with a ledger that one test has to itself, so that it may crash and start them again."""

from __future__ import annotations

import signal
from collections.abc import Callable

from postgres_service import PostgresService
from processes import free_port, wait_until
from redis_service import RedisService
from services import OwnServer, Service, binary


class PrivateLedger:
    """A server whose acknowledged writes outlive its death.

    Args:
        kind: The service.
        own: Its folder.
        command: How it is started.
        url: Its address.
        death: The signal at which it ends at once, without a farewell to its clients.
    """

    def __init__(
        self, kind: type[Service], own: OwnServer, command: list[str], url: str, *, death: signal.Signals
    ) -> None:
        self._kind = kind
        self._own = own
        self._command = command
        self._death = death
        self.url = url

    def start(self) -> None:
        """Start it, and wait until it answers."""

        def answers() -> bool:
            if not self._own.alive():
                # The remains of its predecessor may still be in the way.
                self._own.start(self._command)
            return self._kind.problem(self.url) is None

        wait_until(answers, 30, what=f"the private {self._kind.name}; it says: {self._own.log()}")

    def crash(self) -> None:
        """End it at once."""
        self._own.crash(self._death)

    def stop(self) -> None:
        """End it for good, and remove its data."""
        self._own.stop(signal.SIGINT)


def private_redis() -> PrivateLedger:
    """Return a Redis that writes each command to disk before it answers; not started yet."""
    own = OwnServer("redis-ledger")
    port = str(free_port())
    command = [
        binary("redis-server", "valkey-server"),
        *("--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", str(own.folder)),
        *("--appendonly", "yes", "--appendfsync", "always"),
    ]
    return PrivateLedger(RedisService, own, command, f"redis://127.0.0.1:{port}/0", death=signal.SIGKILL)


def private_postgres() -> PrivateLedger:
    """Return a PostgreSQL; not started yet."""
    own, command, url = PostgresService.prepare()
    # Its processes do not share a group. This is its "immediate" end: no checkpoint, recovery at the next start.
    return PrivateLedger(PostgresService, own, command, url, death=signal.SIGQUIT)


PRIVATE_LEDGERS: dict[str, Callable[[], PrivateLedger]] = {"redis": private_redis, "postgres": private_postgres}
