"""P3 for RQ: without a setting, and in stage `legacy`, Redis is told what RQ alone would tell it, byte by byte."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
import rq
import rq_tasks
from processes import run_python
from rq import Callback, Retry
from rq.decorators import job as plain_job
from rq.job import Dependency, Job, JobStatus
from rq.repeat import Repeat
from rq_program import running_program, work_off

from queuebridge.backends.rq import Queue, SimpleWorker, job

PLAIN_WORKER = """
import os, redis, rq, sys
with redis.Redis.from_url(os.environ["REDIS"]) as client:
    rq.SimpleWorker(["mail"], connection=client).work(burst=True)
assert not [name for name in sys.modules if name.startswith("queuebridge")]
"""
NOW = datetime(2026, 1, 31, 10, tzinfo=timezone.utc)
LATER = datetime(2026, 2, 1, tzinfo=timezone.utc)
_now = {"rq.job": "now", "rq.queue": "now", "rq.repeat": "now", "rq.utils": "now"}


class Recording(redis.Connection):
    """A connection that notes what it sends."""

    sent: list[bytes] = []  # noqa: RUF012 - the pool makes its connections itself

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Note and send."""
        joined = command if isinstance(command, bytes) else b"".join(command)
        Recording.sent.append(joined)
        super().send_packed_command(command, check_health)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client whose commands are noted."""
    pool = redis.ConnectionPool.from_url(redis_url, connection_class=Recording)
    with redis.Redis(connection_pool=pool) as made:
        yield made
    pool.disconnect()


@pytest.fixture
def _nothing_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix the clock and what RQ draws."""
    for module, name in _now.items():
        # Not every module of every version has it.
        monkeypatch.setattr(f"{module}.{name}", lambda: NOW, raising=False)


Call = Callable[[type[rq.Queue], redis.Redis], object]


def enqueue(*args: Any, **options: Any) -> Call:
    return lambda kind, client: kind("mail", connection=client).enqueue(*args, **options)


def in_pipeline(kind: type[rq.Queue], client: redis.Redis) -> None:
    with client.pipeline() as pipe:
        kind("mail", connection=client).enqueue(rq_tasks.add, 1, job_id="j", pipeline=pipe)
        pipe.set("own", 1)
        pipe.execute()


def many(kind: type[rq.Queue], client: redis.Redis) -> None:
    datas = [
        kind.prepare_data(rq_tasks.add, (1,), job_id="j1"),
        kind.prepare_data(rq_tasks.add, ({1},), job_id="j2", at_front=True),
        kind.prepare_data(rq_tasks.add, (3,), job_id="j3", depends_on="j1"),
    ]
    kind("mail", connection=client).enqueue_many(datas)


def decorated(kind: type[rq.Queue], client: redis.Redis) -> None:
    decorator = job if issubclass(kind, Queue) else plain_job
    function = decorator("mail", connection=client, timeout=5)(rq_tasks.add)
    function.enqueue(1, job_id="j")


def failed(kind: type[rq.Queue], client: redis.Redis) -> Job:
    queue = kind("mail", connection=client)
    job = queue.enqueue(rq_tasks.add, 1, job_id="j")
    client.lrem(queue.key, 1, job.id)
    job.set_status(JobStatus.FAILED)
    queue.failed_job_registry.add(job, 1000)
    return job


def with_dependent(kind: type[rq.Queue], client: redis.Redis) -> Job:
    queue = kind("mail", connection=client)
    job = queue.enqueue(rq_tasks.add, 1, job_id="j")
    queue.enqueue(rq_tasks.add, 2, job_id="k", depends_on=job)
    return job


CALLS: dict[str, Call] = {
    "plain": enqueue(rq_tasks.add, 1, b=2, job_id="j"),
    "by name": enqueue("somewhere.unknown", (1, {2}), job_id="j"),
    "method": enqueue(rq_tasks.Adder().add, 1, job_id="j"),
    "options": enqueue(
        rq_tasks.add,
        args=(1,),
        job_id="j",
        job_timeout=5,
        result_ttl=6,
        failure_ttl=7,
        ttl=8,
        description="d",
        meta={"a": object},
        at_front=True,
    ),
    "callbacks": enqueue(
        rq_tasks.add, job_id="j", on_success=Callback(rq_tasks.succeeded), on_failure=Callback("any.where")
    ),
    "retry": enqueue(rq_tasks.add, job_id="j", retry=Retry(max=3, interval=[1, 2])),
    "repeat": enqueue(rq_tasks.add, job_id="j", repeat=Repeat(times=3, interval=5)),
    "depends_on": enqueue(rq_tasks.add, job_id="j", depends_on=Dependency(jobs=["a", "b"], allow_failure=True)),
    "unique": enqueue(rq_tasks.add, job_id="j", unique=True),
    "pipeline": in_pipeline,
    "enqueue_many": many,
    "enqueue_at": lambda kind, c: kind("mail", connection=c).enqueue_at(LATER, rq_tasks.add, 1, job_id="j"),
    "enqueue_at, unique": lambda kind, c: kind("mail", connection=c).enqueue_at(
        LATER, rq_tasks.add, 1, job_id="j", unique=True
    ),
    "enqueue_in": lambda kind, c: kind("mail", connection=c).enqueue_in(timedelta(60), rq_tasks.add, 1, job_id="j"),
    "requeue": lambda kind, c: failed(kind, c).requeue(),
    "requeue from the registry": lambda kind, c: kind("mail", connection=c).failed_job_registry.requeue(
        failed(kind, c).id, at_front=True
    ),
    "cancel": lambda kind, c: with_dependent(kind, c).cancel(),
    "delete": lambda kind, c: with_dependent(kind, c).delete(),
    "is_async=False": lambda kind, c: kind("mail", connection=c, is_async=False).enqueue(rq_tasks.add, 1, job_id="j"),
    "decorator": decorated,
}


def commands(call: Call, kind: type[rq.Queue], client: redis.Redis) -> list[bytes]:
    client.flushdb()
    Recording.sent.clear()
    call(kind, client)
    return list(Recording.sent)


@pytest.mark.usefixtures("_nothing_random")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("stage", "ledger"), [(None, False), ("legacy", False), ("legacy", True)], ids=str)
def test_p3_redis_receives_what_rq_alone_would_send(
    name: str,
    stage: str | None,
    ledger: bool,
    client: redis.Redis,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=7))
    monkeypatch.setenv(rq_tasks.NOTES, str(tmp_path / "notes"))
    # What a connection asks about the server, once.
    commands(CALLS[name], rq.Queue, client)
    plain = commands(CALLS[name], rq.Queue, client)

    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage=stage, ledger=ledger):
        assert commands(CALLS[name], Queue, client) == plain


@pytest.mark.usefixtures("_nothing_random")
def test_p3_comparison_would_notice_one_more_field(
    client: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS["plain"]
    commands(call, rq.Queue, client)
    plain = commands(call, rq.Queue, client)

    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="shadow"):
        assert commands(call, Queue, client) != plain


def test_worker_of_ours_leaves_no_trace_in_stage_legacy(
    redis_url: str, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="legacy") as program:
        ours = program.queue.enqueue(rq_tasks.fail_times, 1, retry=Retry(max=1), meta={"a": 1})
        program.work()
        fields = set(program.connection.hkeys(ours.key))
    with monkeypatch.context() as clean:
        for name in ("QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_STAGE", "QUEUEBRIDGE_LEDGER"):
            clean.delenv(name)
        plain = rq.Queue("other", connection=client).enqueue(rq_tasks.fail_times, 1, retry=Retry(max=1), meta={"a": 1})
        work_off(rq.SimpleWorker(["other"], connection=client))

    assert fields == set(client.hkeys(plain.key))
    assert plain.get_status() == "finished"


def test_p3_worker_without_queuebridge_runs_what_every_stage_puts_on_the_queue(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"QUEUEBRIDGE_RQ_MODULES": "plain_module"}
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="dual", **modules) as program:
        enqueued = program.queue.enqueue("plain_module.double", 21)
        assert program.on_queue() == [enqueued.id]
        (tmp_path / "plain_module.py").write_text("def double(n):\n    return 2 * n\n")
        run_python(PLAIN_WORKER, cwd=tmp_path, env={"REDIS": redis_url})

        assert Job.fetch(enqueued.id, connection=program.connection).return_value() == 42


def test_worker_and_queue_of_ours_are_rqs() -> None:
    assert issubclass(Queue, rq.Queue)
    assert issubclass(SimpleWorker, rq.SimpleWorker)
