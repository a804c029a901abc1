"""The embedded QStash server under load: publishes, deliveries, punctuality, a million waiting messages, a restart.

    python benchmarks/devserver.py [--only PART] [--seconds S] [--waiting N]

The load comes from another process. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surroundings import HERE, free_port, listening

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

BODY = b'{"order": 12345, "note": "a body of ordinary size", "items": [1, 2, 3, 4, 5]}'
CONNECTIONS = 8
BATCH = 500
NOWHERE = "http://127.0.0.1:9/orders"
LONGEST_SECONDS = 600


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    started_in: float

    def resident_mib(self) -> float:
        """Return how much memory it has, in MiB."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found.group(1)) / 1024

    def request(self, destination: str, *headers: str) -> bytes:
        """Return the bytes of one publish."""
        lines = [
            f"POST /v2/publish/{destination} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {DEFAULT_DEV_USER.token}",
            "Content-Type: application/json",
            *headers,
            f"Content-Length: {len(BODY)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + BODY

    def batch(self, destination: str, headers: dict[str, str], size: int) -> bytes:
        """Return the bytes of a batch of equal messages."""
        item = {"destination": destination, "headers": headers, "body": BODY.decode()}
        content = json.dumps([item] * size).encode()
        lines = [
            "POST /v2/batch HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {DEFAULT_DEV_USER.token}",
            f"Content-Length: {len(content)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    def fill(self, count: int) -> None:
        """Have so many messages wait."""
        headers = {"Content-Type": "application/json", "Upstash-Delay": "1d"}
        self.publish(self.batch(NOWHERE, headers, BATCH), count=-(-count // BATCH))

    def publish(self, request: bytes, *, seconds: float = LONGEST_SECONDS, count: int = 0, rate: int = 0) -> float:
        """Publish from another process, for a time or so many times; return publishes per second."""
        numbers = (self.port, seconds, CONNECTIONS, count, rate)
        command = [sys.executable, str(HERE / "load.py"), *map(str, numbers)]
        return float(subprocess.run(command, input=request, capture_output=True, check=True).stdout)

    def created(self, count: int) -> dict[str, float]:
        """Return when each of the newest messages was accepted, in Unix seconds, by its id."""
        found: dict[str, float] = {}
        cursor = ""
        while len(found) < count:
            url = f"http://127.0.0.1:{self.port}/v2/events?state=CREATED&count=1000{cursor}"
            page = fetch(url, DEFAULT_DEV_USER.token)
            found.update((event["messageId"], event["time"] / 1000) for event in page["events"])
            if "cursor" not in page:
                break
            cursor = f"&cursor={page['cursor']}"
        return found


def fetch(url: str, token: str = "") -> Any:
    """Return what a URL answers, from JSON."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
        return json.load(answer)


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run a process from when it listens; yields it, and how long that took, in seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or listening(port))
        if process.poll() is not None:
            raise SystemExit(f"{command} did not start")
        yield process, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(LONGEST_SECONDS)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds.

    Raises:
        SystemExit: It does not within ten minutes.
    """
    deadline = time.monotonic() + LONGEST_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain")
        time.sleep(0.05)


@contextlib.contextmanager
def server(*options: str) -> Iterator[Server]:
    """Run the embedded server."""
    port = free_port()
    command = [sys.executable, "-m", "queuebridge", "devserver", "--port", str(port), *options]
    with running(command, port) as (process, seconds):
        yield Server(process, port, seconds)


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """Run a receiver that answers at once; yields its URL."""
    port = free_port()
    with running([sys.executable, str(HERE / "counting_receiver.py"), str(port)], port):
        yield f"http://127.0.0.1:{port}/"


def row(name: str, figure: float, unit: str, budget: float, *, at_most: bool = False) -> None:
    """Print a figure beside what it is to be."""
    met = figure <= budget if at_most else figure >= budget
    bound = "at most" if at_most else "at least"
    print(f"{name:58} {figure:10.1f} {unit:18} {bound} {budget:g}{'' if met else '   NOT MET'}", flush=True)


def publishes(seconds: float, folder: Path) -> None:
    """Measure durable publishes from several connections."""
    with server("--db", str(folder / "publishes")) as durable:
        rate = durable.publish(durable.request(NOWHERE, "Upstash-Delay: 1d"), seconds=seconds)
    row(f"durable publishes, {CONNECTIONS} connections", rate, "per second", 2000)


def deliveries(seconds: float, folder: Path) -> None:
    """Measure deliveries of messages that all fall due at once."""
    count = int(2000 * seconds)
    with receiver() as url, server("--db", str(folder / "deliveries")) as durable:
        due = int(time.time() + count / 1000 + 5)
        durable.publish(durable.request(url, f"Upstash-Not-Before: {due}"), count=count)
        late = time.time() - due
        arrived: dict[str, Any] = {}

        def all_came() -> bool:
            came = fetch(url + "arrivals")
            arrived.update(came["times"])
            return len(arrived) >= count

        if late > 0:
            print(f"publishing took {late:.1f} s longer than planned: the figure is too high", file=sys.stderr)
        wait_until(all_came)
    times = sorted(arrived.values())
    row("deliveries to a receiver that answers at once", count / (times[-1] - times[0]), "per second", 1500)


def punctuality(seconds: float, folder: Path) -> None:
    """Measure how late delayed messages come to their receiver when the server has time."""
    rate, delay = 200, 3
    count = int(rate * seconds)
    with receiver() as url, server("--db", str(folder / "punctuality")) as durable:
        durable.publish(durable.request(url, f"Upstash-Delay: {delay}s"), count=count, rate=rate)
        time.sleep(delay + 2)
        arrived = fetch(url + "arrivals")["times"]
        created = durable.created(count)
    late = sorted((arrived[name] - moment - delay) * 1000 for name, moment in created.items())
    row(f"late by, p99 of {count} at {rate} per second", statistics.quantiles(late, n=100)[98], "ms", 50, at_most=True)


def waiting(seconds: float, folder: Path, number: int) -> None:
    """Measure memory and publishing with many messages waiting, and a restart with them."""
    with server("--memory") as memory:
        request = memory.request(NOWHERE, "Upstash-Delay: 1d")
        empty = memory.publish(request, seconds=seconds)
        memory.fill(number - int(empty * seconds))
        row(f"memory with {number:,} messages waiting", memory.resident_mib(), "MiB", 1536, at_most=True)
        full = memory.publish(request, seconds=seconds)
    row("publishing with them, to an empty server's", full / empty, "times", 0.8)
    path = str(folder / "waiting")
    with server("--db", path) as durable:
        durable.fill(number)
    with server("--db", path) as durable:
        row("restart with them", durable.started_in, "s", 20, at_most=True)
        row("memory after it", durable.resident_mib(), "MiB", 1536, at_most=True)


def main() -> None:
    """Run the parts that were asked for."""
    parts: dict[str, Callable[[float, Path], None]] = {
        "publishes": publishes,
        "deliveries": deliveries,
        "punctuality": punctuality,
        "waiting": lambda seconds, folder: waiting(seconds, folder, arguments.waiting),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=parts, help="run one part")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="how many messages wait")
    arguments = parser.parse_args()
    for name, part in parts.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                part(arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()
