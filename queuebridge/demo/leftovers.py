"""Leave nothing of a demo on a Redis that may be the user's own, and nothing that could still run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from queuebridge.loading import import_optional


def connect(url: str) -> Any:
    """Return a client of Redis."""
    return import_optional("redis", feature="The demo").Redis.from_url(url)


def forget(url: str, queue: str, job_ids: Collection[str] = ()) -> None:
    """Remove every key of the demo's queue and jobs, and every mention of them.

    Args:
        url: The address of Redis.
        queue: The demo's queue; no other name contains it.
        job_ids: The demo's jobs.
    """
    client = connect(url)
    ours = queue.encode()
    # Workers that were killed could not say goodbye, and those that did are remembered for a minute.
    known = client.scan_iter("rq:worker:*", count=1000, _type="HASH")
    workers = [key for key in known if ours in (client.hget(key, "queues") or b"")]
    marks = {ours, *(job_id.encode() for job_id in job_ids), *(name.rpartition(b":")[2] for name in workers)}
    doomed = []
    for key in client.scan_iter(count=1000):
        if ours in key or marks.intersection(key.split(b":")):
            doomed.append(key)
        elif key.startswith(b"_kombu.binding."):
            mentions = [member for member in client.smembers(key) if ours in member]
            if mentions:
                client.srem(key, *mentions)
    if doomed:
        client.delete(*doomed)
    if workers:
        client.srem("rq:workers", *workers)
    client.srem("rq:queues", f"rq:queue:{queue}")
    client.close()


def waiting_in_celery(client: Any, queue: str) -> int:
    """Return how many messages wait for a Celery worker, or for the end of the one that has them."""
    reserved = sum(queue.encode() in message for message in client.hvals("unacked"))
    return int(client.llen(queue)) + reserved


def waiting_in_rq(client: Any, queue: str) -> int:
    """Return how many jobs wait for an RQ worker, or are with one."""
    return int(
        client.llen(f"rq:queue:{queue}") + client.zcard(f"rq:scheduled:{queue}") + client.zcard(f"rq:wip:{queue}")
    )


def bring_forward_in_rq(client: Any, queue: str, job_ids: Collection[str]) -> None:
    """Put on the queue what RQ itself would bring again only minutes after the death of a worker."""
    client.delete(f"rq:scheduled:{queue}", f"rq:wip:{queue}")
    waiting = {job_id.decode() for job_id in client.lrange(f"rq:queue:{queue}", 0, -1)}
    for job_id in job_ids:
        if job_id not in waiting and client.exists(f"rq:job:{job_id}"):
            # RQ stumbles over an execution whose worker left no trace.
            client.delete(f"rq:executions:{job_id}")
            client.rpush(f"rq:queue:{queue}", job_id)
