"""Run the same jobs through each backend, with real processes, and compare the effects."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from queuebridge.bridge import Bridge, Call
from queuebridge.demo.broker import Broker, find_broker
from queuebridge.demo.effects import BackendResult, Sent, check_effects, read_effects
from queuebridge.demo.tasks import measure_file
from queuebridge.errors import QueueBridgeError
from queuebridge.loading import import_optional
from queuebridge.options import EnqueueOptions
from queuebridge.processes import Child, Processes, command_line, free_port

BACKENDS = ("qstash", "celery", "rq")
_READY_SECONDS = 30
# As long as effects keep coming a slow machine is not a lost job.
_STALLED_SECONDS = 20
_BATCH = 25
_POLL_SECONDS = 0.02
# The user's own settings must not reach the demo's processes: it brings a whole world of its own.
_FOREIGN = ("QUEUEBRIDGE_", "QSTASH_", "CELERY_", "RQ_")


class Progress(Protocol):
    """Is told how far a backend is."""

    def start(self, backend: str, jobs: int) -> None:
        """A backend is about to get this many jobs."""

    def sent(self, backend: str, count: int) -> None:
        """So many jobs were accepted so far."""

    def done(self, backend: str, count: int) -> None:
        """So many effects were seen so far."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The end of a demo.

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


@dataclass(kw_only=True)
class _World:
    processes: Processes
    folder: Path
    queue: str
    broker: Broker | None
    base: Mapping[str, str] = field(default_factory=dict)

    @property
    def redis_url(self) -> str:
        if self.broker is None:
            raise QueueBridgeError("No broker was prepared for this backend.")
        return self.broker.url

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            **self.base,
            "QUEUEBRIDGE_ENV": "development",
            "QUEUEBRIDGE_TASKS": "queuebridge.demo.tasks",
            "QUEUEBRIDGE_DEFAULT_QUEUE": self.queue,
            **variables,
        }


def run_demo(
    files: Sequence[Path],
    *,
    backends: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    progress: Progress,
    on_line: Callable[[str, str], None],
) -> DemoResult:
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
    base = {name: value for name, value in environ.items() if not name.startswith(_FOREIGN) and name != "REDIS_URL"}
    results = []
    needs_broker = any(backend != "qstash" for backend in backends)
    with (
        Processes(on_line) as processes,
        find_broker(processes, environ, base, folder) if needs_broker else nullcontext() as broker,
    ):
        world = _World(
            processes=processes,
            folder=folder,
            queue=f"queuebridge-demo-{secrets.token_hex(4)}",
            broker=broker,
            base=base,
        )
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
    return DemoResult(backends=results, broker=description)


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


def _effects_file(world: _World, backend: str) -> Path:
    return world.folder / f"effects-{backend}.jsonl"


@contextmanager
def _qstash(world: _World) -> Iterator[dict[str, str]]:
    user = import_optional("queuebridge.backends.qstash.protocol", feature="The demo").DEFAULT_DEV_USER
    server_port, receiver_port = free_port(), free_port()
    environment = world.environment(
        QSTASH_URL=f"http://127.0.0.1:{server_port}",
        QSTASH_TOKEN=user.token,
        QSTASH_CURRENT_SIGNING_KEY=user.current_signing_key,
        QSTASH_NEXT_SIGNING_KEY=user.next_signing_key,
        QUEUEBRIDGE_PUBLIC_URL=f"http://127.0.0.1:{receiver_port}",
    )
    processes = world.processes
    database = str(world.folder / "qstash.db")
    server = processes.start(
        "server",
        command_line("devserver", "--port", str(server_port), "--db", database),
        env=environment,
        cwd=world.folder,
    )
    server.wait_for_url(f"{environment['QSTASH_URL']}/v2/keys", _READY_SECONDS)
    receiver = processes.start(
        "receiver", command_line("receiver", "--port", str(receiver_port)), env=environment, cwd=world.folder
    )
    receiver.wait_for_url(f"{environment['QUEUEBRIDGE_PUBLIC_URL']}/queuebridge/health", _READY_SECONDS)
    yield environment
    # The server first: it lets the deliveries under way end.
    processes.stop(server)
    processes.stop(receiver)


@contextmanager
def _celery(world: _World) -> Iterator[dict[str, str]]:
    url = world.redis_url
    environment = world.environment(CELERY_BROKER_URL=url)
    worker = _start_worker(world, "celery", environment, "--concurrency", "2")
    worker.wait_for_line(r"ready\.", _READY_SECONDS)
    yield environment
    world.processes.stop(worker)
    _forget(url, world.queue)


@contextmanager
def _rq(world: _World) -> Iterator[dict[str, str]]:
    url = world.redis_url
    # Jobs and results of the demo would stay for minutes on a Redis that may be the user's own.
    environment = world.environment(REDIS_URL=url, QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS="0")
    worker = _start_worker(world, "rq", environment)
    worker.wait_for_line("Listening on", _READY_SECONDS)
    yield environment
    world.processes.stop(worker)
    _forget(url, world.queue)


_RUNNING = {"qstash": _qstash, "celery": _celery, "rq": _rq}


def _start_worker(world: _World, backend: str, environment: Mapping[str, str], *options: str) -> Child:
    return world.processes.start(
        "worker",
        command_line("worker", *options),
        env={**environment, "QUEUEBRIDGE_BACKEND": backend},
        cwd=world.folder,
    )


def _forget(url: str, queue: str) -> None:
    """Leave nothing of the demo's queues on a Redis that may be the user's own."""
    client = import_optional("redis", feature="The demo").Redis.from_url(url)
    keys = list(client.scan_iter(f"*{queue}*", count=1000))
    if keys:
        client.delete(*keys)
    client.close()
