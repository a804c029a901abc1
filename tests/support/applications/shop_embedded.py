"""Run a worker of the application inside a program, without Celery's command, and tell what it does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.contrib.testing.worker import start_worker
from celery.result import allow_join_result
from celery.worker import WorkController, state
from shop_celery import app, ship

from queuebridge.backends.celery.workers import strangers

OPTIONS: dict[str, Any] = {"pool": "solo", "concurrency": 1, "loglevel": "WARNING"}
JOBS = 2


def tell() -> None:
    """Print what the worker says of itself, and the results of jobs that were sent to it."""
    queues = sorted(q["name"] for one in app.control.inspect().active_queues().values() for q in one)
    results = [ship.delay(f"embedded-{number}") for number in range(JOBS)]
    # The process is that of a worker, too; this thread is not one.
    with allow_join_result():
        ended = [one.get(timeout=30) for one in results]
    said = {"strangers": sorted(strangers(app)), "queues": queues, "results": ended}
    # Not what Celery has put in its place.
    print(json.dumps(said), file=sys.__stdout__, flush=True)


@contextmanager
def in_thread(worker: Any) -> Iterator[None]:
    """Run a worker in a thread."""
    thread = threading.Thread(target=worker.start)
    thread.start()
    try:
        yield
    finally:
        state.should_stop = 0
        thread.join()


def testing() -> None:
    """Run the worker of Celery's testing tools."""
    with start_worker(app, perform_ping_check=False, **OPTIONS):
        tell()


def bare() -> None:
    """Run an unmanaged worker."""
    # The tracer takes the app of the process.
    app.set_default()
    ready = threading.Event()
    with in_thread(WorkController(app=app, ready_callback=lambda _: ready.set(), **OPTIONS)):
        assert ready.wait(30)
        tell()


def as_program() -> None:
    """Run the class that Celery's command runs; it wants the main thread."""
    from celery import signals

    def end() -> None:
        try:
            tell()
        finally:
            state.should_stop = 0

    signals.worker_ready.connect(lambda **_: threading.Thread(target=end).start(), weak=False)
    app.Worker(**OPTIONS).start()


WAYS: dict[str, Callable[[], None]] = {"testing": testing, "bare": bare, "program": as_program}

if __name__ == "__main__":
    WAYS[sys.argv[1]]()
