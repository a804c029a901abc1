"""What every ledger promises of its upkeep: what is due, held copies, payloads, purge, connections."""

from __future__ import annotations

import pytest
from ledgers import (
    CHECK_IN,
    GRACE,
    HOUR,
    LEASE,
    MINUTE,
    SECOND,
    Store,
    held,
    just_after,
    new_dispatch,
    new_id,
    planned,
    shadow_note,
)
from processes import wait_until

from queuebridge.ledger import State, WriteState
from queuebridge.stages import Side


class TestTakeDue:
    def test_due_dispatch_comes_with_its_body_and_the_stores_time(self, store: Store) -> None:
        dispatch = store.record(body=b"\x00\xff body", check_in_ms=0)
        now_ms = store.ledger.now_ms()

        (due,) = store.take_due()

        assert due.execution.dispatch_id == dispatch.dispatch_id
        assert (due.execution.task, due.execution.copies) == (dispatch.task, dispatch.copies)
        assert (due.body, due.epoch) == (b"\x00\xff body", 1)
        assert just_after(due.now_ms, now_ms)

    def test_it_is_given_out_once_and_again_after_the_lease(self, store: Store) -> None:
        dispatch = store.record(check_in_ms=0)
        now_ms = store.ledger.now_ms()

        first = store.due()
        again_at_ms = store.get(dispatch).next_check_at_ms
        second = store.due()
        store.move(LEASE)
        third = store.due()

        assert (first, second, third) == ([dispatch.dispatch_id], [], [dispatch.dispatch_id])
        assert just_after(again_at_ms, now_ms + LEASE)

    def test_most_urgent_comes_first_whatever_the_order_of_recording(self, store: Store) -> None:
        checks = [40, 10, 50, 30, 20]
        recorded = {check: store.record(check_in_ms=check * SECOND).dispatch_id for check in checks}
        store.move(HOUR)

        assert store.due() == [recorded[check] for check in sorted(checks)]

    def test_limit_leaves_the_rest_for_the_next_call(self, store: Store) -> None:
        ids = [store.record(check_in_ms=n * SECOND).dispatch_id for n in range(1, 6)]
        store.move(HOUR)

        taken = [[due.execution.dispatch_id for due in store.take_due(2)] for _ in range(4)]

        assert taken == [ids[:2], ids[2:4], ids[4:], []]

    def test_what_runs_is_due_only_when_its_lease_and_the_grace_are_over(self, store: Store) -> None:
        dispatch = store.record(check_in_ms=0)
        store.granted(dispatch)

        at_once = store.due()
        store.move(LEASE)
        lease_over = store.due()
        store.move(GRACE)

        assert (at_once, lease_over, store.due()) == ([], [], [dispatch.dispatch_id])
        assert store.get(dispatch).state is State.RUNNING

    def test_renewal_puts_off_the_check(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        for _ in range(5):
            store.move(LEASE - 10 * SECOND)
            store.renew(dispatch, token)
            assert store.due() == []

        store.move(LEASE + GRACE)

        assert store.due() == [dispatch.dispatch_id]

    def test_what_waits_is_due_when_its_retry_time_and_the_grace_are_over(self, store: Store) -> None:
        dispatch = store.record()
        store.release(dispatch, store.granted(dispatch).token)

        store.move(MINUTE)
        early = store.due()
        store.move(GRACE)

        assert (early, store.due()) == ([], [dispatch.dispatch_id])

    def test_settled_dispatches_are_never_due(self, store: Store) -> None:
        store.settled(new_dispatch(check_in_ms=0))
        store.move(24 * HOUR)

        assert store.due() == []

    def test_claim_of_what_was_taken_is_not_hindered(self, store: Store) -> None:
        dispatch = store.record(check_in_ms=0)
        store.take_due()

        assert store.granted(dispatch).attempt == 1


class TestCheckIn:
    def test_check_is_put_off_or_brought_forward(self, store: Store) -> None:
        later, earlier = store.record(check_in_ms=0), store.record()

        store.ledger.check_in(later.dispatch_id, HOUR)
        store.ledger.check_in(earlier.dispatch_id, 0)

        assert store.due() == [earlier.dispatch_id]
        store.ledger.check_in(earlier.dispatch_id, None)
        store.move(HOUR)
        assert store.due() == [later.dispatch_id]

    def test_check_time_counts_from_now(self, store: Store) -> None:
        dispatch = store.record()
        store.move(HOUR)
        now_ms = store.ledger.now_ms()

        store.ledger.check_in(dispatch.dispatch_id, MINUTE)

        assert just_after(store.get(dispatch).next_check_at_ms, now_ms + MINUTE)

    def test_none_means_not_any_more(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.check_in(dispatch.dispatch_id, None)
        store.move(24 * HOUR)

        assert (store.get(dispatch).next_check_at_ms, store.due()) == (None, [])

    def test_settled_and_unknown_dispatches_are_left_alone(self, store: Store) -> None:
        settled = store.settled()

        store.ledger.check_in(settled.dispatch_id, 0)
        store.ledger.check_in("unknown", 0)

        assert (store.get(settled).next_check_at_ms, store.due()) == (None, [])
        assert store.ledger.executions.get("unknown") is None


class TestReleaseHeld:
    def test_every_held_copy_of_an_unsettled_dispatch_is_due_now(self, store: Store) -> None:
        far_ms = store.ledger.now_ms() + 24 * HOUR
        one = store.record(copies=(planned(), held(far_ms)), check_in_ms=HOUR)
        other = store.record(copies=(held(far_ms, Side.LEGACY), held(far_ms)), check_in_ms=HOUR)
        store.record(check_in_ms=HOUR)
        settled = store.settled(new_dispatch(copies=(planned(), held(far_ms))))
        now_ms = store.ledger.now_ms()

        assert store.ledger.release_held() == 3

        copy = store.get(one).copy(Side.PUSH)
        assert copy is not None
        assert copy.state is WriteState.HELD
        assert just_after(copy.due_at_ms, now_ms)
        assert store.get(one).copy(Side.LEGACY) == planned()
        assert sorted(store.due()) == sorted([one.dispatch_id, other.dispatch_id])
        assert store.get(settled).copies == settled.copies

    def test_dispatch_that_runs_or_waits_is_looked_at_when_it_would_be_anyway(self, store: Store) -> None:
        far_ms = store.ledger.now_ms() + 24 * HOUR
        running, waiting = (store.record(copies=(planned(), held(far_ms))) for _ in range(2))
        store.granted(running)
        store.release(waiting, store.granted(waiting).token)
        before = [store.get(dispatch).next_check_at_ms for dispatch in (running, waiting)]
        now_ms = store.ledger.now_ms()

        assert store.ledger.release_held() == 2

        assert [store.get(dispatch).next_check_at_ms for dispatch in (running, waiting)] == before
        copy = store.get(running).copy(Side.PUSH)
        assert copy is not None
        assert just_after(copy.due_at_ms, now_ms)

    def test_nothing_held_is_no_error(self, store: Store) -> None:
        store.record()

        assert store.ledger.release_held() == 0


class TestPayloads:
    def test_body_is_kept_as_it_is(self, store: Store) -> None:
        body = bytes(range(256)) * 5_000

        store.ledger.put_payload("key-1", body, keep_ms=HOUR)

        assert store.ledger.get_payload("key-1") == body

    def test_unknown_key_has_no_body(self, store: Store) -> None:
        assert store.ledger.get_payload("unknown") is None

    def test_body_may_be_put_twice_and_is_kept_for_the_longer_time(self, store: Store) -> None:
        store.ledger.put_payload("key-1", b"body", keep_ms=HOUR)
        store.ledger.put_payload("key-1", b"body", keep_ms=1)
        store.move(MINUTE)
        store.ledger.purge(settled_before_ms=0, limit=100)

        assert store.ledger.get_payload("key-1") == b"body"

    def test_purge_forgets_bodies_whose_time_has_passed(self, store: Store) -> None:
        store.ledger.put_payload("kept", b"body", keep_ms=HOUR)
        store.ledger.put_payload("passed", b"body", keep_ms=1)
        store.move(MINUTE)

        store.ledger.purge(settled_before_ms=0, limit=100)

        # A store with a clock of its own for this may need the millisecond.
        wait_until(lambda: store.ledger.get_payload("passed") is None, what="the body to be forgotten")
        assert store.ledger.get_payload("kept") == b"body"


class TestPurge:
    def test_dispatches_settled_before_a_time_are_forgotten(self, store: Store) -> None:
        old = [store.settled(), store.settled(new_dispatch(job_id="job-1"))]
        cancelled = store.record()
        store.ledger.cancel(cancelled.job_id)
        unsettled = [store.record(), store.record()]
        store.granted(unsettled[0])
        store.move(MINUTE)
        limit_ms = store.ledger.now_ms()
        young = store.settled()

        assert store.ledger.purge(settled_before_ms=limit_ms, limit=100) == 3

        gone = [store.ledger.executions.get(dispatch.dispatch_id) for dispatch in (*old, cancelled)]
        assert gone == [None] * 3
        assert store.ledger.executions.of_job("job-1") == []
        assert [store.get(dispatch).state for dispatch in (*unsettled, young)] == [
            State.RUNNING,
            State.ACCEPTED,
            State.DONE,
        ]

    def test_batches_are_bounded(self, store: Store) -> None:
        for _ in range(5):
            store.settled()
        store.move(MINUTE)
        now_ms = store.ledger.now_ms()

        assert [store.ledger.purge(settled_before_ms=now_ms, limit=2) for _ in range(4)] == [2, 2, 1, 0]

    def test_deliveries_are_forgotten_too(self, store: Store) -> None:
        message_ids = [f"message-{new_id()}" for _ in range(2)]
        dispatch = store.record()
        store.settle(dispatch, store.granted(dispatch, message_id=message_ids[0]).token)
        store.ledger.note_shadow(shadow_note(dispatch, message_id=message_ids[1]))
        before = [store.holds(message_id.encode()) for message_id in message_ids]
        store.move(MINUTE)

        store.ledger.purge(settled_before_ms=store.ledger.now_ms(), limit=100)

        deliveries = store.ledger.executions.deliveries([dispatch.dispatch_id])
        assert deliveries == {dispatch.dispatch_id: []}
        assert before == [True, True]
        assert not any(store.holds(message_id.encode()) for message_id in message_ids)

    def test_forgotten_dispatch_may_be_recorded_anew(self, store: Store) -> None:
        dispatch = store.settled()
        store.move(MINUTE)
        store.ledger.purge(settled_before_ms=store.ledger.now_ms(), limit=100)

        (answer,) = store.ledger.record([dispatch])

        assert (answer.new, answer.state) == (True, State.ACCEPTED)
        assert store.ledger.purge(settled_before_ms=store.ledger.now_ms() + HOUR, limit=100) == 0
        store.move(CHECK_IN)
        assert store.due() == [dispatch.dispatch_id]


class TestStore:
    def test_time_is_the_stores(self, store: Store) -> None:
        before_ms = store.ledger.now_ms()

        store.move(HOUR)

        assert just_after(store.ledger.now_ms(), before_ms + HOUR)

    def test_ping_says_one_line(self, store: Store) -> None:
        line = store.ledger.ping()

        assert line.strip()
        assert "\n" not in line

    def test_closed_ledger_may_be_used_again(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.close()
        store.ledger.close()

        assert store.get(dispatch).state is State.ACCEPTED
        assert store.granted(dispatch).attempt == 1

    def test_another_ledger_over_the_same_store_sees_the_same(self, store: Store) -> None:
        dispatch = store.record()
        store.granted(dispatch)
        store.ledger.stages.add("{}", after=0, author="me", reason="test")

        other = store.another()

        assert other.executions.get(dispatch.dispatch_id) == store.get(dispatch)
        assert other.stages.current() == store.ledger.stages.current()

    @pytest.mark.parametrize("text", ["", "%s %(x)s :y", "Zoë ✓ 😀", "a\nb\t\"c\" 'd' \\e"], ids=ascii)
    def test_text_is_kept_as_it_is(self, store: Store, text: str) -> None:
        dispatch = store.record(payload=text, user_id=text)

        execution = store.get(dispatch)

        assert (execution.payload, execution.user_id) == (text, text)
