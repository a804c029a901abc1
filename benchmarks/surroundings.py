"""What a benchmark runs beside: child processes, ports, and a Redis that is left as it was found."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import redis
import rq

HERE = Path(__file__).parent
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/14")
QUEUE = "benchmark"
CALLS = 200


@contextlib.contextmanager
def cleaned(*patterns: str, jobs: rq.Queue | None = None) -> Iterator[None]:
    """Delete keys of the benchmark, and the jobs of its queue, when the block ends."""
    try:
        yield
    finally:
        client = redis.Redis.from_url(REDIS_URL)
        if jobs is not None:
            # By their ids: the Redis may hold jobs of somebody else.
            jobs.delete(delete_jobs=True)
        for pattern in patterns:
            keys = list(client.scan_iter(pattern, count=1000))
            for start in range(0, len(keys), 1000):
                client.delete(*keys[start : start + 1000])


@contextlib.contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for the duration of the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def child(command: list[str], ready: Callable[[], bool], environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run a process for the duration of the block, from when it is ready."""
    # Standard output is for the numbers.
    process = subprocess.Popen(command, env=environment, cwd=HERE, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 20
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not get ready")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def listening(port: int) -> bool:
    """Return whether something answers on the port."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
        return True
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
