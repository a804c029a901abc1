"""Run jobs in an RQ worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import rq
from rq.serializers import JSONSerializer

from queuebridge.backends.rq.backend import RQBackend
from queuebridge.backends.rq.marking import MarkingMixin
from queuebridge.bridge import Bridge, set_bridge
from queuebridge.errors import ConfigurationError

# How often a worker looks for jobs whose worker died; by default RQ does every ten minutes. It looks only between two
# waits for a job, and waits somewhat shorter than its time to live.
_MAINTENANCE_SECONDS = 60
_RQ_DEQUEUES_SOONER_SECONDS = 15


def run_worker(bridge: Bridge, *, queues: Sequence[str], concurrency: int | None, extra: Sequence[str] = ()) -> int:
    """Run an RQ worker with a scheduler in this process until it is stopped.

    Args:
        bridge: A bridge whose backend is RQ, with its tasks loaded.
        queues: The queues to consume, the most important first; empty means the default one and every queue
            that a task names.
        concurrency: RQ workers run one job at a time; anything but 1 or None is refused.
        extra: `--burst` ends the worker when the queues are empty.

    Returns:
        The exit status.

    Raises:
        ConfigurationError: An option cannot be honoured.
        PublishError: Redis cannot be reached, or does not accept us.
    """
    if not isinstance(bridge.worker_backend, RQBackend):
        raise ConfigurationError(f"The backend in use is {bridge.worker_backend.name}, which has no RQ worker.")
    if concurrency not in (None, 1):
        raise ConfigurationError("An RQ worker runs one job at a time. Start several workers instead of --concurrency.")
    unknown = [option for option in extra if option != "--burst"]
    if unknown:
        raise ConfigurationError(f"The RQ worker has no option {unknown[0]!r}; there is --burst.")
    # RQ's own start would end in a traceback.
    bridge.worker_backend.ping()
    # Jobs are run by `queuebridge.backends.rq.task_job.run`, which finds the tasks through the process's bridge.
    set_bridge(bridge)
    named = {task.queue for task in bridge.registry if task.queue} - {bridge.settings.default_queue}
    worker = (_ClaimingTaskWorker if bridge.ledger is not None else rq.Worker)(
        list(queues) or [bridge.settings.default_queue, *sorted(named)],
        connection=worker_connection(bridge.worker_backend.url),
        serializer=JSONSerializer,
        maintenance_interval=_MAINTENANCE_SECONDS,
        worker_ttl=_MAINTENANCE_SECONDS + _RQ_DEQUEUES_SOONER_SECONDS,
    )
    worker.work(with_scheduler=True, burst="--burst" in extra)
    return 0


class _ClaimingTaskWorker(MarkingMixin, rq.Worker):
    """RQ's worker, for tasks, which ask the ledger themselves."""


def worker_connection(url: str) -> redis.Redis:
    """Return a connection for an RQ worker, which also copes with servers that answer CLIENT INFO incompletely."""
    connection = redis.Redis.from_url(url)
    connection.set_response_callback("CLIENT INFO", _client_info)
    return connection


def _client_info(answer: Any, **_: Any) -> dict[str, str]:
    """Return the fields of CLIENT INFO; the worker reads `addr`, which the embedded Redis does not know."""
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    return {"addr": "unknown", **fields}
