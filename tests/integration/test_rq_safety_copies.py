"""Safety copies of RQ jobs: only workers with claims take them, and RQ shows their jobs as it shows any other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import rq
import rq_tasks
from processes import Spawner, wait_until
from recording_qstash import Answer
from rq import Queue as PlainQueue
from rq import Retry
from rq.job import Job
from rq_program import NAME, Program, running_program, work_off

from queuebridge import set_bridge
from queuebridge.backends.rq import Queue, SimpleWorker
from queuebridge.ledger import State
from queuebridge.outcome import Status

Run = Callable[..., AbstractContextManager[Program]]
# A server that says no at once, and is not asked again.
REFUSED = Answer(status=400, content={"error": "no"})


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program: `with run(stage=...) as program`."""
    return partial(running_program, redis_url, tmp_path / "notes", monkeypatch)


@pytest.fixture
def live(run: Run) -> Iterator[Program]:
    """The program in stage `live`."""
    with run(stage="live") as program:
        yield program


def refused_by_qstash(program: Program, enqueue: Callable[..., Job], *args: Any, **kwargs: Any) -> Job:
    """Enqueue a job that QStash does not take, so that its safety copy is written at once."""
    program.qstash._answers.append(REFUSED)
    return enqueue(*args, **kwargs)


def released(program: Program) -> None:
    """Have reconcile bring all copies that the ledger holds."""
    assert program.bridge.ledger is not None
    assert program.bridge.ledger.release_held() == 1
    assert program.bridge.reconciler().run_once().total == 1


def test_held_copy_is_brought_by_reconcile_to_workers_with_claims_only(live: Program) -> None:
    enqueued = live.queue.enqueue(rq_tasks.add, 1, at_front=True)
    (envelope,) = live.pushed()

    released(live)

    assert (live.on_queue(), live.for_claims_only()) == ([], [enqueued.id])
    work_off(rq.SimpleWorker([PlainQueue(NAME, connection=live.connection)], connection=live.connection))
    assert live.notes("add") == []
    assert live.fetch(enqueued).get_status() == "queued"
    live.work()
    assert live.deliver(envelope).status is Status.DUPLICATE
    assert live.fetch(enqueued).return_value() == 1


def test_copy_that_has_to_run_because_the_push_failed_is_in_rqs_records_as_any_job(live: Program) -> None:
    enqueued = refused_by_qstash(live, live.queue.enqueue, rq_tasks.fail_times, 1, meta={"user_id": 7})
    assert live.for_claims_only() == [enqueued.id]

    live.work()

    job = live.fetch(enqueued)
    assert (job.origin, job.get_status(), job.meta) == (NAME, "failed", {"user_id": 7})
    assert live.queue.failed_job_registry.get_job_ids() == [job.id]
    assert live.queue.started_job_registry.get_job_ids() == []
    assert live.queue.intermediate_queue.get_job_ids() == []
    assert live.connection.smembers("rq:queues") == {live.queue.key.encode()}
    live.queue.failed_job_registry.requeue(job.id)
    live.deliver_all()
    assert live.fetch(job).return_value() == 2


def test_retry_of_such_a_copy_goes_where_the_stage_says(live: Program) -> None:
    enqueued = refused_by_qstash(live, live.queue.enqueue, rq_tasks.fail_times, 1, retry=Retry(max=1))
    live.pushed()

    live.work()

    assert (live.on_queue(), live.for_claims_only()) == ([], [])
    assert [outcome.status for outcome in live.deliver_all()] == [Status.DONE]
    assert live.fetch(enqueued).return_value() == 2


def test_copies_keep_their_order_and_at_front(live: Program) -> None:
    first, second = (refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, n) for n in range(2))
    front = refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, 9, at_front=True)

    assert live.for_claims_only() == [front.id, first.id, second.id]
    live.work()

    assert [note["a"] for note in live.notes("add")] == [9, 0, 1]


@pytest.mark.parametrize("how", ["refused", "released"])
def test_copy_of_a_scheduled_job_waits_for_its_time_and_not_with_rqs_scheduler(live: Program, how: str) -> None:
    call = (live.queue.enqueue_in, timedelta(seconds=3), rq_tasks.add, 1)
    if how == "refused":
        enqueued = refused_by_qstash(live, *call)
    else:
        enqueued = call[0](*call[1:])
        released(live)

    assert live.queue.scheduled_job_registry.get_job_ids() == []
    live.work()
    assert live.notes("add") == []
    assert live.fetch(enqueued).get_status() == "scheduled"
    wait_until(lambda: live.work() or live.fetch(enqueued).is_finished, 20, what="the job to run")
    assert live.known(str(live.notes("add")[0]["dispatch"])).state is State.DONE


def test_deleted_and_cancelled_jobs_are_passed_over(live: Program) -> None:
    deleted, cancelled, last = (
        refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, n) for n in range(3)
    )
    deleted.delete()
    cancelled.cancel()

    live.work()

    assert [note["a"] for note in live.notes("add")] == [2]
    assert live.fetch(last).is_finished
    assert live.queue.intermediate_queue.get_job_ids() == []


def test_queue_that_comes_first_goes_first(live: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, 2)
    first = PlainQueue("urgent", connection=live.connection)
    first.enqueue(rq_tasks.add, 1)

    work_off(SimpleWorker(["urgent", NAME], connection=live.connection))

    assert [note["a"] for note in live.notes("add")] == [1, 2]
    # A worker of several queues leaves no trace either.
    assert live.queue.intermediate_queue.get_job_ids() == []


@pytest.mark.parametrize("stage", ["legacy", "shadow", "dual", "rampdown", "push"])
def test_copies_are_drained_in_every_other_stage(run: Run, stage: str) -> None:
    with run(stage="live") as program:
        enqueued = refused_by_qstash(program, program.queue.enqueue, rq_tasks.add, 1)
        (envelope,) = program.pushed()
    set_bridge(None)

    with run(stage=stage) as program:
        program.work()

        assert (program.for_claims_only(), program.fetch(enqueued).return_value()) == ([], 1)
        assert program.deliver(envelope).status is Status.DUPLICATE
        assert len(program.notes("add")) == 1


def test_p1_job_whose_worker_died_before_it_could_start_comes_again(
    live: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueued = refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, 1)
    live.connection.lmove(f"rq:queue:{NAME}:queuebridge", live.queue.intermediate_queue.key)
    worker = SimpleWorker([live.queue], connection=live.connection)
    intermediate = live.queue.intermediate_queue

    intermediate.cleanup(worker, live.queue)
    monkeypatch.setattr(type(intermediate), "should_be_cleaned_up", lambda *_: True)
    intermediate.cleanup(worker, live.queue)

    assert (live.fetch(enqueued).get_status(), intermediate.get_job_ids()) == ("queued", [])
    wait_until(lambda: live.work() or live.fetch(enqueued).is_finished, 20, what="the job to run")


def test_worker_that_loses_redis_for_a_moment_looks_again(live: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueued = refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, 1)
    worker = SimpleWorker([live.queue], connection=live.connection)
    evaluate: Any = live.connection.eval
    failures = [1]

    def failing(*args: Any) -> Any:
        if failures:
            failures.pop()
            raise redis.ConnectionError("gone")
        return evaluate(*args)

    monkeypatch.setattr(worker.connection, "eval", failing)

    assert worker.dequeue_job_and_maintain_ttl(None) is None
    taken = worker.dequeue_job_and_maintain_ttl(5)

    assert taken is not None
    assert taken[0].id == enqueued.id


def test_idle_time_of_a_worker_is_kept(live: Program) -> None:
    worker = SimpleWorker([live.queue], connection=live.connection)
    start = time.monotonic()

    assert worker.dequeue_job_and_maintain_ttl(60, 3) is None

    assert 2.5 <= time.monotonic() - start < 15


def test_p2_worker_process_without_the_bridge_never_gets_a_safety_copy(
    live: Program, spawn: Spawner, redis_url: str
) -> None:
    rq_command = [Path(sys.executable).with_name("rq"), "worker", "--url", redis_url]
    for worker_class in ("rq.Worker", "queuebridge.backends.rq.Worker"):
        worker = spawn([*rq_command, "-w", worker_class, "other", NAME], name=worker_class)
        worker.wait_for_line("[Ll]istening on|started with")
    jobs = [refused_by_qstash(live, live.queue.enqueue, rq_tasks.add, n) for n in range(10)]

    wait_until(lambda: all(live.fetch(job).is_finished for job in jobs), 40, what="the jobs to finish")

    noted = live.notes("add")
    assert sorted(note["a"] for note in noted) == list(range(10))
    # Each under a claim.
    assert all(note["fence"] for note in noted)
    assert Queue(NAME, connection=live.connection).intermediate_queue.get_job_ids() == []
