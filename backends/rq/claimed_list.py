"""Jobs of a queue that only workers with claims may take: safety copies, and what such a worker took and put off.

They are in a list beside the queue's own, and in none of RQ's sets, so that no other worker ever looks there: one that
took a safety copy would run the job a second time. In everything else they belong to the queue.

RQ's scheduler is no place to wait for either of them. It marks what it enqueues as queued, at a new time; the job may
be running elsewhere, or have ended by then, and it is the same dispatch. And it brings jobs where everybody takes them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import rq
from redis import Redis
from redis.client import Pipeline

_BATCH = 100
# KEYS: what waits for its time, the list, where RQ keeps jobs between list and execution, the queue. ARGV: now, batch.
_TAKE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(due) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('RPUSH', KEYS[2], id)
end
local id = redis.call('LPOP', KEYS[2])
if id then
  redis.call('RPUSH', KEYS[3], id)
end
return {id, redis.call('LLEN', KEYS[4])}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What a look brought.

    Attributes:
        job_id: The job, which is in the queue's intermediate list now; None if there is none.
        others: How many jobs are on the queue's own list.
    """

    job_id: str | None
    others: int


def add_claimed(queue: rq.Queue, job_id: str, pipeline: Pipeline, *, at_front: bool) -> None:
    """Put a job where only workers with claims take it."""
    key = claimed_key(queue)
    if at_front:
        pipeline.lpush(key, job_id)
    else:
        pipeline.rpush(key, job_id)


def add_claimed_at(queue: rq.Queue, job_id: str, when: float, pipeline: Pipeline) -> None:
    """Have a job come there at a time, in Unix seconds."""
    pipeline.zadd(_waiting_key(queue), {job_id: when})


def put_off(queue: rq.Queue, job_id: str, seconds: float, pipeline: Pipeline) -> None:
    """Have a job come there after some time."""
    add_claimed_at(queue, job_id, time.time() + seconds, pipeline)


def take_claimed(queue: rq.Queue, connection: Redis) -> Taken:
    """Take the next job, if there is one."""
    keys = (_waiting_key(queue), claimed_key(queue), queue.intermediate_queue_key, queue.key)
    answer = connection.eval(_TAKE, len(keys), *keys, time.time(), _BATCH)
    job_id, others = cast("tuple[bytes | None, int]", answer)
    return Taken(job_id=job_id.decode() if job_id is not None else None, others=others)


def claimed_key(queue: rq.Queue) -> str:
    """Return the key of the list beside a queue."""
    return f"{queue.key}:queuebridge"


def _waiting_key(queue: rq.Queue) -> str:
    return f"{queue.key}:put-off"
