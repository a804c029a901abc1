"""Celery workers, RQ workers and the receiver ask the ledger before they run a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from contracts import Effects, new_tag
from executors import EXECUTORS, LEASE_SECONDS, SUPERVISED, Executor, running
from processes import Spawner, free_port, wait_until
from relays import Relay

from queuebridge import EnqueueOptions
from queuebridge.backends.celery import CeleryBackend
from queuebridge.ledger import DeliveryOutcome, State

# A kill of a worker that runs jobs in its own process or threads takes what it has put off along; two that run one
# job at a time leave that to the other one.
KILLABLE = (*SUPERVISED, "celery-solo")

Run = Callable[..., AbstractContextManager[Executor]]


@pytest.fixture
def run(redis_url: str, spawn: Spawner, tmp_path: Path) -> Run:
    """Run an executor: `with run(name) as executor`."""
    return partial(running, redis_url=redis_url, effects=Effects(tmp_path / "effects"), spawn=spawn)


@pytest.fixture
def executor(request: pytest.FixtureRequest, run: Run) -> Iterator[Executor]:
    """The executor that the test is parametrized with."""
    with run(request.param) as made:
        yield made


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    """The way from an executor to the ledger."""
    place = urlsplit(redis_url)
    with Relay(free_port(), place.hostname or "127.0.0.1", place.port or 6379) as made:
        yield made


@pytest.fixture
def relayed(relay: Relay, redis_url: str) -> str:
    """The address of the ledger on that way."""
    return urlsplit(redis_url)._replace(netloc=f"127.0.0.1:{relay.port}").geturl()


def celery_state(executor: Executor, job_id: str) -> str:
    """Return the state of a job in Celery's result backend."""
    assert isinstance(executor.bridge.backend, CeleryBackend)
    results = executor.bridge.backend.app.backend
    try:
        state: str = results.get_state(job_id)
        return state
    finally:
        results.client.close()


@pytest.mark.parametrize("executor", EXECUTORS, indirect=True)
def test_p2_dispatch_delivered_twice_at_once_runs_once_for_longer_than_its_lease(
    executor: Executor, tmp_path: Path
) -> None:
    tag, gate = new_tag(), tmp_path / "gate"
    job = executor.dispatch("hold", tag, str(gate))

    executor.deliver(job)
    executor.effects.wait(tag)
    first = executor.execution(job).lease_until_ms or 0
    executor.deliver(job)
    executor.wait_for(DeliveryOutcome.BUSY, job)
    executor.wait_until(
        job, lambda known: (known.lease_until_ms or 0) > first + LEASE_SECONDS * 1000, what="the lease to be renewed"
    )
    if executor.name.startswith("celery"):
        # The one that was put off is no affair of Celery's.
        assert celery_state(executor, job.job_id) == "PENDING"
    gate.touch()
    executor.effects.wait(tag, "finished")
    executor.wait_for(DeliveryOutcome.SUPPRESSED, job)

    (run,) = executor.effects.of(tag, "run")
    assert len(executor.effects.of(tag, "finished")) == 1
    known = executor.execution(job)
    assert (known.state, known.attempts, known.token) == (State.DONE, 1, run["fence"])
    assert executor.outcomes(job).count(DeliveryOutcome.GRANTED) == 1
    if executor.name.startswith("celery"):
        assert celery_state(executor, job.job_id) == "SUCCESS"


@pytest.mark.parametrize("executor", KILLABLE, indirect=True)
def test_p1_busy_delivery_comes_again_and_runs_if_the_first_executor_is_killed(
    executor: Executor, tmp_path: Path
) -> None:
    tag, gate = new_tag(), tmp_path / "gate"
    job = executor.dispatch("hold", tag, str(gate))
    executor.deliver(job)
    (first,) = executor.effects.wait(tag)
    executor.deliver(job)
    executor.wait_for(DeliveryOutcome.BUSY, job)

    executor.kill(first["pid"])
    gate.touch()
    (finished,) = executor.effects.wait(tag, "finished", timeout=40)

    assert finished["pid"] != first["pid"]
    assert finished["attempt"] == 2
    assert finished["fence"] > first["fence"]
    executor.wait_until(job, lambda known: known.state is State.DONE, what="the job to be settled")
    assert executor.execution(job).token == finished["fence"]


@pytest.mark.parametrize("executor", SUPERVISED, indirect=True)
def test_task_that_kills_its_process_is_quarantined_after_its_last_attempt(executor: Executor) -> None:
    tag = new_tag()
    job = executor.dispatch("die", tag)

    executor.deliver(job)
    executor.effects.wait(tag, count=2, timeout=40)
    executor.wait_until(job, lambda known: known.state.settled, 40, what="the job to be given up")

    assert executor.execution(job).state is State.QUARANTINED
    assert executor.execution(job).attempts == 2
    assert [run["attempt"] for run in executor.effects.of(tag)] == [1, 2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SUPERVISED)
def test_delivery_waits_for_a_ledger_that_is_away(name: str, run: Run, relay: Relay, relayed: str) -> None:
    with run(name, ledger_url=relayed) as executor:
        tag, before = new_tag(), new_tag()
        executor.deliver(executor.dispatch("record", before))
        executor.effects.wait(before)
        job = executor.dispatch("record", tag)

        relay.cut()
        executor.deliver(job)
        wait_until(
            lambda: any("deferred job=" in process.output for process in executor.processes),
            30,
            what="the delivery to be put off",
        )
        assert executor.effects.of(tag) == []
        relay.mend()

        executor.effects.wait(tag, timeout=60)
        executor.wait_until(job, lambda known: known.state is State.DONE, what="the job to be settled")
        assert len(executor.effects.of(tag)) == 1
        assert executor.execution(job).attempts == 1


@pytest.mark.parametrize("name", SUPERVISED)
def test_delivery_is_executed_without_a_claim_if_the_settings_say_so(
    name: str, run: Run, relay: Relay, relayed: str
) -> None:
    relay.cut()
    with run(name, ledger_url=relayed, QUEUEBRIDGE_LEDGER_DOWN="execute") as executor:
        tag = new_tag()
        executor.deliver(executor.dispatch("record", tag))

        (effect,) = executor.effects.wait(tag)

        assert effect["fence"] is None
        assert any("WITHOUT a claim" in process.output for process in executor.processes)


@pytest.mark.parametrize("executor", SUPERVISED, indirect=True)
def test_cancelled_job_does_not_start(executor: Executor) -> None:
    tag = new_tag()
    receipt = executor.bridge.apply_async("contract.record", [tag], options=EnqueueOptions(countdown=1))

    # In the ledger only: the transport brings it all the same, as one does that cannot take messages back.
    assert executor.ledger.cancel(receipt.job_id) == (1, 0)

    def outcomes() -> list[DeliveryOutcome]:
        arrivals = executor.ledger.executions.deliveries([receipt.dispatch_id])[receipt.dispatch_id]
        return [arrival.outcome for arrival in arrivals]

    wait_until(outcomes, 30, what="the delivery")
    assert outcomes() == [DeliveryOutcome.SUPPRESSED]
    assert executor.effects.of(tag) == []
