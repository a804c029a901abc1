"""RQ jobs in real RQ workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import rq
from contracts import Effects, contract_registry, new_tag, wait_for_worker, worker_command, worker_environ
from processes import ChildProcess, Spawner
from rq.job import Job
from rq.registry import FailedJobRegistry, ScheduledJobRegistry
from rq.serializers import JSONSerializer

from queuebridge import Bridge, Call, ConfigurationError, EnqueueOptions, InvalidOption
from queuebridge.backends.rq.worker import run_worker


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """Where the workers note what they do."""
    return Effects(tmp_path / "effects")


@pytest.fixture
def environ(redis_url: str) -> dict[str, str]:
    """The environment that selects RQ."""
    return {"QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": redis_url}


@pytest.fixture
def bridge(environ: dict[str, str]) -> Iterator[Bridge]:
    """A bridge to Redis."""
    with Bridge(registry=contract_registry(), environ=environ) as made:
        yield made


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    """A connection of the test's own."""
    with redis.Redis.from_url(redis_url) as made:
        yield made


def start(spawn: Spawner, environ: dict[str, str], effects: Effects, *more: str) -> ChildProcess:
    """Start a worker and wait until it is ready."""
    worker = spawn(worker_command(*more), env=worker_environ(environ, effects), name="worker")
    wait_for_worker(worker)
    return worker


def fetch(job_id: str, connection: redis.Redis) -> Job:
    return Job.fetch(job_id, connection=connection, serializer=JSONSerializer)


def test_job_whose_work_horse_is_killed_is_retried(
    bridge: Bridge, environ: dict[str, str], spawn: Spawner, effects: Effects, tmp_path: Path
) -> None:
    worker = start(spawn, environ, effects)
    tag, gate = new_tag(), tmp_path / "gate"
    receipt = bridge.enqueue("contract.hold", tag, str(gate))
    (first,) = effects.wait(tag)
    assert first["pid"] != worker.pid

    os.kill(first["pid"], signal.SIGKILL)
    gate.touch()
    (finished,) = effects.wait(tag, "finished")

    assert finished["pid"] != first["pid"]
    assert finished["job_id"] == receipt.job_id
    assert [run["attempt"] for run in effects.of(tag, "run")] == [1, 2]
    assert worker.returncode is None


def test_job_that_is_used_up_is_in_the_failed_registry(
    bridge: Bridge, environ: dict[str, str], spawn: Spawner, effects: Effects, connection: redis.Redis
) -> None:
    tag = new_tag()
    receipt = bridge.enqueue("contract.fail", tag, times=99, kind="permanent")

    worker = start(spawn, environ, effects, "--", "--burst")
    assert worker.wait() == 0

    failed = FailedJobRegistry("default", connection=connection, serializer=JSONSerializer)
    assert failed.get_job_ids() == [receipt.job_id]
    assert len(effects.of(tag)) == 1


def test_result_is_kept_as_json(
    bridge: Bridge, environ: dict[str, str], spawn: Spawner, effects: Effects, connection: redis.Redis
) -> None:
    receipt = bridge.enqueue("contract.record", new_tag(), {"a": [1, None]})

    assert start(spawn, environ, effects, "--", "--burst").wait() == 0

    job = fetch(receipt.message_id, connection)
    assert job.get_status() == "finished"
    assert job.return_value() == {"a": [1, None]}


def test_rqs_own_worker_runs_our_jobs(
    bridge: Bridge, environ: dict[str, str], spawn: Spawner, effects: Effects, redis_url: str
) -> None:
    tag = new_tag()
    bridge.enqueue("contract.record", tag)

    serializer = "rq.serializers.JSONSerializer"
    worker = spawn(
        [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", redis_url, "-S", serializer, "default"],
        env=worker_environ(environ, effects),
    )

    assert worker.wait(40) == 0
    assert len(effects.of(tag)) == 1


def test_worker_consumes_the_queues_it_is_told(
    bridge: Bridge, environ: dict[str, str], spawn: Spawner, effects: Effects, connection: redis.Redis
) -> None:
    high, low, other = new_tag(), new_tag(), new_tag()
    for tag, queue in ((low, "low"), (high, "high"), (other, "other")):
        bridge.apply_async("contract.record", [tag], options=EnqueueOptions(queue=queue))

    assert start(spawn, environ, effects, "-q", "high", "-q", "low", "--", "--burst").wait() == 0

    assert effects.of(high)[0]["time"] <= effects.of(low)[0]["time"]
    assert effects.of(other) == []
    assert rq.Queue("other", connection=connection, serializer=JSONSerializer).count == 1


# What is in Redis


def test_job_is_an_ordinary_rq_job(bridge: Bridge, connection: redis.Redis) -> None:
    options = EnqueueOptions(
        task_id="job-1",
        queue="mails",
        metadata={"user_id": 7},
        options={"rq": {"result_ttl": 60, "failure_ttl": 120, "ttl": 600, "description": "shown as"}},
    )

    bridge.apply_async("contract.slow", ["x"], options=options)

    job = fetch("job-1", connection)
    assert job.origin == "mails"
    assert job.func_name == "queuebridge.backends.rq.task_job.run"
    assert job.description == "shown as"
    assert job.meta == {"user_id": 7}
    # RQ itself has to end only what the timeout of the task (0.6 s) could not stop.
    assert job.timeout == 11
    assert (job.result_ttl, job.failure_ttl, job.ttl) == (60, 120, 600)
    assert job.retries_left is None
    assert job.args[0].startswith('{"version":2,')


def test_retry_policy_becomes_that_of_the_job(bridge: Bridge, connection: redis.Redis) -> None:
    job = fetch(bridge.enqueue("contract.fail", "x", times=1).message_id, connection)

    assert job.retries_left == 2
    # A second more than asked for: RQ drops the fraction of the time that it calculates.
    assert job.retry_intervals == [2, 2]


def test_delayed_job_is_scheduled_never_early(bridge: Bridge, connection: redis.Redis) -> None:
    due = time.time() + 60.2
    receipt = bridge.apply_async("contract.record", ["x"], options=EnqueueOptions(countdown=60.2))

    scheduled = ScheduledJobRegistry(  # type: ignore[no-untyped-call]
        "default", connection=connection, serializer=JSONSerializer
    )
    assert scheduled.get_job_ids() == [receipt.message_id]
    assert scheduled.get_scheduled_time(receipt.message_id).timestamp() >= due - 0.01


@pytest.mark.parametrize("many", [False, True], ids=["single", "batch"])
def test_job_can_be_put_at_the_front(many: bool, bridge: Bridge, connection: redis.Redis) -> None:
    bridge.apply_async("contract.record", ["x"], options=EnqueueOptions(task_id="first"))
    front = [
        EnqueueOptions(task_id=f"front-{number}", options={"rq": {"at_front": True}})
        for number in range(2 if many else 1)
    ]

    if many:
        bridge.enqueue_many([Call("contract.record", ["y"], options=options) for options in front])
    else:
        bridge.apply_async("contract.record", ["y"], options=front[0])

    waiting = rq.Queue("default", connection=connection, serializer=JSONSerializer).job_ids
    assert waiting[-1] == "first"
    assert len(waiting) == len(front) + 1


def test_delayed_job_cannot_be_put_at_the_front(bridge: Bridge) -> None:
    with pytest.raises(InvalidOption, match="front"):
        bridge.apply_async(
            "contract.record", ["x"], options=EnqueueOptions(countdown=5, options={"rq": {"at_front": True}})
        )


def test_batch_is_queued_in_order_on_each_queue(bridge: Bridge, connection: redis.Redis) -> None:
    calls = [
        Call("contract.record", [str(number)], options=EnqueueOptions(task_id=f"job-{number}", queue=f"q{number % 2}"))
        for number in range(10)
    ]

    receipts = bridge.enqueue_many(calls)

    assert [receipt.job_id for receipt in receipts] == [f"job-{number}" for number in range(10)]
    for parity in (0, 1):
        waiting = rq.Queue(f"q{parity}", connection=connection, serializer=JSONSerializer).job_ids
        assert waiting == [f"job-{number}" for number in range(10) if number % 2 == parity]


def test_many_threads_with_one_key_make_one_job(bridge: Bridge, connection: redis.Redis) -> None:
    barrier = threading.Barrier(8)

    def enqueue(_: int) -> bool:
        barrier.wait(10)
        options = EnqueueOptions(idempotency_key="k")
        return bridge.apply_async("contract.record", ["x"], options=options).deduplicated

    with ThreadPoolExecutor(8) as pool:
        duplicates = list(pool.map(enqueue, range(8)))

    assert sorted(duplicates) == [False] + [True] * 7
    assert rq.Queue("default", connection=connection, serializer=JSONSerializer).count == 1


@pytest.mark.parametrize(
    ("arguments", "saying"), [({"concurrency": 2}, "concurrency"), ({"extra": ["--pool"]}, "--pool")], ids=str
)
def test_worker_refuses_what_rq_cannot(arguments: dict[str, object], saying: str, bridge: Bridge) -> None:
    chosen = {"queues": [], "concurrency": None, **arguments}

    with pytest.raises(ConfigurationError, match=saying):
        run_worker(bridge, **chosen)  # type: ignore[arg-type]


def test_missing_redis_is_named() -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        Bridge("rq", registry=contract_registry(), environ={})
