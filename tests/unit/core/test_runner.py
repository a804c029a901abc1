"""How one delivery ends."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import threading
from collections.abc import Callable
from datetime import date, datetime, timezone
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, computed_field

from queuebridge import (
    CurrentJob,
    InvalidArguments,
    PermanentFailure,
    QueueBridgeError,
    RetryLater,
    RetryPolicy,
    TaskRegistry,
    TaskTimeout,
    UnknownTask,
    current_job,
    task,
)
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import TaskRegistrationError
from queuebridge.outcome import Outcome, Status, describe
from queuebridge.runner import Runner

NOW = 1_715_350_500.0
SECRET = "hunter2-TOP-SECRET"


class Run:
    """Declares one task and runs deliveries of it."""

    def __init__(self, registry: TaskRegistry) -> None:
        self.registry = registry
        self.runner = Runner(registry, clock=lambda: NOW)

    def __call__(
        self,
        function: Callable[..., Any],
        *args: Any,
        attempt: int = 1,
        enforces_timeout: bool = False,
        declared: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Outcome:
        task(name="work", registry=self.registry, **(declared or {}))(function)
        return self.deliver(*args, attempt=attempt, enforces_timeout=enforces_timeout, **fields)

    def deliver(self, *args: Any, attempt: int = 1, enforces_timeout: bool = False, **fields: Any) -> Outcome:
        envelope = Envelope(
            **{
                "job_id": "job-1",
                "dispatch_id": "dispatch-1",
                "task": "work",
                "args": list(args),
                "queue": "default",
                "enqueued_at_ms": int(NOW * 1000),
                "retry": RetryPolicy(retries=2, delays=(5, 50)),
                **fields,
            }
        )
        delivery = Delivery(
            backend="inline", message_id="message-1", attempt=attempt, enforces_timeout=enforces_timeout
        )
        return self.runner.run(envelope, delivery)


@pytest.fixture
def run(registry: TaskRegistry) -> Run:
    """Run a function as a job."""
    return Run(registry)


def records_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what the runner has logged."""
    return [record for record in caplog.records if record.name.startswith("queuebridge.run")]


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_task_gets_typed_arguments_and_its_result_is_json(run: Run) -> None:
    def work(day: date) -> Any:
        return {"next": day.replace(day=2), "type": type(day).__name__}

    assert run(work, "2024-05-01") == Outcome(status=Status.DONE, result={"next": "2024-05-02", "type": "date"})


def test_result_may_be_nothing(run: Run) -> None:
    assert run(lambda: None) == Outcome(status=Status.DONE, result=None)


def test_job_of_a_former_name_runs(run: Run) -> None:
    assert run(lambda: 5, declared={"aliases": ["old"]}, task="old").result == 5


def test_failure_is_retried_after_the_policy_of_the_job(run: Run) -> None:
    error = ValueError("no luck")

    outcome = run(fail(error), attempt=1)

    assert outcome == Outcome(status=Status.RETRY, error=error, retry_delay_seconds=5.0)


def test_second_retry_waits_for_the_second_delay(run: Run) -> None:
    assert run(fail(ValueError()), attempt=2).retry_delay_seconds == 50.0


def test_policy_is_that_of_the_envelope_not_of_the_declaration(run: Run) -> None:
    outcome = run(fail(ValueError()), declared={"retries": 0}, retry=RetryPolicy(retries=1, delays=(7,)))

    assert (outcome.status, outcome.retry_delay_seconds) == (Status.RETRY, 7.0)


@pytest.mark.parametrize(("attempt", "status"), [(1, "retry"), (2, "retry"), (3, "failed"), (4, "failed")])
def test_last_attempt_fails_for_good(run: Run, attempt: int, status: str) -> None:
    assert run(fail(ValueError()), attempt=attempt).status.value == status


def test_job_without_retries_fails_at_once(run: Run) -> None:
    outcome = run(fail(ValueError()), retry=RetryPolicy(retries=0))

    assert (outcome.status, outcome.retry_delay_seconds) == (Status.FAILED, None)


def test_retry_later_sets_the_delay(run: Run) -> None:
    outcome = run(fail(RetryLater("rate limit", delay_seconds=17)))

    assert (outcome.status, outcome.retry_delay_seconds, outcome.reason) == (
        Status.RETRY,
        17.0,
        "RetryLater: rate limit",
    )


def test_retry_later_at_once_is_not_the_backoff(run: Run) -> None:
    assert run(fail(RetryLater(delay_seconds=0))).retry_delay_seconds == 0.0


def test_retry_later_without_a_delay_uses_the_backoff(run: Run) -> None:
    assert run(fail(RetryLater())).retry_delay_seconds == 5.0


def test_retry_later_counts_as_an_attempt(run: Run) -> None:
    assert run(fail(RetryLater(delay_seconds=17)), attempt=3).status is Status.FAILED


def test_permanent_failure_is_not_retried(run: Run) -> None:
    assert run(fail(PermanentFailure("gone"))).status is Status.FAILED


def test_listed_exceptions_are_not_retried(run: Run) -> None:
    assert run(fail(KeyError("a")), declared={"give_up_on": [LookupError]}).status is Status.FAILED


def test_other_exceptions_are_retried(run: Run) -> None:
    assert run(fail(ValueError()), declared={"give_up_on": [LookupError]}).status is Status.RETRY


def test_unknown_task(run: Run) -> None:
    outcome = run.deliver()

    assert (outcome.status, type(outcome.error)) == (Status.UNKNOWN_TASK, UnknownTask)


def test_invalid_arguments_are_not_run(run: Run) -> None:
    ran = []

    def work(number: int) -> None:
        ran.append(number)

    outcome = run(work, "many")

    assert (outcome.status, type(outcome.error), ran) == (Status.INVALID_ARGUMENTS, InvalidArguments, [])


def test_invalid_arguments_of_a_job_that_the_body_enqueues_are_a_failure_of_the_body(run: Run) -> None:
    assert run(fail(InvalidArguments("other", ["a: wrong"]))).status is Status.RETRY


def test_validator_that_fails_by_itself_is_retried(run: Run) -> None:
    def work(number: Annotated[int, AfterValidator(look_up)]) -> None: ...

    assert run(work, 1).reason == "ConnectionError: the database is away"


def test_task_whose_hints_cannot_be_resolved_is_a_failure(run: Run) -> None:
    def work(value): ...  # type: ignore[no-untyped-def]

    work.__annotations__ = {"value": "Nowhere"}

    outcome = run(work, 1)

    assert (outcome.status, type(outcome.error)) == (Status.RETRY, TaskRegistrationError)


def test_expired_job_is_not_run(run: Run) -> None:
    ran = []

    outcome = run(lambda: ran.append(1), expires_at_ms=int(NOW * 1000) - 1)

    assert (outcome.status, ran) == (Status.EXPIRED, [])


def test_job_runs_up_to_its_last_moment(run: Run) -> None:
    assert run(lambda: 1, expires_at_ms=int(NOW * 1000)).status is Status.DONE


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_wish_to_end_the_process_passes_through(run: Run, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(fail(error))


def test_wish_to_end_the_process_passes_through_from_a_coroutine(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(work)

    gc.collect()
    # asyncio complains about errors that nobody looked at when it forgets them.
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("in_coroutine", [False, True])
def test_cancellation_from_inside_is_a_failure(run: Run, in_coroutine: bool) -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    outcome = run(work if in_coroutine else fail(asyncio.CancelledError()))

    assert (outcome.status, outcome.reason) == (
        Status.RETRY,
        "QueueBridgeError: The task was cancelled from inside.",
    )


def test_async_task_runs(run: Run) -> None:
    async def work(day: date) -> Any:
        await asyncio.sleep(0)
        return day.year

    assert run(work, "2024-05-01") == Outcome(status=Status.DONE, result=2024)


def test_async_task_that_fails_is_retried(run: Run) -> None:
    error = ValueError("no luck")

    async def work() -> None:
        raise error

    assert run(work) == Outcome(status=Status.RETRY, error=error, retry_delay_seconds=5.0)


def test_async_function_under_a_plain_decorator_runs(run: Run) -> None:
    async def body() -> str:
        await asyncio.sleep(0)
        return "ran"

    @functools.wraps(body)
    def work() -> Any:
        return body()

    assert run(work).result == "ran"


def test_async_task_runs_where_an_event_loop_runs_already(run: Run) -> None:
    async def work() -> tuple[str, str]:
        await asyncio.sleep(0)
        return current_job().job_id, threading.current_thread().name

    async def main() -> Outcome:
        return run(work)

    assert asyncio.run(main()).result == ["job-1", "queuebridge-async-task"]


def test_failure_passes_from_the_thread_of_an_async_task(run: Run) -> None:
    async def work() -> None:
        raise ValueError("no luck")

    async def main() -> Outcome:
        return run(work)

    assert asyncio.run(main()).reason == "ValueError: no luck"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_body_knows_its_job(run: Run, kind: str) -> None:
    jobs: list[CurrentJob] = []

    async def async_work() -> None:
        jobs.append(current_job())

    run(
        async_work if kind == "async" else lambda: jobs.append(current_job()),
        attempt=2,
        queue="mail",
        timeout_seconds=60.0,
        metadata={"user_id": 7},
        headers={"a": "b"},
    )

    assert jobs == [
        CurrentJob(
            job_id="job-1",
            dispatch_id="dispatch-1",
            task="work",
            queue="mail",
            attempt=2,
            max_attempts=3,
            backend="inline",
            message_id="message-1",
            deadline=datetime.fromtimestamp(NOW + 60, timezone.utc),
            metadata={"user_id": 7},
            headers={"a": "b"},
        )
    ]


def test_job_without_a_timeout_has_no_deadline(run: Run) -> None:
    assert run(lambda: current_job().deadline is None).result is True


@pytest.mark.parametrize("error", [None, ValueError()])
def test_no_job_is_current_after_the_run(run: Run, error: Exception | None) -> None:
    run(fail(error) if error else lambda: None)

    with pytest.raises(QueueBridgeError, match="No job is being executed here"):
        current_job()


def test_outer_job_is_current_again_after_an_inner_one(run: Run) -> None:
    task(name="inner", registry=run.registry)(lambda: current_job().job_id)

    def work() -> Any:
        inner = run.deliver(task="inner", job_id="job-2").result
        return inner, current_job().job_id

    assert run(work).result == ["job-2", "job-1"]


def test_body_that_runs_too_long_is_stopped_and_retried(run: Run) -> None:
    def work() -> None:
        threading.Event().wait()

    outcome = run(work, timeout_seconds=0.05)

    assert (outcome.status, outcome.reason) == (
        Status.RETRY,
        "TaskTimeout: The task ran past its timeout of 0.05 s.",
    )


def test_transport_that_keeps_the_time_itself_is_left_to_it(run: Run) -> None:
    limits: list[object] = []

    def work() -> None:
        limits.append(signal.getsignal(signal.SIGALRM))

    run(work, timeout_seconds=5.0, enforces_timeout=True)
    run.deliver(timeout_seconds=5.0)

    assert limits[0] != limits[1]


def test_coroutine_that_runs_too_long_is_cancelled(run: Run) -> None:
    seen = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    outcome = run(work, timeout_seconds=0.05)

    assert (outcome.status, type(outcome.error), seen) == (Status.RETRY, TaskTimeout, ["cancelled"])


def test_coroutine_that_fails_while_it_is_cancelled_has_timed_out(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in clean-up")

    assert isinstance(run(work, timeout_seconds=0.05).error, TaskTimeout)
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_coroutine_that_blocks_the_event_loop_is_stopped_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuebridge.coroutines._CANCEL_SECONDS", 0.05)

    async def work() -> None:
        threading.Event().wait()

    assert isinstance(run(work, timeout_seconds=0.05).error, TaskTimeout)


def look_up(value: int) -> int:
    raise ConnectionError("the database is away")


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no repr either")


class Failing(BaseModel):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        raise KeyError("computed")

    def __repr__(self) -> str:
        return "Failing()"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (3 + 0j, "(3+0j)"),
        (Failing(), "Failing()"),
        (Broken(), "<Broken>"),
        ("\ud800", "'\\ud800'"),
    ],
    ids=["complex", "failing", "broken", "surrogate"],
)
def test_result_that_is_no_json_is_kept_as_its_repr_with_a_warning(
    run: Run, caplog: pytest.LogCaptureFixture, value: Any, kept: str
) -> None:
    class Odd:
        def __repr__(self) -> str:
            return kept

    outcome = run(lambda: Odd() if isinstance(value, complex) else value)

    assert outcome == Outcome(status=Status.DONE, result=kept)
    warnings = [record for record in records_of(caplog) if record.levelno == logging.WARNING]
    assert [(record.event, record.job_id) for record in warnings] == [("result_not_json", "job-1")]  # type: ignore[attr-defined]


def test_endless_result_is_kept_as_its_repr(run: Run) -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert run(lambda: endless) == Outcome(status=Status.DONE, result="[[...]]")


def test_result_that_json_cannot_show_exactly_is_still_json(run: Run) -> None:
    assert run(lambda: (float("inf"), b"\xff", {1})).result == ["Infinity", "_w==", [1]]


@pytest.mark.parametrize(
    ("function", "args", "attempt", "event", "level"),
    [
        (lambda value: None, [SECRET], 1, "job_done", logging.INFO),
        (lambda value: 1 / 0, [SECRET], 1, "job_retry", logging.WARNING),
        (lambda value: 1 / 0, [SECRET], 3, "job_failed", logging.ERROR),
        (lambda: None, [SECRET], 1, "job_invalid_arguments", logging.ERROR),
    ],
    ids=["done", "retry", "failed", "invalid"],
)
def test_end_is_logged_once_with_fields_and_without_arguments(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    function: Callable[..., Any],
    args: list[Any],
    attempt: int,
    event: str,
    level: int,
) -> None:
    caplog.set_level(logging.INFO, "queuebridge")

    run(function, *args, attempt=attempt)

    (record,) = records_of(caplog)
    fields = ("event", "job_id", "dispatch_id", "task_name", "attempt", "backend")
    assert tuple(getattr(record, field) for field in fields) == (
        event,
        "job-1",
        "dispatch-1",
        "work",
        attempt,
        "inline",
    )
    assert record.levelno == level
    assert SECRET not in caplog.text


def test_unknown_task_is_logged_as_an_error(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.deliver(SECRET)

    (record,) = records_of(caplog)
    assert (record.event, record.levelno) == ("job_unknown_task", logging.ERROR)  # type: ignore[attr-defined]
    assert SECRET not in caplog.text


def test_expiry_is_logged_as_a_warning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run(lambda: None, expires_at_ms=1)

    (record,) = records_of(caplog)
    assert (record.event, record.levelno) == ("job_expired", logging.WARNING)  # type: ignore[attr-defined]


def test_line_for_people_says_what_happens_next(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run(fail(ValueError("no\nluck")))

    message = records_of(caplog)[0].getMessage()
    assert message.startswith("retry job=job-1 task=work attempt=1/3 backend=inline in ")
    assert message.endswith(", again in 5 s: ValueError: no luck")


def test_failure_is_logged_with_its_traceback(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run(lambda: 1 / 0)

    assert "Traceback" in caplog.text
    assert "lambda: 1 / 0" in caplog.text


def test_error_that_cannot_be_shown_does_not_become_another_one(run: Run) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("never")

    logging.getLogger("queuebridge.runner").disabled = True
    try:
        outcome = run(fail(Odd()))
    finally:
        logging.getLogger("queuebridge.runner").disabled = False

    assert (outcome.status, outcome.reason) == (Status.RETRY, "Odd")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (ValueError("a"), "ValueError: a"),
        (ValueError("a\n\n  b"), "ValueError: a b"),
    ],
    ids=repr,
)
def test_error_is_described_in_one_line(error: Exception, text: str) -> None:
    assert describe(error) == text


def test_outcome_without_an_error_has_no_reason() -> None:
    assert Outcome(status=Status.DONE).reason == ""
