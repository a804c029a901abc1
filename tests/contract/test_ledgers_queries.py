"""What every ledger promises of its queries over executions, and of the stage settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ledgers import FAILED, HOUR, MINUTE, SECOND, Store, just_after, new_dispatch, new_id

from queuebridge.errors import RevisionConflict
from queuebridge.ledger import Execution, ExecutionFilter, NewDispatch, State

ALL = ExecutionFilter()


def ids(executions: Iterator[Execution] | list[Execution]) -> list[str]:
    return [execution.dispatch_id for execution in executions]


def record_one_after_the_other(store: Store, count: int) -> list[str]:
    recorded = []
    for _ in range(count):
        recorded.append(store.record().dispatch_id)
        store.move(SECOND)
    return recorded


class TestExecutions:
    def test_unknown_dispatch_is_none(self, store: Store) -> None:
        assert store.ledger.executions.get("unknown") is None

    def test_executions_of_a_job_come_oldest_first(self, store: Store) -> None:
        job_id = new_id()
        recorded = []
        for _ in range(4):
            recorded.append(store.record(job_id=job_id).dispatch_id)
            store.record()
            store.move(SECOND)

        assert ids(store.ledger.executions.of_job(job_id)) == recorded
        assert store.ledger.executions.of_job("unknown") == []

    def test_recent_executions_come_newest_first_up_to_the_limit(self, store: Store) -> None:
        recorded = record_one_after_the_other(store, 5)

        assert ids(store.ledger.executions.recent(ALL, limit=3)) == recorded[:1:-1]
        assert ids(store.ledger.executions.recent(ALL, limit=100)) == recorded[::-1]

    def test_order_is_that_of_acceptance_whatever_happens_later(self, store: Store) -> None:
        first, second = store.record(), new_dispatch()
        store.move(SECOND)
        store.record(second)
        store.settle(first, store.granted(first).token)

        assert ids(store.ledger.executions.recent(ALL, limit=1)) == [second.dispatch_id]
        assert ids(store.ledger.executions.scan(ALL)) == [first.dispatch_id, second.dispatch_id]

    def test_deliveries_of_several_dispatches_come_oldest_first_with_every_id_as_key(self, store: Store) -> None:
        dispatches = [store.record(), store.record(), store.record()]
        for n in range(3):
            for dispatch in dispatches[:2]:
                store.claim(dispatch, message_id=f"m{n}")
            store.move(SECOND)

        wanted = [*(dispatch.dispatch_id for dispatch in dispatches), "unknown"]
        deliveries = store.ledger.executions.deliveries(wanted)

        message_ids = {key: [delivery.message_id for delivery in found] for key, found in deliveries.items()}
        three = ["m0", "m1", "m2"]
        assert message_ids == dict(zip(wanted, [three, three, [], []], strict=True))

    def test_deliveries_of_no_dispatch_are_none(self, store: Store) -> None:
        assert store.ledger.executions.deliveries([]) == {}

    def test_deliveries_of_very_many_dispatches_can_be_asked_for(self, store: Store) -> None:
        dispatch = store.record()
        store.granted(dispatch)
        wanted = [dispatch.dispatch_id, *(new_id() for _ in range(3_000))]

        deliveries = store.ledger.executions.deliveries(wanted)

        assert set(deliveries) == set(wanted)
        assert len(deliveries[dispatch.dispatch_id]) == 1


def various(store: Store) -> dict[str, NewDispatch]:
    """Record dispatches of two tasks in several states and stages, one second apart."""
    made = {
        "done": store.settled(new_dispatch(task="a", stage="dual")),
        "failed": None,
        "accepted": None,
        "running": None,
        "staged": None,
    }
    store.move(SECOND)
    made["failed"] = store.settled(new_dispatch(task="a", stage="live"), FAILED)
    store.move(SECOND)
    made["accepted"] = store.record(task="b", stage="dual")
    store.move(SECOND)
    made["running"] = store.record(task="a", stage="dual")
    store.granted(made["running"])
    store.move(SECOND)
    made["staged"] = store.record(task="b", stage=None)
    return {name: dispatch for name, dispatch in made.items() if dispatch is not None}


FILTERS = {
    "everything": (ALL, ["done", "failed", "accepted", "running", "staged"]),
    "task": (ExecutionFilter(task="a"), ["done", "failed", "running"]),
    "unknown task": (ExecutionFilter(task="c"), []),
    "one state": (ExecutionFilter(states=(State.FAILED,)), ["failed"]),
    "two states": (ExecutionFilter(states=(State.DONE, State.RUNNING)), ["done", "running"]),
    "stage": (ExecutionFilter(stage="dual"), ["done", "accepted", "running"]),
    "all at once": (ExecutionFilter(task="a", stage="dual", states=(State.RUNNING, State.ACCEPTED)), ["running"]),
}


class TestFilters:
    @pytest.mark.parametrize("wanted", FILTERS)
    def test_recent_and_scan_return_what_is_wanted(self, store: Store, wanted: str) -> None:
        dispatches = various(store)
        condition, names = FILTERS[wanted]
        expected = [dispatches[name].dispatch_id for name in names]

        assert ids(store.ledger.executions.scan(condition)) == expected
        assert ids(store.ledger.executions.scan(condition, page=1)) == expected
        assert ids(store.ledger.executions.recent(condition, limit=100)) == expected[::-1]
        assert ids(store.ledger.executions.recent(condition, limit=2)) == expected[::-1][:2]

    def test_time_includes_its_beginning_and_excludes_its_end(self, store: Store) -> None:
        dispatches = various(store)
        moments = {name: store.get(dispatch).accepted_at_ms for name, dispatch in dispatches.items()}
        wanted = ExecutionFilter(since_ms=moments["failed"], until_ms=moments["running"])
        expected = [dispatches[name].dispatch_id for name in ("failed", "accepted")]

        assert ids(store.ledger.executions.scan(wanted)) == expected
        assert ids(store.ledger.executions.recent(wanted, limit=100)) == expected[::-1]

    def test_time_may_be_open_at_either_end(self, store: Store) -> None:
        dispatches = various(store)
        moment = store.get(dispatches["accepted"]).accepted_at_ms

        before = ids(store.ledger.executions.scan(ExecutionFilter(until_ms=moment)))
        since = ids(store.ledger.executions.scan(ExecutionFilter(since_ms=moment)))

        every = [dispatch.dispatch_id for dispatch in dispatches.values()]
        assert (before, since) == (every[:2], every[2:])


class TestScan:
    @pytest.mark.parametrize("page", [1, 3, 4, 12, 100])
    def test_executions_of_one_moment_come_once_each_in_pages_of_any_size(self, store: Store, page: int) -> None:
        batch = [new_dispatch() for _ in range(12)]
        store.ledger.record(batch)

        found = ids(store.ledger.executions.scan(ALL, page=page))

        assert sorted(found) == sorted(dispatch.dispatch_id for dispatch in batch)

    def test_pages_are_in_ascending_order_of_acceptance(self, store: Store) -> None:
        recorded = record_one_after_the_other(store, 10)

        assert ids(store.ledger.executions.scan(ALL, page=3)) == recorded

    def test_changes_meanwhile_do_not_disturb_it(self, store: Store) -> None:
        dispatches = [new_dispatch() for _ in range(10)]
        for dispatch in dispatches:
            store.record(dispatch)
            store.move(SECOND)
        scan = store.ledger.executions.scan(ALL, page=2)
        found = [next(scan).dispatch_id]
        # Some that it has passed and some that it has not are settled, and the settled ones purged.
        for dispatch in (dispatches[0], dispatches[5]):
            store.settle(dispatch, store.granted(dispatch).token)
        store.move(MINUTE)
        assert store.ledger.purge(settled_before_ms=store.ledger.now_ms(), limit=100) == 2

        found += ids(scan)

        assert found == [dispatch.dispatch_id for dispatch in dispatches if dispatch is not dispatches[5]]

    def test_writing_while_it_is_read_is_possible(self, store: Store) -> None:
        dispatches = [store.record() for _ in range(5)]

        for execution in store.ledger.executions.scan(ALL, page=2):
            dispatch = next(d for d in dispatches if d.dispatch_id == execution.dispatch_id)
            store.settle(dispatch, store.granted(dispatch).token)

        assert {store.get(dispatch).state for dispatch in dispatches} == {State.DONE}

    def test_empty_ledger_has_nothing(self, store: Store) -> None:
        assert list(store.ledger.executions.scan(ALL)) == []
        assert store.ledger.executions.recent(ALL, limit=5) == []


class TestStages:
    def test_there_is_no_revision_at_first(self, store: Store) -> None:
        assert store.ledger.stages.current() is None
        assert store.ledger.stages.history(10) == []

    def test_revision_is_kept_with_author_reason_and_time(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()

        added = store.ledger.stages.add('{"stage": "dual"}', after=0, author="Zoë", reason="it's time", forced=True)

        assert (added.number, added.settings, added.forced) == (1, '{"stage": "dual"}', True)
        assert (added.author, added.reason) == ("Zoë", "it's time")
        assert just_after(added.at_ms, now_ms)
        assert store.ledger.stages.current() == added

    def test_revisions_are_numbered_and_the_latest_is_current(self, store: Store) -> None:
        added = [store.ledger.stages.add(f'"{n}"', after=n, author="me", reason="r") for n in range(12)]

        assert [revision.number for revision in added] == list(range(1, 13))
        assert {revision.forced for revision in added} == {False}
        assert store.ledger.stages.current() == added[-1]
        assert store.ledger.stages.history(3) == added[:-4:-1]
        assert store.ledger.stages.history(100) == added[::-1]

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_revision_made_from_another_than_the_latest_is_refused(self, store: Store, after: int) -> None:
        for n in range(2):
            store.ledger.stages.add(f'"{n}"', after=n, author="me", reason="r")
        before = store.ledger.stages.history(10)

        with pytest.raises(RevisionConflict) as caught:
            store.ledger.stages.add('"mine"', after=after, author="me", reason="r")

        assert (caught.value.after, caught.value.latest) == (after, 2)
        assert store.ledger.stages.history(10) == before

    def test_first_revision_made_from_one_that_does_not_exist_is_refused(self, store: Store) -> None:
        with pytest.raises(RevisionConflict):
            store.ledger.stages.add("{}", after=1, author="me", reason="r")

        assert store.ledger.stages.current() is None


class TestProcesses:
    def test_report_returns_the_latest_revision(self, store: Store) -> None:
        nothing = store.ledger.stages.report_process("p1", "worker", 0)
        added = store.ledger.stages.add("{}", after=0, author="me", reason="r")

        assert nothing is None
        assert store.ledger.stages.report_process("p1", "worker", 0) == added

    def test_processes_come_latest_first_with_what_they_said_last(self, store: Store) -> None:
        store.ledger.stages.report_process("p1", "worker", 1)
        store.move(SECOND)
        store.ledger.stages.report_process("p2", "producer", 1)
        store.move(SECOND)
        now_ms = store.ledger.now_ms()
        store.ledger.stages.report_process("p1", "worker", 2)

        first, second = store.ledger.stages.processes(within_ms=HOUR)

        assert (first.process_id, first.kind, first.revision) == ("p1", "worker", 2)
        assert (second.process_id, second.kind, second.revision) == ("p2", "producer", 1)
        assert just_after(first.seen_at_ms, now_ms)

    def test_process_that_was_silent_for_too_long_is_forgotten(self, store: Store) -> None:
        store.ledger.stages.report_process("old", "worker", 1)
        store.move(MINUTE)
        store.ledger.stages.report_process("young", "worker", 1)

        within = [seen.process_id for seen in store.ledger.stages.processes(within_ms=30 * SECOND)]
        later = [seen.process_id for seen in store.ledger.stages.processes(within_ms=HOUR)]

        assert (within, later) == (["young"], ["young"])

    def test_process_that_ended_is_forgotten(self, store: Store) -> None:
        store.ledger.stages.report_process("p1", "worker", 1)
        store.ledger.stages.report_process("p2", "worker", 1)

        store.ledger.stages.forget_process("p1")
        store.ledger.stages.forget_process("unknown")

        assert [seen.process_id for seen in store.ledger.stages.processes(within_ms=HOUR)] == ["p2"]

    def test_there_is_no_process_at_first(self, store: Store) -> None:
        assert store.ledger.stages.processes(within_ms=HOUR) == []
