"""Pushed RQ jobs of which Redis has no record: deleted ones do not run, and those that Redis has lost do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import rq
import rq_tasks
from recording_qstash import Answer
from rq import Retry
from rq_program import NAME, Program, running_program

from queuebridge.backends.rq import Job
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import State
from queuebridge.loading import upgrade_ledger
from queuebridge.outcome import Status

Run = Callable[..., AbstractContextManager[Program]]
PUSHED = ("dual", "live", "rampdown", "push")


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program, with a ledger that is not in RQ's Redis: `with run(stage=...) as program`."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade_ledger(ledger)
    return partial(running_program, redis_url, tmp_path / "notes", monkeypatch, QUEUEBRIDGE_LEDGER=ledger)


@pytest.fixture
def push(run: Run) -> Iterator[Program]:
    """The program in stage `push`."""
    with run(stage="push") as program:
        yield program


@pytest.mark.parametrize("stage", PUSHED)
def test_p1_job_that_redis_has_lost_runs_from_its_envelope(
    run: Run, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with run(stage=stage) as program:
        job = program.queue.enqueue(rq_tasks.add, 1, b=2, meta={"user_id": 7}, result_ttl=77)
        (envelope,) = program.pushed()
        program.connection.flushdb()

        with caplog.at_level(logging.WARNING):
            assert program.deliver(envelope).status is Status.DONE

        known = program.fetch(job)
        assert (known.return_value(), known.get_status(), known.meta) == (3, "finished", {"user_id": 7})
        assert [queue.name for queue in rq.Queue.all(connection=program.connection)] == [NAME]
        assert "Redis has lost the record" in caplog.text
        # Once.
        assert program.deliver(envelope).status is Status.DUPLICATE
        assert len(program.notes("add")) == 1


def test_p1_all_of_them_are_lost_with_the_ledger_too(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="push") as program:
        jobs = [program.queue.enqueue(rq_tasks.add, n) for n in range(3)]
        envelopes = program.pushed()
        program.connection.flushdb()

        assert [program.deliver(envelope).status for envelope in envelopes] == [Status.DONE] * 3
        assert [program.fetch(job).return_value() for job in jobs] == [0, 1, 2]


def test_retry_of_a_lost_job_goes_on(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.fail_times, 1, retry=Retry(max=1))
    (envelope,) = push.pushed()
    push.connection.flushdb()

    assert push.deliver(envelope).status is Status.RETRIED
    (again,) = push.pushed()
    push.connection.delete(job.key, "rq:queuebridge:told")

    assert push.deliver(again).status is Status.DONE
    assert push.fetch(job).return_value() == 2


def test_scheduled_job_that_redis_has_lost_runs(push: Program) -> None:
    push.queue.enqueue_in(timedelta(days=3), rq_tasks.add, 1)
    (envelope,) = push.pushed()
    push.connection.flushdb()

    assert push.deliver(envelope.model_copy(update={"not_before_ms": None})).status is Status.DONE


@pytest.mark.parametrize("how", ["delete", "cancel"])
@pytest.mark.parametrize("kind", [Job, rq.job.Job], ids=["ours", "rq's"])
@pytest.mark.parametrize("stage", PUSHED)
def test_deleted_and_cancelled_jobs_do_not_run_whoever_did_it(run: Run, stage: str, kind: type[Job], how: str) -> None:
    with run(stage=stage) as program:
        job = program.queue.enqueue(rq_tasks.add, 1)
        (envelope,) = program.pushed()

        getattr(kind.fetch(job.id, connection=program.connection), how)()

        # The class of ours tells the ledger at once; of RQ's, it knows when a copy arrives.
        told = kind is Job
        assert (program.known(envelope.dispatch_id).state is State.CANCELLED) is told
        assert program.deliver(envelope).status is (Status.DUPLICATE if told else Status.EXPIRED)
        program.work()
        assert program.notes("add") == []


def test_emptied_queue_stays_empty(run: Run) -> None:
    with run(stage="dual") as program:
        for n in range(3):
            program.queue.enqueue(rq_tasks.add, n)
        envelopes = program.pushed()

        # As `rq empty`.
        assert rq.Queue(NAME, connection=program.connection).empty() == 3

        assert [program.deliver(envelope).status for envelope in envelopes] == [Status.EXPIRED] * 3
        assert program.notes("add") == []


def test_job_that_was_deleted_and_is_in_redis_no_more_when_it_is_lost_too_does_not_run(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    (envelope,) = push.pushed()
    job.delete()

    push.connection.flushdb()

    assert push.deliver(envelope).status is Status.DUPLICATE
    assert push.notes("add") == []


def test_cancelling_takes_the_message_back_from_qstash(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    push.pushed()

    job.cancel()

    assert [request.method for request in push.qstash.requests] == ["DELETE"]


def test_safety_copy_of_a_job_that_was_deleted_by_rqs_class_is_settled_and_does_not_run(run: Run) -> None:
    with run(stage="live") as program:
        job = program.queue.enqueue(rq_tasks.add, 1)
        (envelope,) = program.pushed()
        program.fetch(job).delete()
        assert program.bridge.ledger is not None
        program.bridge.ledger.release_held()
        program.bridge.reconciler().run_once()

        program.work()

        assert program.notes("add") == []
        assert program.known(envelope.dispatch_id).state is State.CANCELLED
        assert program.fetch(job).is_canceled


def test_copy_in_a_worker_of_a_job_that_was_cancelled_by_rqs_class_settles_it(run: Run) -> None:
    with run(stage="live") as program:
        program.qstash._answers.append(Answer(status=400, content={"error": "no"}))
        job = program.queue.enqueue(rq_tasks.add, 1)
        (envelope,) = program.pushed()
        # RQ's own class does not know of our list.
        program.fetch(job).cancel()

        program.work()

        assert (program.notes("add"), program.known(envelope.dispatch_id).state) == ([], State.CANCELLED)


def test_ledger_that_is_away_does_not_keep_a_job_from_being_deleted(
    push: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(_job_id: str) -> None:
        raise LedgerUnavailable("gone")

    job = push.queue.enqueue(rq_tasks.add, 1)
    (envelope,) = push.pushed()
    monkeypatch.setattr(push.bridge.ledger, "cancel", gone)

    with caplog.at_level(logging.WARNING):
        job.delete()

    assert "the ledger does not know" in caplog.text
    assert push.deliver(envelope).status is Status.EXPIRED


def test_without_a_ledger_nobody_can_tell_so_that_it_does_not_run(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="push", ledger=False) as program:
        program.queue.enqueue(rq_tasks.add, 1)
        (envelope,) = program.pushed()
        program.connection.flushdb()

        assert program.deliver(envelope).status is Status.EXPIRED
        assert program.notes("add") == []


@pytest.mark.parametrize("stage", PUSHED)
def test_notes_are_kept_only_while_they_are_needed(run: Run, stage: str) -> None:
    with run(stage=stage) as program:
        program.queue.enqueue(rq_tasks.add, 1)
        program.queue.enqueue(rq_tasks.fail_times, 1, retry=Retry(max=1))
        assert program.connection.zcard("rq:queuebridge:told") == 2

        program.deliver_all()

        assert not program.connection.exists("rq:queuebridge:told")


def test_notes_of_jobs_that_a_worker_runs_are_forgotten_and_old_ones_too(run: Run) -> None:
    with run(stage="dual") as program:
        program.connection.zadd("rq:queuebridge:told", {"old": 1})
        program.queue.enqueue(rq_tasks.add, 1)

        program.work()

        assert not program.connection.exists("rq:queuebridge:told")
