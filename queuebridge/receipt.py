"""What enqueue returns: only what is known to be true."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """One acceptance of a dispatch by one backend.

    Attributes:
        backend: The name of the backend that has the job.
        message_id: The id the backend gave it (QStash message id, Celery task id, RQ job id).
        deduplicated: The backend already had this job and did not take a second one.
    """

    backend: str
    message_id: str
    deduplicated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The proof that a job was accepted.

    Attributes:
        job_id: The id of the job; `id` is an alias, for code written for Celery or RQ results.
        dispatch_id: The id of this publication.
        task: The registered name of the task.
        queue: The logical queue.
        writes: Which backends have it.
    """

    job_id: str
    dispatch_id: str
    task: str
    queue: str
    writes: tuple[Write, ...]

    @property
    def id(self) -> str:
        """Return the job id."""
        return self.job_id

    @property
    def backend(self) -> str:
        """Return the name of the backend that has the job (the first, if several have it)."""
        return self.writes[0].backend

    @property
    def message_id(self) -> str:
        """Return the id that this backend gave it."""
        return self.writes[0].message_id

    @property
    def deduplicated(self) -> bool:
        """Return whether no backend took a new job, because each already had this one."""
        return all(write.deduplicated for write in self.writes)
