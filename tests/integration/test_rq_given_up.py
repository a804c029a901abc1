"""Pushed RQ jobs that the ledger gives up without an execution: RQ has to show that too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import rq_tasks
from processes import wait_until
from rq import Retry
from rq.job import Dependency, Job, JobStatus
from rq.results import Result
from rq_program import Program, running_program

from queuebridge.backends.rq.receiving import PushedCall
from queuebridge.envelope import Envelope
from queuebridge.ledger import State
from queuebridge.outcome import Outcome, Status

Run = Callable[..., AbstractContextManager[Program]]
SHORT = {"QUEUEBRIDGE_LEASE_SECONDS": "1", "QUEUEBRIDGE_GRACE_SECONDS": "0"}


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program: `with run(stage=...) as program`."""
    return partial(running_program, redis_url, tmp_path / "notes", monkeypatch)


@pytest.fixture
def push(run: Run) -> Iterator[Program]:
    """The program in stage `push`."""
    with run(stage="push", **SHORT) as program:
        yield program


def quarantined(program: Program, envelope: Envelope, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Deliver until the ledger gives up, as to receivers that die when the job has started."""
    start = PushedCall._perform

    def dying(self: PushedCall, job: Job, *more: Any) -> Outcome:
        def die(*_: Any) -> Any:
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr("queuebridge.backends.rq.receiving.PushWorker.perform_job", die)
            return start(self, job, *more)

    ended: list[Outcome] = []

    def deliver() -> bool:
        try:
            ended.append(program.deliver(envelope))
        except SystemExit:
            return False
        return ended[-1].status is not Status.BUSY

    with monkeypatch.context() as patch:
        patch.setattr(PushedCall, "_perform", dying)
        wait_until(deliver, 30, what="the job to be quarantined")
    return ended[-1]


def test_quarantined_job_is_failed_for_rq(push: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    after = push.queue.enqueue(rq_tasks.add, 2, depends_on=Dependency(job, allow_failure=True))
    (envelope,) = push.pushed()

    outcome = quarantined(push, envelope, monkeypatch)

    assert (outcome.status, push.known(envelope.dispatch_id).state) == (Status.FAILED, State.QUARANTINED)
    known = push.fetch(job)
    result = known.latest_result()
    assert result is not None
    assert (known.get_status(), result.type) == ("failed", Result.Type.FAILED)
    assert "quarantined" in (result.exc_string or "")
    assert push.queue.failed_job_registry.get_job_ids() == [job.id]
    assert push.queue.started_job_registry.get_job_ids() == []
    # What waited for it goes on, and a job that was given up can be tried again.
    push.deliver_all()
    assert push.fetch(after).return_value() == 2
    push.queue.failed_job_registry.requeue(job.id)
    push.deliver_all()
    assert push.fetch(job).return_value() == 1
    # A late delivery changes nothing.
    assert push.deliver(envelope).status is Status.DUPLICATE
    assert push.fetch(job).get_status() == "finished"


def test_retries_of_rqs_own_come_after_a_quarantine(push: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1, retry=Retry(max=1))
    (envelope,) = push.pushed()

    quarantined(push, envelope, monkeypatch)

    assert push.fetch(job).get_status() == "queued"
    assert [outcome.status for outcome in push.deliver_all()] == [Status.DONE]
    assert push.fetch(job).return_value() == 1


@pytest.mark.parametrize("status", [JobStatus.CANCELED, JobStatus.FINISHED, JobStatus.STOPPED])
def test_record_of_a_job_that_has_ended_is_left_alone(
    push: Program, monkeypatch: pytest.MonkeyPatch, status: JobStatus
) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    (envelope,) = push.pushed()
    call = push.bridge.runner.find(envelope)
    assert isinstance(call, PushedCall)
    push.connection.hset(job.key, "status", status.value)
    before = push.connection.hgetall(job.key)

    call.give_up(envelope, Outcome(status=Status.FAILED, error=ValueError("no")))

    assert push.connection.hgetall(job.key) == before
    assert push.queue.failed_job_registry.get_job_ids() == []


def test_record_that_names_another_dispatch_by_now_is_left_alone(push: Program) -> None:
    job = push.queue.enqueue(rq_tasks.add, 1)
    (envelope,) = push.pushed()
    call = push.bridge.runner.find(envelope)
    assert isinstance(call, PushedCall)

    call.give_up(
        envelope.model_copy(update={"dispatch_id": "earlier"}), Outcome(status=Status.FAILED, error=ValueError("no"))
    )

    assert push.fetch(job).get_status() == "queued"


def test_redis_that_is_away_is_no_reason_to_deliver_again(
    push: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push.queue.enqueue(rq_tasks.add, 1)
    (envelope,) = push.pushed()
    call = push.bridge.runner.find(envelope)
    assert isinstance(call, PushedCall)

    def gone(*_: Any) -> Any:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(call._connection, "hmget", gone)
    with caplog.at_level(logging.ERROR):
        call.give_up(envelope, Outcome(status=Status.FAILED, error=ValueError("no")))

    assert "RQ could not be told" in caplog.text
