"""What a running task may know about its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from queuebridge.errors import QueueBridgeError

if TYPE_CHECKING:
    from queuebridge.lease import Lease


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
        lease: The claim under which it runs; None without a ledger.
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
    lease: Lease | None = None

    @property
    def fence(self) -> int | None:
        """Return the fencing token, which grows with every execution of this dispatch; None without a ledger.

        A write such as `UPDATE ... SET fence = :fence WHERE fence < :fence` then refuses an execution that was
        overtaken by a later one.
        """
        return self.lease.token if self.lease is not None else None

    @property
    def lease_lost(self) -> bool:
        """Return whether the claim has ended, so that another execution may have taken over."""
        return self.lease is not None and self.lease.lost

    def check_lease(self) -> None:
        """Raise if the claim has ended; for long bodies, before a step that must not be done twice.

        Raises:
            LeaseLost: Another execution may have taken over.
        """
        if self.lease is not None:
            self.lease.check()


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
