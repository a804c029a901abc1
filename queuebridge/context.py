"""What a running task may know about its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from queuebridge.errors import QueueBridgeError


@dataclass(frozen=True, kw_only=True, slots=True)
class CurrentJob:
    """The job that this thread or asyncio task is executing.

    Attributes:
        job_id, dispatch_id, task, queue: As in the envelope.
        attempt: Which execution this is, counted from 1.
        max_attempts: How many there may be in all.
        backend: The backend that delivered it.
        message_id: The backend's own id of the message.
        deadline: When the timeout of this execution ends, None without one.
        metadata, headers: What the caller sent along.
    """

    job_id: str
    dispatch_id: str
    task: str
    queue: str
    attempt: int
    max_attempts: int
    backend: str
    message_id: str
    deadline: datetime | None
    metadata: Mapping[str, Any]
    headers: Mapping[str, str]


_current: ContextVar[CurrentJob | None] = ContextVar("queuebridge_current_job", default=None)


def current_job() -> CurrentJob:
    """Return the job being executed.

    Raises:
        QueueBridgeError: No job is being executed here; the function was called directly.
    """
    job = _current.get()
    if job is None:
        raise QueueBridgeError("No job is being executed here: the task was called directly, not by an executor.")
    return job


@contextmanager
def executing(job: CurrentJob) -> Iterator[None]:
    """Make `job` the current one for the duration of the block."""
    token = _current.set(job)
    try:
        yield
    finally:
        _current.reset(token)
