"""The backend that runs jobs at once: a full trip over the wire, in one process."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timezone
from typing import Any

import pytest

from queuebridge import (
    Bridge,
    EnqueueManyError,
    EnqueueOptions,
    InvalidOption,
    OptionNotSupported,
    PermanentFailure,
    RetryLater,
    TaskRegistry,
    TaskTimeout,
    UnknownTask,
    current_job,
    task,
)
from queuebridge.backends.inline import InlineBackend
from queuebridge.runner import Runner


def inline(registry: TaskRegistry, **environ: str) -> Bridge:
    return Bridge("inline", registry=registry, environ=environ)


@pytest.fixture
def propagating(registry: TaskRegistry) -> Bridge:
    """An inline bridge that raises what jobs raise."""
    return inline(registry, QUEUEBRIDGE_INLINE_PROPAGATE="1")


def test_job_runs_before_enqueue_returns(registry: TaskRegistry) -> None:
    ran: list[int] = []

    @task(name="t", registry=registry)
    def declared(number: int) -> None:
        ran.append(number)

    inline(registry).enqueue(declared, 5)

    assert ran == [5]


def test_arguments_make_the_trip_over_the_wire(registry: TaskRegistry) -> None:
    got: list[Any] = []

    @task(name="t", registry=registry)
    def work(day: date, options: dict[str, Any], /, *days: date, raw: bytes) -> None:
        got.append((day, options, days, raw))

    day = date(2024, 5, 1)
    options = {"a": [1]}
    inline(registry).enqueue(work, day, options, day, raw=b"\xff")

    assert got == [(day, {"a": [1]}, (day,), b"\xff")]
    assert got[0][1] is not options


def test_receipt_names_the_dispatch_as_the_message(registry: TaskRegistry) -> None:
    declared = task(name="t", registry=registry)(lambda: None)

    receipt = inline(registry).enqueue(declared)

    assert (receipt.backend, receipt.message_id, receipt.deduplicated) == ("inline", receipt.dispatch_id, False)


def test_job_knows_where_it_comes_from(registry: TaskRegistry) -> None:
    jobs: list[Any] = []
    declared = task(name="t", queue="mail", registry=registry)(lambda: jobs.append(current_job()))

    receipt = inline(registry).apply_async(
        declared, options=EnqueueOptions(metadata={"user_id": 1}, headers={"a": "b"})
    )

    (job,) = jobs
    assert (job.job_id, job.dispatch_id, job.message_id) == (receipt.job_id, receipt.dispatch_id, receipt.dispatch_id)
    assert (job.backend, job.queue, job.attempt, job.metadata, job.headers) == (
        "inline",
        "mail",
        1,
        {"user_id": 1},
        {"a": "b"},
    )


def test_failed_job_is_tried_again_at_once(registry: TaskRegistry) -> None:
    attempts: list[tuple[int, int]] = []

    @task(name="t", retries=3, backoff=3600, registry=registry)
    def work() -> None:
        attempts.append((current_job().attempt, current_job().max_attempts))
        if len(attempts) < 3:
            raise RetryLater(delay_seconds=3600)

    inline(registry).enqueue(work)

    assert attempts == [(1, 4), (2, 4), (3, 4)]


def test_attempts_end(registry: TaskRegistry) -> None:
    attempts: list[int] = []

    @task(name="t", retries=2, registry=registry)
    def work() -> None:
        attempts.append(current_job().attempt)
        raise ValueError("no luck")

    inline(registry).enqueue(work)

    assert attempts == [1, 2, 3]


def test_permanent_failure_is_tried_once(registry: TaskRegistry) -> None:
    attempts: list[int] = []

    @task(name="t", registry=registry)
    def work() -> None:
        attempts.append(current_job().attempt)
        raise PermanentFailure("gone")

    inline(registry).enqueue(work)

    assert attempts == [1]


def test_error_of_a_failed_job_is_raised_if_wanted(registry: TaskRegistry, propagating: Bridge) -> None:
    error = ValueError("no luck")

    @task(name="t", retries=1, registry=registry)
    def work() -> None:
        raise error

    with pytest.raises(ValueError, match="no luck") as caught:
        propagating.enqueue(work)

    assert caught.value is error


def test_error_is_not_raised_by_default(registry: TaskRegistry) -> None:
    declared = task(name="t", retries=0, registry=registry)(lambda: 1 / 0)
    bridge = Bridge(InlineBackend(Runner(registry)), registry=registry, environ={})

    assert bridge.enqueue(declared).backend == "inline"


def test_error_that_a_retry_mended_is_not_raised(registry: TaskRegistry, propagating: Bridge) -> None:
    @task(name="t", retries=1, registry=registry)
    def work() -> None:
        if current_job().attempt == 1:
            raise ValueError("no luck")

    assert propagating.enqueue(work).backend == "inline"


def test_task_of_another_registry_is_unknown(registry: TaskRegistry, propagating: Bridge) -> None:
    declared = task(name="elsewhere", registry=TaskRegistry())(lambda: None)

    with pytest.raises(UnknownTask):
        propagating.enqueue(declared)


def test_timeout_is_kept(registry: TaskRegistry, propagating: Bridge) -> None:
    @task(name="t", retries=0, timeout=0.05, registry=registry)
    def work() -> None:
        while True:
            pass

    with pytest.raises(TaskTimeout):
        propagating.enqueue(work)


def test_async_job_runs_for_asyncio_callers(registry: TaskRegistry) -> None:
    ran: list[str] = []

    @task(name="t", registry=registry)
    async def work(name: str) -> None:
        await asyncio.sleep(0)
        ran.append(name)

    bridge = inline(registry)

    async def main() -> None:
        await bridge.aenqueue(work, "awaited")
        bridge.enqueue(work, "called")

    asyncio.run(main())

    assert ran == ["awaited", "called"]


def test_job_may_enqueue_another_one(registry: TaskRegistry) -> None:
    bridge = inline(registry)
    ids: list[str] = []
    inner = task(name="inner", registry=registry)(lambda: ids.append(current_job().task))

    @task(name="outer", registry=registry)
    def outer() -> None:
        bridge.enqueue(inner)
        ids.append(current_job().task)

    bridge.enqueue(outer)

    assert ids == ["inner", "outer"]


def test_batch_runs_all_jobs_in_order(registry: TaskRegistry) -> None:
    ran: list[int] = []

    @task(name="t", registry=registry)
    def declared(number: int) -> None:
        ran.append(number)

    inline(registry).enqueue_many([(declared, [number]) for number in range(3)])

    assert ran == [0, 1, 2]


def test_batch_with_a_failing_job_tells_which(registry: TaskRegistry, propagating: Bridge) -> None:
    declared = task(name="t", retries=0, registry=registry)(lambda number: 1 // number)

    with pytest.raises(EnqueueManyError) as caught:
        propagating.enqueue_many([(declared, [1]), (declared, [0]), (declared, [2])])

    assert [isinstance(result, ZeroDivisionError) for result in caught.value.results] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"countdown": 1}, "countdown/eta"),
        ({"eta": datetime(2030, 1, 1, tzinfo=timezone.utc)}, "countdown/eta"),
        ({"priority": 1}, "priority"),
        ({"idempotency_key": "k"}, "idempotency_key"),
    ],
    ids=str,
)
def test_option_without_a_meaning_here_is_refused(registry: TaskRegistry, options: dict[str, Any], option: str) -> None:
    ran: list[int] = []
    declared = task(name="t", registry=registry)(lambda: ran.append(1))

    with pytest.raises(OptionNotSupported, match=f"inline backend cannot honour {option}"):
        inline(registry).apply_async(declared, options=EnqueueOptions(**options))

    assert ran == []


@pytest.mark.parametrize("retry", [True, False])
def test_publish_retry_has_nothing_to_do(registry: TaskRegistry, retry: bool) -> None:
    declared = task(name="t", registry=registry)(lambda: None)

    assert inline(registry).apply_async(declared, options=EnqueueOptions(retry=retry)).backend == "inline"


def test_there_are_no_options_of_its_own(registry: TaskRegistry) -> None:
    declared = task(name="t", registry=registry)(lambda: None)

    with pytest.raises(InvalidOption, match=r"options\['inline'\]\['label'\]"):
        inline(registry).apply_async(declared, options=EnqueueOptions(options={"inline": {"label": "x"}}))


def test_options_of_other_backends_do_not_concern_it(registry: TaskRegistry) -> None:
    declared = task(name="t", registry=registry)(lambda: None)

    receipt = inline(registry).apply_async(declared, options=EnqueueOptions(options={"qstash": {"label": "x"}}))

    assert receipt.backend == "inline"


def test_job_with_an_expiry_runs(registry: TaskRegistry) -> None:
    ran: list[int] = []
    declared = task(name="t", registry=registry)(lambda: ran.append(1))

    inline(registry).apply_async(declared, options=EnqueueOptions(expires=60))

    assert ran == [1]


def test_ping_needs_nobody(registry: TaskRegistry) -> None:
    assert inline(registry).backend.ping() == "runs jobs in this process"


def test_closed_bridge_can_be_used_again(registry: TaskRegistry) -> None:
    bridge = inline(registry)
    declared = task(name="t", registry=registry)(lambda: None)

    bridge.close()

    assert bridge.enqueue(declared).backend == "inline"
