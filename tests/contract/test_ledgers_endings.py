"""An execution that was ended from outside is settled by somebody else, in every ledger."""

from __future__ import annotations

import dataclasses
import os

import pytest
from ledgers import DONE, GRACE, LEASE, Store

from queuebridge.cancelling import settle_ended
from queuebridge.claims import owner, owning_process
from queuebridge.ledger import Settled, Settlement, State

CANCELLED = Settlement(state=State.CANCELLED, error="Ended by request.")
PID = 4711
IN_PROCESS = f"{owning_process(PID)}MainThread"


def test_owner_of_a_claim_names_its_process() -> None:
    assert owner().startswith(owning_process(os.getpid()))


@pytest.mark.parametrize("ending", [CANCELLED, Settlement(state=State.FAILED, error="TimeLimitExceeded: 5")])
def test_it_does_not_run_again(store: Store, ending: Settlement) -> None:
    dispatch = store.record()
    token = store.granted(dispatch, owner=IN_PROCESS).token

    assert settle_ended(dispatch.job_id, store.ledger, pid=PID, settlement=ending) == 1

    execution = store.get(dispatch)
    assert (execution.state, execution.error) == (ending.state, ending.error)
    store.move(LEASE + GRACE)
    assert store.claim(dispatch) == Settled(state=ending.state, first=False, owner=IN_PROCESS)
    assert store.ledger.take_due(10, lease_ms=LEASE) == []
    # Should the process have got to its end all the same, it finds its claim gone.
    assert not store.ledger.renew(dispatch.dispatch_id, token, lease_ms=LEASE, grace_ms=GRACE)
    assert not store.settle(dispatch, token, DONE)


def test_lease_that_has_ended_is_no_obstacle(store: Store) -> None:
    dispatch = store.record()
    store.granted(dispatch, owner=IN_PROCESS)
    store.move(2 * LEASE)

    assert settle_ended(dispatch.job_id, store.ledger, pid=PID, settlement=CANCELLED) == 1


@pytest.mark.parametrize("elsewhere", [f"{owning_process(47110)}MainThread", "another-host:4711:MainThread", ""])
def test_what_runs_elsewhere_is_left_alone(store: Store, elsewhere: str) -> None:
    dispatch = store.record()
    token = store.granted(dispatch, owner=elsewhere).token
    before = store.get(dispatch)

    assert settle_ended(dispatch.job_id, store.ledger, pid=PID, settlement=CANCELLED) == 0

    assert store.get(dispatch) == before
    assert store.settle(dispatch, token, DONE)


def test_what_another_execution_has_taken_over_meanwhile_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch = store.record()
    store.granted(dispatch, owner=IN_PROCESS)
    seen = store.ledger.executions.of_job(dispatch.job_id)
    store.move(LEASE)
    token = store.granted(dispatch, owner="another-host:1:MainThread").token
    before = store.get(dispatch)
    monkeypatch.setattr(store.ledger.executions, "of_job", lambda _: seen)

    assert settle_ended(dispatch.job_id, store.ledger, pid=PID, settlement=CANCELLED) == 0

    assert store.get(dispatch) == dataclasses.replace(before, stale_settles=1)
    assert store.settle(dispatch, token, DONE)


def test_dispatches_that_do_not_run_are_left_alone(store: Store) -> None:
    dispatch = store.record()
    waiting = store.record(job_id=dispatch.job_id)
    store.release(waiting, store.granted(waiting, owner=IN_PROCESS).token)
    done = store.record(job_id=dispatch.job_id)
    store.settle(done, store.granted(done, owner=IN_PROCESS).token)

    assert settle_ended(dispatch.job_id, store.ledger, pid=PID, settlement=CANCELLED) == 0

    states = [store.get(one).state for one in (dispatch, waiting, done)]
    assert states == [State.ACCEPTED, State.WAITING, State.DONE]
