"""What the RQ jobs of tests call. Each call is noted in a file that the environment names, from whatever process."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from rq import Retry, get_current_job
from rq.job import Job

from queuebridge.context import current_job
from queuebridge.errors import QueueBridgeError

NOTES = "RQ_TASKS_NOTES"


def note(what: str, **more: Any) -> None:
    """Note something that happened."""
    job = get_current_job()
    try:
        dispatch, fence = current_job().dispatch_id, current_job().fence
    except QueueBridgeError:
        dispatch, fence = None, None
    entry = {"what": what, "job": job.id if job else None, "dispatch": dispatch, "fence": fence, "pid": os.getpid()}
    with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**entry, **more}) + "\n")


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    note("add", a=a, b=b)
    return a + b


def keep_meta(key: str, value: str) -> str:
    """Save something in the meta of the job, and return what was there before."""
    job = get_current_job()
    assert job is not None
    note("meta", meta=job.meta)
    before = str(job.meta.get(key))
    job.meta[key] = value
    job.save_meta()
    return before


def fail_times(times: int) -> int:
    """Fail so often, then return how often it was tried."""
    job = get_current_job()
    assert job is not None
    tries = int(job.connection.incr(f"tries:{job.id}"))
    note("fail_times", tries=tries)
    if tries <= times:
        raise ValueError(f"try {tries}")
    return tries


def retry_times(times: int) -> Any:
    """Return a Retry so often, then how often it was tried."""
    job = get_current_job()
    assert job is not None
    tries = int(job.connection.incr(f"tries:{job.id}"))
    note("retry_times", tries=tries)
    return Retry(max=5) if tries <= times else tries


def requeue_other(job_id: str) -> None:
    """Have another job run again, as code does that has only the class of its own job."""
    job = get_current_job()
    assert job is not None
    type(job).fetch(job_id, connection=job.connection).requeue()


def hold(gate: str) -> str:
    """Run until a file exists."""
    note("hold")
    while not Path(gate).exists():
        time.sleep(0.02)
    note("held")
    return "held"


def die_once(marker: str) -> str:
    """Kill the process that runs it, the first time."""
    note("die")
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def die() -> None:
    """Kill the process that runs it."""
    note("die")
    os.kill(os.getpid(), signal.SIGKILL)


def linger(seconds: float) -> None:
    """Compute for a while."""
    note("linger")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def succeeded(job: Job, connection: Any, result: Any) -> None:
    """Note a success; a callback of RQ."""
    note("succeeded", of=job.id, result=result)


def failed(job: Job, connection: Any, *error: Any) -> None:
    """Note a failure; a callback of RQ."""
    note("failed", of=job.id, error=error[0].__name__)


class Adder:
    """Something whose methods cannot be pushed."""

    def add(self, a: int) -> int:
        """Return the number."""
        return a
