"""What every ledger promises when many use it at once: threads, processes, processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from types import FrameType
from typing import Any, TypeVar

import pytest
from ledgers import GRACE, LEASE, MINUTE, SHARED_STORES, Store, new_dispatch, write_mark
from processes import SUPPORT, ChildProcess, Spawner

from queuebridge.errors import RevisionConflict
from queuebridge.ledger import Busy, ExecutionFilter, Granted, Revision, Settled, Settlement, State

THREADS = 8
PROCESSES = 3
_STORAGE = f"{os.sep}storage{os.sep}"

Answer = TypeVar("Answer")

over_shared_stores = pytest.mark.parametrize("store", SHARED_STORES, indirect=True)


def at_once(act: Callable[[int], Answer], threads: int = THREADS) -> list[Answer]:
    """Call `act` with the number of each of several threads, all at the same moment."""
    barrier = Barrier(threads)
    trace, interval = threading.gettrace(), sys.getswitchinterval()

    def wait_and_act(number: int) -> Answer:
        barrier.wait(20)
        return act(number)

    # Threads change places at every line of a ledger: otherwise each would finish its call before the next starts.
    threading.settrace(_give_way)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(wait_and_act, range(threads)))
    finally:
        sys.setswitchinterval(interval)
        threading.settrace(trace)  # type: ignore[arg-type]


def _give_way(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
    if _STORAGE not in frame.f_code.co_filename:
        return None
    time.sleep(0)
    return _give_way


class Crowd:
    """Processes that wait at a gate, to work on one store at once."""

    def __init__(self, store: Store, spawn: Spawner, folder: Path) -> None:
        assert store.address is not None
        self._address = store.address
        self._offset = store.offset
        self._spawn = spawn
        self._gate = folder / "gate"

    def start(self, *command: str) -> ChildProcess:
        """Start a process; it waits for the gate."""
        script = SUPPORT / "ledger_process.py"
        address = self._address.to_json()
        child = self._spawn([sys.executable, script, address, str(self._offset.ms), self._gate, *command])
        child.wait_for_line("^ready$", timeout=40)
        return child

    def open(self) -> None:
        """Let all of them work."""
        self._gate.touch()

    def run(self, *command: str, count: int = PROCESSES) -> list[dict[str, Any]]:
        """Run a command in several processes at once and return what each has said."""
        children = [self.start(*command) for _ in range(count)]
        self.open()
        answers = [answer_of(child) for child in children]
        assert [child.wait() for child in children] == [0] * count
        return answers


def answer_of(child: ChildProcess) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(child.wait_for_line(r"^\{.*\}$", timeout=40)[0])
    return answer


@pytest.fixture
def crowd(store: Store, spawn: Spawner, tmp_path: Path) -> Crowd:
    """Processes over the store."""
    return Crowd(store, spawn, tmp_path)


class TestThreads:
    @pytest.mark.parametrize("known", [True, False], ids=["recorded", "never seen"])
    def test_claim_is_granted_to_one_and_the_others_are_busy(self, store: Store, known: bool) -> None:
        dispatches = [new_dispatch() for _ in range(10)]
        if known:
            store.ledger.record(dispatches)

        answers = at_once(lambda _: [store.claim(dispatch) for dispatch in dispatches])

        for dispatch, claims in zip(dispatches, zip(*answers, strict=True), strict=True):
            assert [type(claim) for claim in claims].count(Granted) == 1
            epochs = [claim.epoch for claim in claims if isinstance(claim, Busy)]
            assert sorted(epochs) == list(range(1, THREADS))
            assert (store.get(dispatch).attempts, store.get(dispatch).epoch) == (1, THREADS - 1)
            deliveries = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]
            assert len(deliveries) == THREADS

    def test_claim_after_the_lease_is_granted_to_one(self, store: Store) -> None:
        dispatch = store.record()
        first = store.granted(dispatch)
        store.move(LEASE)

        answers = at_once(lambda _: store.claim(dispatch))

        (second,) = [claim for claim in answers if isinstance(claim, Granted)]
        assert second.attempt == 2
        assert second.token > first.token

    def test_one_claim_is_told_that_it_was_the_first_to_find_it_expired(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=store.ledger.now_ms() - MINUTE)

        answers = at_once(lambda _: store.claim(dispatch))

        assert {type(claim) for claim in answers} == {Settled}
        assert [claim.first for claim in answers if isinstance(claim, Settled)].count(True) == 1

    def test_dispatch_settles_once(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        states = [State.DONE, State.FAILED]

        answers = at_once(lambda n: (states[n % 2], store.settle(dispatch, token, Settlement(state=states[n % 2]))))

        end = store.get(dispatch)
        assert {settled for state, settled in answers if state is end.state} == {True}
        assert {settled for state, settled in answers if state is not end.state} == {False}
        assert end.stale_settles == THREADS // 2

    def test_stale_settles_are_all_counted(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token

        at_once(lambda _: [store.settle(dispatch, token - 1) for _ in range(5)])

        assert store.get(dispatch).stale_settles == 5 * THREADS

    def test_withdrawal_never_takes_a_dispatch_from_whoever_claimed_it(self, store: Store) -> None:
        dispatches = [store.record() for _ in range(10)]

        def act(number: int) -> list[bool]:
            if number % 2:
                return [store.ledger.withdraw(dispatch.dispatch_id) for dispatch in dispatches]
            return [isinstance(store.claim(dispatch), Granted) for dispatch in dispatches]

        answers = at_once(act)

        # Forgotten before the claim it is created anew; afterwards it stays.
        for granted in zip(*answers[::2], strict=True):
            assert granted.count(True) == 1
        assert [store.get(dispatch).state for dispatch in dispatches] == [State.RUNNING] * len(dispatches)

    def test_workers_that_take_what_is_due_get_each_dispatch_once(self, store: Store) -> None:
        store.ledger.record([new_dispatch(check_in_ms=0) for _ in range(60)])

        def drain(_: int) -> list[str]:
            taken = []
            while batch := store.take_due(limit=3):
                taken += [due.execution.dispatch_id for due in batch]
            return taken

        taken = [dispatch_id for ids in at_once(drain) for dispatch_id in ids]

        assert len(taken) == len(set(taken)) == 60

    def test_dispatch_recorded_by_many_is_new_once(self, store: Store) -> None:
        dispatches = [new_dispatch() for _ in range(10)]

        # In both directions, so that stores which lock row by row meet in the middle.
        answers = at_once(lambda n: store.ledger.record(dispatches[:: -1 if n % 2 else 1]))

        ordered = [answer[:: -1 if n % 2 else 1] for n, answer in enumerate(answers)]
        for recorded in zip(*ordered, strict=True):
            assert [answer.new for answer in recorded].count(True) == 1
        assert len(list(store.ledger.executions.scan(ExecutionFilter()))) == len(dispatches)

    def test_reader_sees_all_of_a_batch_or_nothing(self, store: Store) -> None:
        done = Event()

        def act(number: int) -> set[int]:
            if number == 0:
                for _ in range(20):
                    store.ledger.record([new_dispatch(job_id="job-1") for _ in range(5)])
                done.set()
                return set()
            seen = set()
            while not done.is_set():
                seen.add(len(store.ledger.executions.of_job("job-1")) % 5)
            return seen

        seen = set().union(*at_once(act, threads=3))

        assert seen <= {0}

    def test_marks_of_the_two_sides_do_not_overwrite_each_other(self, store: Store) -> None:
        dispatches = [store.record() for _ in range(10)]

        def act(number: int) -> None:
            for dispatch in dispatches:
                side = dispatch.copies[number % 2].side
                store.ledger.mark([write_mark(dispatch, side=side, message_id=f"m-{side.value}")])

        at_once(act)

        for dispatch in dispatches:
            assert [copy.message_id for copy in store.get(dispatch).copies] == ["m-legacy", "m-push"]

    def test_revision_made_from_the_same_one_is_added_once(self, store: Store) -> None:
        def add(number: int) -> Revision | RevisionConflict:
            try:
                return store.ledger.stages.add("{}", after=0, author=f"author {number}", reason="r")
            except RevisionConflict as conflict:
                return conflict

        answers = at_once(add)

        added = [answer for answer in answers if isinstance(answer, Revision)]
        refused = [answer for answer in answers if isinstance(answer, RevisionConflict)]
        assert len(added) == 1
        assert store.ledger.stages.history(10) == added
        assert {(conflict.after, conflict.latest) for conflict in refused} == {(0, 1)}


@over_shared_stores
class TestProcesses:
    def test_claim_is_granted_to_one_process(self, store: Store, crowd: Crowd) -> None:
        known, unknown = [store.record() for _ in range(15)], [new_dispatch() for _ in range(15)]
        ids = [dispatch.dispatch_id for dispatch in known + unknown]

        answers = crowd.run("claim", *ids)

        granted = [dispatch_id for answer in answers for dispatch_id in answer["granted"]]
        assert sorted(granted) == sorted(ids)

    def test_processes_that_take_what_is_due_get_each_dispatch_once(self, store: Store, crowd: Crowd) -> None:
        store.ledger.record([new_dispatch(check_in_ms=0) for _ in range(60)])

        answers = crowd.run("drain")

        taken = [dispatch_id for answer in answers for dispatch_id in answer["taken"]]
        assert len(taken) == len(set(taken)) == 60
        assert {epoch for answer in answers for epoch in answer["epochs"]} == {1}

    def test_claim_of_a_killed_process_is_granted_to_another_after_its_lease(self, store: Store, crowd: Crowd) -> None:
        dispatch = store.record()
        holder = crowd.start("hold", dispatch.dispatch_id)
        crowd.open()
        dead = answer_of(holder)["token"]
        holder.send(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL

        before = store.claim(dispatch)
        store.move(LEASE)
        after = store.claim(dispatch)

        assert isinstance(before, Busy)
        assert isinstance(after, Granted)
        assert (after.attempt, after.token > dead) == (2, True)
        assert not store.renew(dispatch, dead)
        assert not store.settle(dispatch, dead)
        assert store.get(dispatch).stale_settles == 1
        assert store.settle(dispatch, after.token)

    def test_dispatch_of_a_killed_process_is_due_after_lease_and_grace(self, store: Store, crowd: Crowd) -> None:
        dispatch = store.record()
        holder = crowd.start("hold", dispatch.dispatch_id)
        crowd.open()
        answer_of(holder)
        holder.send(signal.SIGKILL)
        holder.wait()

        early = store.due()
        store.move(LEASE + GRACE)

        assert (early, store.due()) == ([], [dispatch.dispatch_id])

    def test_ledger_is_used_on_both_sides_of_a_fork(self, store: Store, crowd: Crowd) -> None:
        ids = [store.record().dispatch_id for _ in range(30)]

        (answer,) = crowd.run("fork", *ids, count=1)

        assert answer["exit"] == 0
        assert sorted(answer["granted"] + answer["granted_to_child"]) == sorted(ids)
