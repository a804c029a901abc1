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
        stage: The stage of the migration by which it was written; None without one.
        recorded: Whether the ledger has it.
        held: The backend whose copy the ledger holds back; None if there is none.
        unconfirmed: Backends that were sent a copy and did not answer: they may have it.
        failed: Backends that do not have the copy meant for them; the job runs all the same.
        spooled: No backend has it; the ledger keeps it and it is published later.
        pending_commit: It is recorded in the caller's transaction, and published when that is committed.
    """

    job_id: str
    dispatch_id: str
    task: str
    queue: str
    writes: tuple[Write, ...]
    stage: str | None = None
    recorded: bool = False
    held: str | None = None
    unconfirmed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    spooled: bool = False
    pending_commit: bool = False

    @property
    def id(self) -> str:
        """Return the job id."""
        return self.job_id

    @property
    def backend(self) -> str | None:
        """Return the name of the backend that has the job (the first, if several have it); None if none has it yet."""
        return self.writes[0].backend if self.writes else None

    @property
    def message_id(self) -> str | None:
        """Return the id that this backend gave it; None if none has it yet."""
        return self.writes[0].message_id if self.writes else None

    @property
    def deduplicated(self) -> bool:
        """Return whether no backend took a new job, because each already had this one."""
        return bool(self.writes) and all(write.deduplicated for write in self.writes)
