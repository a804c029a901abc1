"""The RQ backend: enqueue RQ jobs, run them in RQ workers, and take RQ's own calls over.

In an existing RQ program, `from queuebridge.backends.rq import Job, Queue, Worker, job` stands for RQ's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from queuebridge.backends.rq.claiming import ClaimingMixin, SimpleWorker, Worker
    from queuebridge.backends.rq.decorator import job
    from queuebridge.backends.rq.job_class import Job, cancel_job, requeue_job
    from queuebridge.backends.rq.queue import Queue

__all__ = ["ClaimingMixin", "Job", "Queue", "SimpleWorker", "Worker", "cancel_job", "job", "requeue_job"]


def __getattr__(name: str) -> Any:
    # Loaded when they are used: a producer needs no workers, and a process that only publishes tasks none of this.
    if name == "Queue":
        from queuebridge.backends.rq.queue import Queue

        return Queue
    if name == "job":
        from queuebridge.backends.rq.decorator import job

        return job
    if name in ("Job", "cancel_job", "requeue_job"):
        from queuebridge.backends.rq import job_class

        return getattr(job_class, name)
    if name in __all__:
        from queuebridge.backends.rq import claiming

        return getattr(claiming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
