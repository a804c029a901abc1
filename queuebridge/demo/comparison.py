"""Run the same jobs through each backend, with real processes, and compare the effects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queuebridge.bridge import Bridge, Call
from queuebridge.demo.broker import find_broker
from queuebridge.demo.effects import BackendResult, Sent, check_effects, read_effects
from queuebridge.demo.leftovers import forget
from queuebridge.demo.progress import Progress
from queuebridge.demo.tasks import measure_file
from queuebridge.demo.world import (
    READY_SECONDS,
    WORKER_READY,
    PushPorts,
    World,
    cleaned,
    start_receiver,
    start_server,
    wait_for_receiver,
    wait_for_server,
)
from queuebridge.options import EnqueueOptions
from queuebridge.processes import Processes

BACKENDS = ("qstash", "celery", "rq")
# As long as effects keep coming a slow machine is not a lost job.
_STALLED_SECONDS = 20
_BATCH = 25
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The end of a comparison.

    Attributes:
        backends: What became of the jobs, by backend.
        broker: The Redis that was used, if any.
    """

    backends: Sequence[BackendResult]
    broker: str | None

    @property
    def ok(self) -> bool:
        """Return whether every job of every backend took effect once."""
        return bool(self.backends) and all(result.ok for result in self.backends)

    def as_json(self) -> dict[str, Any]:
        """Return the result as the demo's JSON output has it."""
        return {"ok": self.ok, "backends": [backend.as_json() for backend in self.backends]}


def compare_backends(
    files: Sequence[Path],
    *,
    backends: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    progress: Progress,
    on_line: Callable[[str, str], None],
) -> Comparison:
    """Run one job for each file through each backend.

    Args:
        files: The files to read.
        backends: Which backends, in this order.
        folder: An empty folder for effects and for the processes to run in.
        environ: The user's environment.
        progress: Is told how far it is.
        on_line: Gets the name and each line of the child processes.

    Raises:
        ProcessFailed: A process could not be started.
        QueueBridgeError: A job was not accepted.
    """
    base = cleaned(environ)
    results = []
    needs_broker = any(backend != "qstash" for backend in backends)
    with (
        Processes(on_line) as processes,
        find_broker(processes, environ, base, folder) if needs_broker else nullcontext() as broker,
    ):
        world = World(processes=processes, folder=folder, broker=broker, base=base)
        for backend in backends:
            progress.start(backend, len(files))
            with _RUNNING[backend](world) as environment, Bridge(backend, environ=environment) as bridge:
                sent = _send(bridge, files, _effects_file(world, backend), progress)
                _wait(backend, sent, _effects_file(world, backend), progress)
            # Only now: what an executor was still doing when it was told to stop has had its effect.
            effects = read_effects(_effects_file(world, backend))
            progress.done(backend, len({effect["job_id"] for effect in effects}))
            results.append(check_effects(backend, sent, effects))
        description = broker.description if broker is not None else None
    return Comparison(backends=results, broker=description)


def _send(bridge: Bridge, files: Sequence[Path], effects: Path, progress: Progress) -> dict[str, Sent]:
    sent: dict[str, Sent] = {}
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        now = time.time()
        receipts = bridge.enqueue_many(
            Call(measure_file, (path, effects), options=EnqueueOptions(metadata={"demo": True})) for path in batch
        )
        for path, receipt in zip(batch, receipts, strict=True):
            sent[receipt.job_id] = Sent(path=path, at=now)
        progress.sent(bridge.backend.name, len(sent))
    return sent


def _wait(backend: str, sent: Mapping[str, Sent], effects: Path, progress: Progress) -> None:
    seen = 0
    last_news = time.monotonic()
    while seen < len(sent) and time.monotonic() - last_news < _STALLED_SECONDS:
        now_seen = len({effect["job_id"] for effect in read_effects(effects)})
        if now_seen > seen:
            seen, last_news = now_seen, time.monotonic()
            progress.done(backend, seen)
        time.sleep(_POLL_SECONDS)


def _effects_file(world: World, backend: str) -> Path:
    return world.folder / f"effects-{backend}.jsonl"


@contextmanager
def _qstash(world: World) -> Iterator[dict[str, str]]:
    ports = PushPorts()
    environment = world.environment(**ports.variables())
    server = start_server(world, environment, ports)
    wait_for_server(server, ports)
    receiver = start_receiver(world, environment, ports)
    wait_for_receiver(receiver, ports)
    yield environment
    # The server first: it lets the deliveries under way end.
    world.processes.stop(server)
    world.processes.stop(receiver)


@contextmanager
def _celery(world: World) -> Iterator[dict[str, str]]:
    environment = world.environment(CELERY_BROKER_URL=world.redis_url)
    with _worker(world, {**environment, "QUEUEBRIDGE_BACKEND": "celery"}, "--concurrency", "2"):
        yield environment


@contextmanager
def _rq(world: World) -> Iterator[dict[str, str]]:
    # Jobs and results of the demo would stay for minutes on a Redis that may be the user's own.
    environment = world.environment(REDIS_URL=world.redis_url, QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS="0")
    with _worker(world, {**environment, "QUEUEBRIDGE_BACKEND": "rq"}):
        yield environment


_RUNNING = {"qstash": _qstash, "celery": _celery, "rq": _rq}


@contextmanager
def _worker(world: World, environment: Mapping[str, str], *options: str) -> Iterator[None]:
    worker = world.start("worker", environment, "worker", *options)
    worker.wait_for_line(WORKER_READY, READY_SECONDS)
    yield
    world.processes.stop(worker)
    forget(world.redis_url, world.queue)
