"""Jobs that an RQ worker took and must not run yet: they come to their queue again, and their records stay as they are.

RQ's scheduler would do, but it marks what it enqueues as queued, at a new time. The job may be running elsewhere, or
have ended by then, and it is the same dispatch.
"""

from __future__ import annotations

import time

import rq
from redis import Redis
from redis.client import Pipeline

_BATCH = 100
# KEYS: what was put off, the queue. ARGV: now, the batch.
_RELEASE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(due) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('RPUSH', KEYS[2], id)
end
return #due
"""


def put_off(queue: rq.Queue, job_id: str, seconds: float, pipeline: Pipeline) -> None:
    """Have a job come to its queue again after some time."""
    pipeline.zadd(_key(queue), {job_id: time.time() + seconds})


def release_due(queue: rq.Queue, connection: Redis) -> None:
    """Put the jobs on their queue whose time has come."""
    connection.eval(_RELEASE, 2, _key(queue), queue.key, time.time(), _BATCH)


def _key(queue: rq.Queue) -> str:
    return f"{queue.key}:put-off"
