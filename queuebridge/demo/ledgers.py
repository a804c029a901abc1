"""The ledger of the migration: in a SQLite file of the demo's own, or in a Redis of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from queuebridge.demo.broker import own_redis
from queuebridge.demo.world import World
from queuebridge.errors import MissingExtra
from queuebridge.loading import upgrade_ledger

LEDGERS = ("sqlite", "redis")


@contextlib.contextmanager
def provide_ledger(world: World, chosen: str | None, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Give the kind and the address of a ledger that nobody else uses, for the duration of the block.

    Args:
        world: Where its files or its server belong.
        chosen: `sqlite` or `redis`; None for SQLite, or Redis where the extra for SQL is not installed.
        environ: The user's environment, to look for redis-server.

    Raises:
        MissingExtra: SQLite was chosen, and the extra is not installed.
    """
    if chosen != "redis":
        url = f"sqlite:///{world.folder / 'ledger.db'}"
        try:
            upgrade_ledger(url)
        except MissingExtra:
            if chosen is not None:
                raise
        else:
            yield "sqlite", url
            return
    # Not the user's: the ledger has the same keys in every Redis.
    with own_redis(world.processes, environ, world.base, world.folder) as redis:
        yield "redis", redis.url
