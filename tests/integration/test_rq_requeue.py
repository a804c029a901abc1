"""What is enqueued again, or because of a cancelled job: it goes where the stage says, or is refused and stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rq
import rq_tasks
from recording_qstash import Answer
from rq.exceptions import InvalidJobOperation
from rq.job import JobStatus
from rq_program import NAME, Program, running_program, work_off

from queuebridge import InvalidOption, OptionNotSupported, PublishError, set_bridge
from queuebridge.backends.rq import Job, Queue, SimpleWorker, cancel_job, requeue_job
from queuebridge.outcome import Status

Run = Callable[..., AbstractContextManager[Program]]
RQ_3 = not rq.VERSION.startswith("2.")
REFUSED = Answer(status=400, content={"error": "no"})


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program: `with run(stage=...) as program`."""
    return partial(running_program, redis_url, tmp_path / "notes", monkeypatch)


@pytest.fixture
def push(run: Run) -> Iterator[Program]:
    """The program in stage `push`."""
    with run(stage="push") as program:
        yield program


def failed(program: Program, function: Any = rq_tasks.fail_times, *args: Any) -> Job:
    """Return a job that has failed over push."""
    job = program.queue.enqueue(function, *(args or (1,)))
    program.deliver_all()
    assert job.is_failed
    return job


def record(program: Program, job: Any) -> tuple[dict[bytes, bytes], list[str], bool]:
    """Return what RQ has of a job, whether it is listed as failed, and whether its record will expire."""
    registry = program.queue.failed_job_registry
    return program.connection.hgetall(job.key), registry.get_job_ids(), program.connection.ttl(job.key) > 0


REQUEUE: dict[str, Callable[[Program, Job], Any]] = {
    "job": lambda _, job: job.requeue(),
    "fetched": lambda program, job: Job.fetch(job.id, connection=program.connection).requeue(),
    "from the queue": lambda program, job: program.queue.fetch_job(job.id).requeue(at_front=True),
    "function": lambda program, job: requeue_job(job.id, program.connection),
    "registry": lambda program, job: program.queue.failed_job_registry.requeue(job.id),
    "registry, RQ's job": lambda program, job: program.queue.failed_job_registry.requeue(program.fetch(job)),
}


@pytest.mark.parametrize("how", REQUEUE)
@pytest.mark.parametrize("stage", ["rampdown", "push"])
def test_requeued_job_is_pushed(run: Run, stage: str, how: str) -> None:
    with run(stage=stage) as program:
        job = failed(program)

        REQUEUE[how](program, job)

        assert (program.on_queue(), program.fetch(job).get_status()) == ([], "queued")
        assert [outcome.status for outcome in program.deliver_all()] == [Status.DONE]
        assert program.fetch(job).return_value() == 2
        assert program.queue.failed_job_registry.get_job_ids() == []


@pytest.mark.parametrize(
    ("stage", "queued", "copies"), [("legacy", 1, 0), ("shadow", 1, 1), ("dual", 1, 1), ("live", 0, 1)]
)
def test_requeued_job_goes_where_its_stage_says(run: Run, stage: str, queued: int, copies: int) -> None:
    with run(stage="push") as program:
        job = failed(program)
    set_bridge(None)

    with run(stage=stage) as program:
        Job.fetch(job.id, connection=program.connection).requeue()

        pushed = program.pushed()
        assert (len(program.on_queue()), len(pushed)) == (queued, copies)
        program.work()
        for envelope in pushed:
            program.deliver(envelope)
        assert program.fetch(job).return_value() == 2


def test_job_that_a_function_requeues_is_pushed_by_workers_and_receivers(push: Program) -> None:
    job = failed(push)
    push.queue.enqueue(rq_tasks.requeue_other, job.id)

    push.deliver_all()

    assert push.fetch(job).return_value() == 2


def test_job_that_cannot_be_pushed_stays_failed_as_it_was(run: Run) -> None:
    with run(stage="legacy") as program:
        job = program.queue.enqueue(rq_tasks.fail_times, (1, 2))
        program.work()
        assert program.fetch(job).is_failed
    set_bridge(None)

    with run(stage="push") as program:
        before = record(program, job)
        for requeue in REQUEUE.values():
            with pytest.raises(InvalidOption, match="tuple"):
                requeue(program, job)

        assert record(program, job) == before
        assert (program.pushed(), program.on_queue()) == ([], [])


def test_job_that_nobody_takes_stays_failed_as_it_was(push: Program) -> None:
    job = failed(push)
    before = record(push, job)

    push.qstash._answers.append(REFUSED)
    with pytest.raises(PublishError):
        job.requeue()

    assert before[2]
    assert record(push, job) == before
    assert push.on_queue() == []
    push.pushed()
    # It can be tried again.
    Job.fetch(job.id, connection=push.connection).requeue()
    push.deliver_all()
    assert push.fetch(job).return_value() == 2


def test_job_that_has_not_failed_cannot_be_requeued(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)

    with pytest.raises(InvalidJobOperation):
        job.requeue()

    assert len(push.deliver_all()) == 1


@pytest.mark.skipif(not RQ_3, reason="RQ 2 has no rate limits")
def test_rate_limited_job_is_not_requeued_past_its_limit(run: Run) -> None:
    with run(stage="legacy") as program:
        job = program.queue.enqueue(rq_tasks.fail_times, 1, rate_limit=rq.RateLimit(key="k", concurrency=1))
        program.work()
    set_bridge(None)

    with run(stage="push") as program:
        before = record(program, job)
        with pytest.raises(OptionNotSupported, match="rate_limit"):
            Job.fetch(job.id, connection=program.connection).requeue()

        assert record(program, job) == before


@pytest.mark.parametrize("how", ["job", "function"])
def test_dependents_of_a_cancelled_job_are_pushed(push: Program, how: str) -> None:
    first = push.queue.enqueue(rq_tasks.add, 1)
    second = push.queue.enqueue(rq_tasks.add, 2, depends_on=first)
    third = push.queue.enqueue(rq_tasks.add, 3, depends_on=[first, second])

    if how == "job":
        first.cancel(enqueue_dependents=True)
    else:
        cancel_job(first.id, push.connection, enqueue_dependents=True)

    assert push.on_queue() == []
    outcomes = push.deliver_all()
    # Of two dependencies that are waited for, one will never end.
    assert ([note["a"] for note in push.notes("add")], push.fetch(third).is_deferred) == ([2], True)
    assert (outcomes[0].status, push.fetch(first).get_status()) == (Status.DUPLICATE, "canceled")
    assert push.fetch(second).return_value() == 2
    assert push.queue.canceled_job_registry.get_job_ids() == [first.id]
    with pytest.raises(InvalidJobOperation):
        first.cancel(enqueue_dependents=True)


def test_cancelled_job_without_dependents_is_only_cancelled(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    kept = push.queue.enqueue(rq_tasks.add, 2)
    waiting = push.queue.enqueue(rq_tasks.add, 3, depends_on=kept)

    job.cancel(enqueue_dependents=True)
    kept.cancel()

    push.deliver_all()
    assert push.notes("add") == []
    assert [push.fetch(each).get_status() for each in (job, kept, waiting)] == ["canceled", "canceled", "deferred"]


@pytest.mark.skipif(not RQ_3, reason="RQ 2 has no one transaction")
def test_dependent_that_comes_while_its_job_is_cancelled_is_not_forgotten(
    push: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    late: list[Job] = []
    remove = Job._remove_from_registries

    def interrupted(self: Job, *args: Any, **kwargs: Any) -> None:
        if not late:
            late.append(push.queue.enqueue(rq_tasks.add, 2, depends_on=job))
        remove(self, *args, **kwargs)

    monkeypatch.setattr(Job, "_remove_from_registries", interrupted)
    job.cancel(enqueue_dependents=True)

    push.deliver_all()
    assert push.fetch(late[0]).return_value() == 2


def test_cancel_in_a_transaction_of_the_callers(push: Program) -> None:
    first = push.queue.enqueue(rq_tasks.add, 1)
    second = push.queue.enqueue(rq_tasks.add, 2, depends_on=first)

    with push.connection.pipeline() as pipe:
        pipe.watch(first.dependents_key)
        freed = first.cancel(pipeline=pipe, enqueue_dependents=True)
        assert push.fetch(first).get_status() == "queued"
        pipe.execute()
    if RQ_3:
        push.queue.enqueue_ready_jobs_by_queue(freed)

    push.deliver_all()
    assert (push.fetch(first).get_status(), push.fetch(second).return_value()) == ("canceled", 2)


def test_without_any_setting_a_job_is_rqs_own(redis_url: str, push: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_STAGE", "QUEUEBRIDGE_LEDGER"):
        monkeypatch.delenv(name)
    queue = Queue(NAME, connection=push.connection)
    job = queue.enqueue(rq_tasks.fail_times, (1,))
    dependent = queue.enqueue(rq_tasks.add, 1, depends_on=job)
    job.set_status(JobStatus.FAILED)
    queue.failed_job_registry.add(job, 1000)
    queue.remove(job)

    job.requeue()
    assert push.on_queue() == [job.id]
    job.cancel(enqueue_dependents=True)
    assert push.on_queue() == [dependent.id]


def test_classes_of_a_program_stay(push: Program) -> None:
    class Own(Job):
        """A job class of the program's."""

    assert type(push.queue.enqueue(rq_tasks.add, 1)) is Job
    for given, taken in ((None, Job), (rq.job.Job, Job), (Own, Own)):
        assert Queue(NAME, connection=push.connection, job_class=given).job_class is taken
        worker = SimpleWorker([NAME], connection=push.connection, job_class=given)
        assert (worker.job_class, worker.queues[0].job_class) == (taken, taken)


def test_job_of_rqs_own_class_is_the_same_job(push: Program) -> None:
    ours = push.queue.enqueue(rq_tasks.add, 1)
    plain = rq.job.Job.fetch(ours.id, connection=push.connection)

    assert (ours == plain, plain == ours, len({ours, plain})) == (True, True, 1)
    assert plain not in push.queue.finished_job_registry
    push.deliver_all()
    assert plain in push.queue.finished_job_registry
    # A class of the program's takes nothing but its own, as with RQ.
    assert not isinstance(plain, type("Own", (Job,), {}))


def test_worker_requeues_where_the_stage_says(run: Run) -> None:
    with run(stage="push") as program:
        job = failed(program)
        legacy = rq.Queue(NAME, connection=program.connection)
        legacy.enqueue(rq_tasks.requeue_other, job.id)

        work_off(SimpleWorker([NAME], connection=program.connection))

        assert program.on_queue() == []
        program.deliver_all()
        assert program.fetch(job).return_value() == 2
