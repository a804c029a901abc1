"""How claims are kept alive while bodies run, and how their loss is noticed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from staging import Clock

from queuebridge import current_job
from queuebridge.context import CurrentJob, executing
from queuebridge.errors import LeaseLost, LedgerUnavailable
from queuebridge.lease import Lease, LeaseKeeper

AWAY = LedgerUnavailable("the ledger is away.")


class Renewals:
    """Answers renewals as it is told, and remembers them.

    Attributes:
        answer: What the ledger says; an exception is raised.
        tokens: The tokens that were renewed.
    """

    def __init__(self) -> None:
        self.answer: bool | Exception = True
        self.tokens: list[int] = []

    def __call__(self, lease: Lease) -> bool:
        self.tokens.append(lease.token)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the renewing to the test."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)


@pytest.fixture
def renewals() -> Renewals:
    """The ledger's side of renewals."""
    return Renewals()


@pytest.fixture
def clock() -> Clock:
    """The keeper's clock."""
    return Clock()


@pytest.fixture
def keeper(renewals: Renewals, clock: Clock, no_thread: None) -> LeaseKeeper:
    """A keeper whose work the test does step by step."""
    return LeaseKeeper(renewals, clock=clock)


@pytest.fixture
def lease() -> Lease:
    """A claim of a minute."""
    return Lease("dispatch-1", 7, 60.0)


def step(keeper: LeaseKeeper, clock: Clock, seconds: float) -> None:
    clock.move(seconds)
    keeper.renew_due()


def test_lease_is_renewed_every_third_of_it(
    keeper: LeaseKeeper, renewals: Renewals, clock: Clock, lease: Lease
) -> None:
    with keeper.kept(lease):
        counts = []
        for seconds in (19, 1, 19, 1):
            step(keeper, clock, seconds)
            counts.append(len(renewals.tokens))

    assert counts == [0, 1, 1, 2]
    assert not lease.lost


def test_lease_is_not_renewed_any_more_when_the_body_has_ended(
    keeper: LeaseKeeper, renewals: Renewals, clock: Clock, lease: Lease
) -> None:
    with keeper.kept(lease):
        pass

    step(keeper, clock, 100)

    assert renewals.tokens == []


def test_refused_renewal_is_a_lost_lease_and_is_not_tried_again(
    keeper: LeaseKeeper, renewals: Renewals, clock: Clock, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    renewals.answer = False
    with keeper.kept(lease):
        step(keeper, clock, 20)
        assert lease.lost
        with pytest.raises(LeaseLost):
            lease.check()
        step(keeper, clock, 100)

    assert len(renewals.tokens) == 1
    assert [record.event for record in caplog.records if record.levelno == logging.ERROR] == ["lease_lost"]


def test_renewal_that_finds_the_ledger_away_is_tried_again_sooner(
    keeper: LeaseKeeper, renewals: Renewals, clock: Clock, lease: Lease
) -> None:
    renewals.answer = AWAY
    with keeper.kept(lease):
        step(keeper, clock, 20)
        renewals.answer = True
        step(keeper, clock, 7)

        assert len(renewals.tokens) == 2
        assert not lease.lost


@pytest.mark.parametrize("trouble", [AWAY, ValueError("odd")], ids=["ledger away", "unexpected"])
def test_lease_that_ended_without_a_renewal_is_lost_until_it_is_renewed_after_all(
    keeper: LeaseKeeper, renewals: Renewals, clock: Clock, lease: Lease, trouble: Exception
) -> None:
    renewals.answer = trouble
    with keeper.kept(lease):
        step(keeper, clock, 59)
        before = lease.lost
        step(keeper, clock, 20)
        during = lease.lost
        renewals.answer = True
        step(keeper, clock, 20)

        assert (before, during, lease.lost) == (False, True, False)


def test_renewal_counts_from_when_it_was_asked_for(
    renewals: Renewals, clock: Clock, lease: Lease, no_thread: None
) -> None:
    def slow(lease: Lease) -> bool:
        clock.move(61)
        return True

    keeper = LeaseKeeper(slow, clock=clock)
    with keeper.kept(lease):
        step(keeper, clock, 20)

        # It came back after the lease that it asked for had ended.
        assert lease.lost


def test_one_lost_lease_does_not_concern_the_others(clock: Clock, no_thread: None) -> None:
    keeper = LeaseKeeper(lambda lease: lease.token == 2, clock=clock)
    first, second = Lease("a", 1, 60.0), Lease("b", 2, 60.0)
    with keeper.kept(first), keeper.kept(second):
        step(keeper, clock, 20)

        assert (first.lost, second.lost) == (True, False)


def test_thread_renews_while_the_body_runs() -> None:
    renewed = threading.Event()

    def renew(lease: Lease) -> bool:
        renewed.set()
        return True

    with LeaseKeeper(renew).kept(Lease("dispatch-1", 7, 0.03)):
        assert renewed.wait(30)


def test_lease_that_is_due_sooner_wakes_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed, asleep = threading.Event(), threading.Event()

    def renew(lease: Lease) -> bool:
        if lease.token == 2:
            renewed.set()
        return True

    keeper = LeaseKeeper(renew)
    wait = keeper._wake.wait

    def sleep(timeout: float | None = None) -> bool:
        asleep.set()
        return wait(timeout)

    monkeypatch.setattr(keeper._wake, "wait", sleep)
    with keeper.kept(Lease("a", 1, 3600.0)):
        assert asleep.wait(30)
        with keeper.kept(Lease("b", 2, 0.03)):
            assert renewed.wait(30)


def test_all_leases_of_a_process_share_one_thread() -> None:
    keeper = LeaseKeeper(lambda lease: True)
    with keeper.kept(Lease("a", 1, 3600.0)):
        first = keeper._thread
        with keeper.kept(Lease("b", 2, 3600.0)):
            assert keeper._thread is first


def test_forked_process_renews_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = LeaseKeeper(lambda lease: True)
    with keeper.kept(Lease("a", 1, 3600.0)):
        parents, lock = keeper._thread, keeper._wake
        # The fork came while another thread of the parent held the lock.
        with lock, monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            with keeper.kept(Lease("b", 2, 3600.0)):
                assert keeper._thread is not parents
                assert [kept.lease.token for kept in keeper._leases.values()] == [2]


# What the task sees


@pytest.fixture
def job(lease: Lease) -> Callable[[Lease | None], CurrentJob]:
    """Make the job of a running task, with a lease or without."""

    def make(lease: Lease | None) -> CurrentJob:
        return CurrentJob(
            job_id="job-1",
            dispatch_id="dispatch-1",
            task="work",
            queue="default",
            attempt=1,
            max_attempts=1,
            backend="celery",
            message_id="m",
            deadline=None,
            metadata={},
            headers={},
            lease=lease,
        )

    return make


def test_task_sees_its_fence_and_the_loss_of_its_lease(lease: Lease, job: Callable[[Lease | None], CurrentJob]) -> None:
    with executing(job(lease)):
        current_job().check_lease()
        before = (current_job().fence, current_job().lease_lost)
        lease.mark_lost()

        assert (before, current_job().lease_lost) == ((7, False), True)
        with pytest.raises(LeaseLost):
            current_job().check_lease()


def test_task_without_a_ledger_has_no_fence_and_loses_nothing(job: Callable[[Lease | None], CurrentJob]) -> None:
    with executing(job(None)):
        current_job().check_lease()

        assert (current_job().fence, current_job().lease_lost) == (None, False)


@pytest.fixture(autouse=True)
def _quiet_end() -> Iterator[None]:
    """Nothing of a keeper outlives its leases but a daemon thread that ends by itself."""
    yield
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "queuebridge-leases")
