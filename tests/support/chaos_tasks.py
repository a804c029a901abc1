"""A task whose process may be killed at any moment, and which notes how far it came: `QUEUEBRIDGE_TASKS=chaos_tasks`.

It notes `start`, then, after a while, `effect`; and ends after another while, so that it is often killed between its
effect and the settlement.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from queuebridge import current_job, task

EFFECTS_VARIABLE = "CHAOS_EFFECTS"


def identity(pid: int) -> str:
    """Return what tells a process from every other one, also from a later one with the same id.

    Raises:
        OSError: There is no such process any more.
    """
    return f"{pid}:{_status(pid)[19]}"


def is_stopped(pid: int) -> bool:
    """Return whether a process stands still, or has ended and is not yet waited for.

    Raises:
        OSError: There is no such process any more.
    """
    return _status(pid)[0] in {"T", "Z", "X"}


def _status(pid: int) -> list[str]:
    # The name of the program, in parentheses, may hold anything; after it come the state and, as the 22nd field of all,
    # the start time.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def append(path: str, line: dict[str, Any]) -> None:
    """Append a line to a file; it is written at once or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def _note(tag: str, event: str) -> None:
    job = current_job()
    append(
        os.environ[EFFECTS_VARIABLE],
        {
            "event": event,
            "tag": tag,
            "process": identity(os.getpid()),
            "dispatch_id": job.dispatch_id,
            "token": job.fence,
            "attempt": job.attempt,
            "backend": job.backend,
            "time": time.time(),
        },
    )


# As many attempts as it takes: here every one may be killed.
@task(name="chaos.work", retries=100, backoff=[2])
def work(tag: str, before_seconds: float, after_seconds: float) -> None:
    """Have an effect."""
    _note(tag, "start")
    time.sleep(before_seconds)
    _note(tag, "effect")
    time.sleep(after_seconds)
