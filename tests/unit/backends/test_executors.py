"""How Celery and RQ are told what the ledger said of a delivery."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery.exceptions import Ignore, Reject, Retry

from queuebridge import PermanentFailure, TaskRegistry, task
from queuebridge.backend import Publication
from queuebridge.backends.celery.message import HEADER, encode_header
from queuebridge.backends.celery.worker import register_tasks
from queuebridge.backends.rq import task_job as rq_job
from queuebridge.backends.rq.backend import RQBackend, retry_interval
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import LedgerUnavailable, QueueBridgeError
from queuebridge.outcome import Outcome, Status
from queuebridge.retry import RetryPolicy
from queuebridge.runner import Runner
from queuebridge.stages import Role, Stage

ENVELOPE = Envelope(
    job_id="job-1",
    dispatch_id="d1",
    task="work",
    args=[1],
    queue="default",
    enqueued_at_ms=1,
    headers={"X-Tenant": "a"},
    retry=RetryPolicy(retries=2),
    stage=Stage.LIVE,
    role=Role.SAFETY,
    epoch=1000,
)
ERROR = PermanentFailure("why")
BUSY = Outcome(status=Status.BUSY, retry_delay_seconds=40.0, epoch=1)
DEFERRED = Outcome(status=Status.DEFERRED, error=LedgerUnavailable("away."), retry_delay_seconds=12.5)
RETRY = Outcome(status=Status.RETRY, error=ValueError("no luck"), retry_delay_seconds=30.0)
ACKNOWLEDGED = [
    Outcome(status=Status.DUPLICATE, error=ERROR),
    Outcome(status=Status.SHADOWED),
    Outcome(status=Status.EXPIRED, error=ERROR),
]
FINAL = [Outcome(status=Status.FAILED, error=ERROR), Outcome(status=Status.INVALID_ARGUMENTS, error=ERROR)]


def status_of(outcome: Outcome) -> str:
    return outcome.status.value


class FixedRunner(Runner):
    """Ends every delivery as it is told.

    Attributes:
        outcome: How.
        seen: What was delivered.
    """

    def __init__(self, registry: TaskRegistry, *, claimed: bool) -> None:
        super().__init__(registry)
        self.claims = object() if claimed else None  # type: ignore[assignment]
        self.outcome = Outcome(status=Status.DONE, result=5)
        self.seen: list[tuple[Envelope, Delivery]] = []

    def run(self, envelope: Envelope, delivery: Delivery) -> Outcome:
        """End as told."""
        self.seen.append((envelope, delivery))
        return self.outcome


@pytest.fixture
def registry() -> TaskRegistry:
    """A registry with one task."""
    registry = TaskRegistry()
    task(name="work", registry=registry)(lambda number: None)
    return registry


@pytest.fixture(params=[True, False], ids=["with a ledger", "without a ledger"])
def runner(request: pytest.FixtureRequest, registry: TaskRegistry) -> FixedRunner:
    """A runner, with a ledger and without."""
    return FixedRunner(registry, claimed=request.param)


# Celery


class CeleryTask:
    """A registered Celery task that runs one message, and remembers the retry that it asked for."""

    def __init__(self, registry: TaskRegistry, runner: FixedRunner) -> None:
        app = celery.Celery("test", broker="memory://", set_as_current=False)
        register_tasks(app, registry, runner)
        self.task = app.tasks["work"]
        self.retried: dict[str, Any] = {}
        self.trouble: Exception | None = None
        self.task.retry = self._retry
        self.app = app

    def _retry(self, **arguments: Any) -> Retry:
        self.retried = arguments
        if self.trouble is not None:
            raise self.trouble
        return Retry()

    def run(self) -> Any:
        headers = {**ENVELOPE.headers, HEADER: encode_header(ENVELOPE)}
        self.task.push_request(id="job-1", retries=3, headers=headers, delivery_info={"routing_key": "default"})
        try:
            return self.task.run(1)
        finally:
            self.task.pop_request()

    @property
    def again(self) -> Envelope:
        """The envelope of the message that was put off."""
        content = Envelope.model_validate_json(
            ENVELOPE.model_dump_json(exclude_defaults=True, include={"job_id", "task", "args"})[:-1]
            + ","
            + self.retried["headers"][HEADER][1:]
        )
        return content.model_copy(update={"headers": {"X-Tenant": self.retried["headers"]["X-Tenant"]}})


@pytest.fixture
def celery_task(registry: TaskRegistry, runner: FixedRunner) -> Iterator[CeleryTask]:
    """The task as a Celery worker has it."""
    made = CeleryTask(registry, runner)
    yield made
    made.app.close()


def test_celery_delivery_reaches_the_runner_as_it_was_sent(celery_task: CeleryTask, runner: FixedRunner) -> None:
    assert celery_task.run() == 5
    assert runner.seen == [(ENVELOPE, Delivery(backend="celery", message_id="job-1", attempt=4))]


@pytest.mark.parametrize("outcome", [BUSY, DEFERRED], ids=status_of)
def test_celery_brings_the_same_dispatch_again_after_the_delay(
    celery_task: CeleryTask, runner: FixedRunner, outcome: Outcome
) -> None:
    runner.outcome = outcome

    # Not Retry: Celery would note that state over the one of the execution under way.
    with pytest.raises(Ignore):
        celery_task.run()

    assert celery_task.retried["countdown"] == outcome.retry_delay_seconds
    assert celery_task.again == ENVELOPE


def test_celery_retry_is_the_same_dispatch_only_where_a_ledger_counts(
    celery_task: CeleryTask, runner: FixedRunner
) -> None:
    runner.outcome = RETRY

    with pytest.raises(Retry):
        celery_task.run()

    assert celery_task.retried["countdown"] == 30.0
    if runner.claims is not None:
        assert celery_task.again == ENVELOPE
    else:
        assert celery_task.again.dispatch_id != ENVELOPE.dispatch_id
        assert celery_task.again == ENVELOPE.model_copy(
            update={"dispatch_id": celery_task.again.dispatch_id, "epoch": 0}
        )


@pytest.mark.parametrize("outcome", ACKNOWLEDGED, ids=status_of)
def test_celery_acknowledges_what_need_not_run_without_a_trace(
    celery_task: CeleryTask, runner: FixedRunner, outcome: Outcome
) -> None:
    runner.outcome = outcome

    with pytest.raises(Ignore):
        celery_task.run()
    assert celery_task.retried == {}


@pytest.mark.parametrize("outcome", FINAL, ids=status_of)
def test_celery_task_fails_with_the_error_of_the_job(
    celery_task: CeleryTask, runner: FixedRunner, outcome: Outcome
) -> None:
    runner.outcome = outcome

    with pytest.raises(PermanentFailure, match="why"):
        celery_task.run()
    assert celery_task.retried == {}


def test_celery_gives_a_message_back_that_cannot_be_put_off(celery_task: CeleryTask, runner: FixedRunner) -> None:
    runner.outcome, celery_task.trouble = BUSY, Reject("broker away", requeue=False)

    with pytest.raises(Reject) as caught:
        celery_task.run()

    assert caught.value.requeue


# RQ


class RQJob:
    """One job in an RQ worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registry: TaskRegistry, runner: FixedRunner) -> None:
        self.job = SimpleNamespace(
            id="job-1", retries_left=5, retry_intervals=[1, 1, 1], return_value=lambda: "result"
        )
        bridge = SimpleNamespace(registry=registry, runner=runner, load_tasks=lambda: None)
        monkeypatch.setattr(rq_job, "get_current_job", lambda: self.job)
        monkeypatch.setattr(rq_job, "get_bridge", lambda: bridge)

    def run(self, retries_left: int | None = 5) -> Any:
        self.job.retries_left = retries_left
        return rq_job.run(ENVELOPE.encode().decode())

    @property
    def left_after_requeue(self) -> int:
        """How many retries RQ has left when it has brought the job again."""
        left: int = self.job.retries_left
        return left - 1


@pytest.fixture
def rq_worker(monkeypatch: pytest.MonkeyPatch, registry: TaskRegistry, runner: FixedRunner) -> RQJob:
    """The job as an RQ worker runs it."""
    return RQJob(monkeypatch, registry, runner)


def test_rq_delivery_reaches_the_runner_as_it_was_sent(rq_worker: RQJob, runner: FixedRunner) -> None:
    assert rq_worker.run(1) == 5
    assert runner.seen == [(ENVELOPE, Delivery(backend="rq", message_id="job-1", attempt=2))]


@pytest.mark.parametrize(("left", "attempt"), [(5, 1), (2, 1), (1, 2), (0, 3), (None, 3)])
def test_rq_attempt_is_never_below_one(rq_worker: RQJob, runner: FixedRunner, left: int | None, attempt: int) -> None:
    rq_worker.run(left)

    assert runner.seen[0][1].attempt == attempt


@pytest.mark.parametrize("left", [3, 1, 0, None])
@pytest.mark.parametrize("outcome", [BUSY, DEFERRED], ids=status_of)
def test_rq_brings_a_job_again_that_was_put_off_without_using_up_a_retry(
    rq_worker: RQJob, runner: FixedRunner, outcome: Outcome, left: int | None
) -> None:
    runner.outcome = outcome

    with pytest.raises(QueueBridgeError, match=r"busy|away"):
        rq_worker.run(left)

    assert rq_worker.left_after_requeue == max(left or 0, 1)
    assert rq_worker.job.retry_intervals == [retry_interval(outcome.retry_delay_seconds or 0)]


@pytest.mark.parametrize("left", [3, 1, 0])
def test_rq_retries_as_often_as_the_ledger_says(rq_worker: RQJob, runner: FixedRunner, left: int) -> None:
    runner.outcome = RETRY

    with pytest.raises(ValueError, match="no luck"):
        rq_worker.run(left)

    # Without a ledger it is RQ that counts.
    assert rq_worker.job.retries_left == (max(left, 1) if runner.claims is not None else left)
    assert rq_worker.job.retry_intervals == [31]


@pytest.mark.parametrize("outcome", ACKNOWLEDGED, ids=status_of)
def test_rq_job_that_need_not_run_ends_well(rq_worker: RQJob, runner: FixedRunner, outcome: Outcome) -> None:
    runner.outcome = outcome

    # RQ takes what is returned for the result: a duplicate must leave that of the execution that counts.
    assert rq_worker.run() == ("result" if outcome.status is Status.DUPLICATE else outcome.status.value)


@pytest.mark.parametrize("outcome", FINAL, ids=status_of)
def test_rq_does_not_retry_what_has_failed_for_good(rq_worker: RQJob, runner: FixedRunner, outcome: Outcome) -> None:
    runner.outcome = outcome

    with pytest.raises(PermanentFailure):
        rq_worker.run()
    assert rq_worker.job.retries_left == 0


# What RQ is told at the publish


def arguments(**changes: Any) -> dict[str, Any]:
    """Return what a publication becomes for RQ."""
    publication = Publication(
        envelope=ENVELOPE.model_copy(update={"retry": RetryPolicy(retries=changes.pop("retries", 0))}), **changes
    )
    return RQBackend("redis://localhost")._arguments(publication)


@pytest.mark.parametrize(
    ("retries", "counted", "expected"), [(0, False, None), (2, False, 2), (0, True, 5), (2, True, 5), (9, True, 9)]
)
def test_rq_retries_are_for_reachability_where_the_ledger_counts(
    retries: int, counted: bool, expected: int | None
) -> None:
    retry = arguments(retries=retries, counted_by_ledger=counted)["retry"]

    assert (retry.max if retry is not None else None) == expected


@pytest.mark.parametrize(("epoch", "unique"), [(0, True), (1000, False)])
def test_rq_takes_a_wanted_republication_of_a_keyed_job(
    monkeypatch: pytest.MonkeyPatch, epoch: int, unique: bool
) -> None:
    calls: list[dict[str, Any]] = []
    backend = RQBackend("redis://localhost")
    queue = SimpleNamespace(
        enqueue_call=lambda function, **given: calls.append(given), enqueue_many=lambda jobs: calls.append({})
    )
    monkeypatch.setattr(backend, "_queue", lambda name: queue)

    backend.publish(Publication(envelope=ENVELOPE.model_copy(update={"idempotency_key": "k", "epoch": epoch})))

    assert [call.get("unique", False) for call in calls] == [unique]
