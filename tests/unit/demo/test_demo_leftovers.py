"""What killed workers leave on Redis is removed, and nothing of anybody else's is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from queuebridge.demo.leftovers import bring_forward_in_rq, connect, forget, waiting_in_celery, waiting_in_rq

QUEUE = "queuebridge-demo-1234"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with connect(redis_url) as connection:
        yield connection


def test_every_key_of_the_queue_its_jobs_and_its_workers_is_removed(client: Any, redis_url: str) -> None:
    client.rpush(f"rq:queue:{QUEUE}", "job-1")
    client.hset("rq:job:job-1", "data", "x")
    client.zadd("rq:executions:job-1", {"e": 1})
    client.hset("rq:worker:dead", "queues", QUEUE)
    client.sadd("rq:worker:dead:executions", "job-1:e")
    client.sadd("rq:workers", "rq:worker:dead")
    client.sadd("rq:queues", f"rq:queue:{QUEUE}")
    client.sadd("_kombu.binding.celery.pidbox", f"{QUEUE}@host.celery.pidbox")

    forget(redis_url, QUEUE, ["job-1"])

    assert client.keys("*") == []


def test_keys_of_others_stay(client: Any, redis_url: str) -> None:
    client.rpush("rq:queue:mail", "job-2")
    client.hset("rq:job:job-2", "data", "x")
    client.hset("rq:worker:alive", "queues", "mail")
    client.sadd("rq:worker:alive:executions", "job-2:e")
    client.sadd("rq:workers", "rq:worker:alive")
    client.sadd("rq:queues", "rq:queue:mail")
    client.sadd("_kombu.binding.celery.pidbox", "celery@host.celery.pidbox")
    client.set("unrelated", "job-1")
    before = sorted(client.keys("*"))

    forget(redis_url, QUEUE, ["job-1"])

    assert sorted(client.keys("*")) == before
    assert client.smembers("rq:workers") == {b"rq:worker:alive"}
    assert client.smembers("_kombu.binding.celery.pidbox") == {b"celery@host.celery.pidbox"}


def test_messages_with_celery_workers_count_as_waiting(client: Any) -> None:
    client.rpush(QUEUE, "waiting")
    client.hset("unacked", "1", f'["{QUEUE}"]')
    client.hset("unacked", "2", '["mail"]')

    assert waiting_in_celery(client, QUEUE) == 2


def test_job_that_died_with_its_rq_worker_is_put_on_the_queue_once(client: Any) -> None:
    for job_id in ("dead", "waiting"):
        client.hset(f"rq:job:{job_id}", "data", "x")
    client.rpush(f"rq:queue:{QUEUE}", "waiting")
    client.zadd(f"rq:wip:{QUEUE}", {"dead:e": 1})
    client.zadd("rq:executions:dead", {"e": 1})

    bring_forward_in_rq(client, QUEUE, ["dead", "waiting", "done"])

    assert client.lrange(f"rq:queue:{QUEUE}", 0, -1) == [b"waiting", b"dead"]
    assert not client.exists("rq:executions:dead")
    assert waiting_in_rq(client, QUEUE) == 2
