"""Tasks that write down what happens to them, for the executors of all backends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from queuebridge import PermanentFailure, RetryLater, TaskRegistry, TaskTimeout, current_job, task

EFFECTS_VARIABLE = "CONTRACT_EFFECTS"
POLL_SECONDS = 0.01


class Person(BaseModel):
    """An argument that travels as an object."""

    name: str
    born: date


@dataclass(frozen=True)
class Point:
    """An argument that travels as an object too."""

    x: int


def note(tag: str, event: str, **more: Any) -> None:
    """Append one line to the file of effects; a line is written at once or not at all."""
    job = current_job()
    line = {
        "tag": tag,
        "event": event,
        "time": time.time(),
        "pid": os.getpid(),
        "job_id": job.job_id,
        "dispatch_id": job.dispatch_id,
        "message_id": job.message_id,
        "backend": job.backend,
        "attempt": job.attempt,
        "fence": job.fence,
        "max_attempts": job.max_attempts,
        "queue": job.queue,
        "metadata": dict(job.metadata),
        "headers": dict(job.headers),
        **more,
    }
    descriptor = os.open(os.environ[EFFECTS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def typed(
    tag: str, person: Person, point: Point, amount: Decimal, day: date, key: UUID, *, rest: tuple[int, ...]
) -> list[str]:
    """Note the types that arrive."""
    kinds = [type(value).__name__ for value in (person, point, amount, day, key, rest)]
    same = (person, point, amount, day, key, rest) == (
        Person(name="Ä", born=date(2000, 2, 29)),
        Point(x=1),
        Decimal("1.10"),
        date(2024, 2, 29),
        UUID(int=7),
        (1, 2),
    )
    note(tag, "run", kinds=kinds, same=same)
    return kinds


def record(tag: str, value: Any = None) -> Any:
    """Note the call."""
    note(tag, "run", value=value)
    return value


async def record_async(tag: str) -> str:
    """Note the call, from a coroutine."""
    note(tag, "run")
    return tag


def fail(tag: str, times: int, kind: str = "value") -> None:
    """Fail in the first `times` attempts."""
    note(tag, "run")
    if current_job().attempt <= times:
        if kind == "permanent":
            raise PermanentFailure("never")
        if kind == "later":
            raise RetryLater(delay_seconds=1)
        raise ValueError("no luck")
    note(tag, "succeeded")


def slow(tag: str) -> None:
    """Run until somebody stops it."""
    note(tag, "run")
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    except TaskTimeout:
        note(tag, "stopped")
        raise
    note(tag, "finished")


def hold(tag: str, gate: str) -> None:
    """Run until the file `gate` exists."""
    note(tag, "run")
    deadline = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    note(tag, "finished")


def die(tag: str) -> None:
    """Kill the process that runs it."""
    note(tag, "run")
    os.kill(os.getpid(), signal.SIGKILL)


# A job that waits is retried at its time, in a contract test as anywhere: short, and whole seconds for RQ.
BACKOFF = [1]


def declare(registry: TaskRegistry) -> None:
    """Declare all of them in a registry."""
    declarations: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (typed, {}),
        (record, {}),
        (record_async, {}),
        (fail, {"retries": 2}),
        (slow, {"timeout": 0.6, "retries": 0}),
        (hold, {"retries": 3}),
        (die, {"retries": 1}),
    ]
    for function, options in declarations:
        name = f"contract.{function.__name__}"
        task(name=name, registry=registry, **{"backoff": BACKOFF, "retries": 0, **options})(function)
