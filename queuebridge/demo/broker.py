"""The Redis that the demo's legacy backends use: a given one, one found on the machine, or an embedded one."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from queuebridge.bridge import Bridge
from queuebridge.failures import redact
from queuebridge.processes import Processes, free_port

_READY_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A Redis server.

    Attributes:
        url: Its address, credentials included.
        description: What it is, without credentials.
    """

    url: str
    description: str


@contextlib.contextmanager
def find_broker(
    processes: Processes, environ: Mapping[str, str], env: Mapping[str, str], folder: Path
) -> Iterator[Broker]:
    """Provide a Redis for the duration of the block.

    Args:
        processes: Where a server that has to be started belongs.
        environ: The user's environment; REDIS_URL names a server to use.
        env: The environment of child processes.
        folder: Where a server may keep files.

    Raises:
        QueueBridgeError: REDIS_URL is not the address of a Redis, or it cannot be reached.
    """
    given = environ.get("REDIS_URL", "").strip()
    if given:
        # Here, where it is one line; a worker would only not get ready.
        Bridge("rq", environ={"REDIS_URL": given}).backend.ping()
        yield Broker(url=given, description=f"Redis at {redact(given)} (REDIS_URL)")
        return
    with own_redis(processes, environ, env, folder) as broker:
        yield broker


@contextlib.contextmanager
def own_redis(
    processes: Processes, environ: Mapping[str, str], env: Mapping[str, str], folder: Path
) -> Iterator[Broker]:
    """Provide a Redis that nobody else uses for the duration of the block; see `find_broker` for the arguments."""
    port = free_port()
    binary = shutil.which("redis-server", path=environ.get("PATH"))
    if binary is not None:
        options = {"bind": "127.0.0.1", "port": str(port), "save": "", "appendonly": "no", "dir": str(folder)}
        command = [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]
        description = f"{binary}, started for the demo"
    else:
        command = [sys.executable, "-m", "queuebridge.demo.embedded_redis", str(port)]
        description = "an embedded Redis (fakeredis); no redis-server was found"
    server = processes.start("redis", command, env=env)
    server.wait_for_line("Ready to accept connections", _READY_SECONDS)
    try:
        yield Broker(url=f"redis://127.0.0.1:{port}/0", description=description)
    finally:
        processes.stop(server)
