"""What every ledger promises of recording, claiming and settling: a test for each sentence of the port."""

from __future__ import annotations

import dataclasses

import pytest
from ledgers import (
    CHECK_IN,
    DEADLINE,
    DONE,
    FAILED,
    GRACE,
    HOUR,
    LEASE,
    MINUTE,
    SECOND,
    Store,
    claim_request,
    held,
    just_after,
    new_dispatch,
    new_id,
    planned,
    shadow_note,
    wall_clock_ms,
    write_mark,
)

from queuebridge.ledger import (
    Busy,
    DeliveryOutcome,
    Granted,
    NewDispatch,
    Settled,
    Settlement,
    State,
    WriteState,
)
from queuebridge.stages import Role, Side


class TestRecord:
    def test_new_dispatch_is_accepted_with_its_copies(self, store: Store) -> None:
        dispatch = new_dispatch()

        (answer,) = store.ledger.record([dispatch])

        assert (answer.new, answer.state, answer.copies) == (True, State.ACCEPTED, dispatch.copies)

    def test_everything_recorded_can_be_read(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record(
            stage="live",
            queue="reports",
            copies=(planned(Side.PUSH, Role.PREFERRED), held(now_ms + HOUR, Side.LEGACY)),
            payload='{"name": "Zoë", "note": "it\'s \\"quoted\\""}',
            user_id="user-1",
            organization_id="organization-1",
            not_before_ms=now_ms + MINUTE,
            expires_at_ms=now_ms + HOUR,
        )

        execution = store.get(dispatch)

        for name in {field.name for field in dataclasses.fields(NewDispatch)} - {
            "body",
            "check_in_ms",
            "deadline_in_ms",
        }:
            assert getattr(execution, name) == getattr(dispatch, name), name

    def test_new_dispatch_has_run_nowhere_yet(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()

        execution = store.get(store.record())

        assert just_after(execution.accepted_at_ms, now_ms)
        assert just_after(execution.deadline_ms, now_ms + DEADLINE)
        assert just_after(execution.next_check_at_ms, now_ms + CHECK_IN)
        zeros = (execution.attempts, execution.token, execution.epoch, execution.stale_settles)
        assert zeros == (0, 0, 0, 0)
        nothing = ("owner", "lease_until_ms", "retry_at_ms", "started_at_ms", "finished_at_ms", "executed_by", "digest")
        assert [getattr(execution, name) for name in nothing] == [None] * len(nothing)
        assert (execution.executed_role, execution.result, execution.error, execution.traceback) == (None,) * 4

    def test_known_dispatch_is_left_as_it_is(self, store: Store) -> None:
        dispatch = store.record()
        store.ledger.mark([write_mark(dispatch, message_id="m1")])
        store.granted(dispatch)
        before = store.get(dispatch)

        (answer,) = store.ledger.record([dataclasses.replace(dispatch, task="other", copies=(), check_in_ms=0)])

        assert (answer.new, answer.state, answer.copies) == (False, State.RUNNING, before.copies)
        assert store.get(dispatch) == before

    def test_answers_come_in_the_order_of_the_dispatches(self, store: Store) -> None:
        known = store.settled()
        batch = [new_dispatch(), known, new_dispatch(copies=())]

        answers = store.ledger.record(batch)

        assert [answer.new for answer in answers] == [True, False, True]
        assert [answer.state for answer in answers] == [State.ACCEPTED, State.DONE, State.ACCEPTED]
        assert [len(answer.copies) for answer in answers] == [2, 2, 0]

    def test_dispatch_twice_in_one_batch_is_new_once(self, store: Store) -> None:
        dispatch = new_dispatch()

        answers = store.ledger.record([dispatch, dispatch])

        assert [answer.new for answer in answers] == [True, False]
        assert len(store.ledger.executions.of_job(dispatch.job_id)) == 1

    def test_large_batch_is_recorded_whole(self, store: Store) -> None:
        batch = [new_dispatch(job_id="one-job") for _ in range(1500)]

        answers = store.ledger.record(batch)

        assert all(answer.new for answer in answers)
        assert len(store.ledger.executions.of_job("one-job")) == len(batch)

    def test_nothing_is_recorded_if_one_dispatch_is_impossible(self, store: Store) -> None:
        good = new_dispatch()

        with pytest.raises((AttributeError, TypeError)):
            store.ledger.record([good, None])  # type: ignore[list-item]

        assert store.ledger.executions.get(good.dispatch_id) is None

    def test_no_dispatch_at_all_is_no_error(self, store: Store) -> None:
        assert store.ledger.record([]) == []

    def test_reconcile_looks_after_the_given_time(self, store: Store) -> None:
        dispatch = store.record()

        store.move(CHECK_IN - 5 * SECOND)
        early = store.due()
        store.move(5 * SECOND)

        assert (early, store.due()) == ([], [dispatch.dispatch_id])

    def test_reconcile_looks_when_a_held_copy_is_due_if_that_is_earlier(self, store: Store) -> None:
        due_at_ms = store.ledger.now_ms() + 10 * SECOND
        dispatch = store.record(copies=(planned(), held(due_at_ms)))

        assert store.get(dispatch).next_check_at_ms == due_at_ms

    def test_held_copy_that_is_due_later_does_not_put_off_the_check(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record(copies=(planned(), held(now_ms + HOUR)))

        assert just_after(store.get(dispatch).next_check_at_ms, now_ms + CHECK_IN)


class TestMark:
    def test_written_copy_has_its_message_id(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch, message_id="m1")])

        assert store.get(dispatch).copies == (
            planned(state=WriteState.WRITTEN, message_id="m1"),
            planned(Side.PUSH, Role.SAFETY),
        )

    @pytest.mark.parametrize("later", [WriteState.FAILED, WriteState.UNKNOWN, WriteState.HELD], ids=lambda s: s.value)
    def test_written_copy_stays_written(self, store: Store, later: WriteState) -> None:
        dispatch = store.record()
        store.ledger.mark([write_mark(dispatch, message_id="m1")])
        before = store.get(dispatch).copies

        store.ledger.mark([write_mark(dispatch, later, error="late", due_in_ms=MINUTE)])

        assert store.get(dispatch).copies == before

    def test_copy_that_is_written_again_has_the_later_message_id(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch, message_id="m1")])
        store.ledger.mark([write_mark(dispatch, message_id="m2")])

        assert store.get(dispatch).copy(Side.LEGACY) == planned(state=WriteState.WRITTEN, message_id="m2")

    @pytest.mark.parametrize("first", [WriteState.FAILED, WriteState.UNKNOWN], ids=lambda s: s.value)
    def test_failed_or_unknown_write_may_succeed_later(self, store: Store, first: WriteState) -> None:
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch, first, error="refused")])
        between = store.get(dispatch).copy(Side.LEGACY)
        store.ledger.mark([write_mark(dispatch, message_id="m1")])

        assert between == planned(state=first, error="refused")
        assert store.get(dispatch).copy(Side.LEGACY) == planned(state=WriteState.WRITTEN, message_id="m1")

    def test_copy_that_was_not_planned_is_added_with_the_role_of_the_mark(self, store: Store) -> None:
        dispatch = store.record(copies=(planned(Side.PUSH, Role.PREFERRED),))

        store.ledger.mark([write_mark(dispatch, role=Role.SAFETY, message_id="m1")])

        assert store.get(dispatch).copies == (
            planned(Side.PUSH, Role.PREFERRED),
            planned(Side.LEGACY, Role.SAFETY, state=WriteState.WRITTEN, message_id="m1"),
        )

    def test_planned_copy_keeps_its_role(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch, side=Side.PUSH, role=Role.PREFERRED)])

        copy = store.get(dispatch).copy(Side.PUSH)
        assert copy is not None
        assert copy.role is Role.SAFETY

    def test_held_copy_is_due_from_now_on_the_stores_clock(self, store: Store) -> None:
        dispatch = store.record()
        store.move(HOUR)
        now_ms = store.ledger.now_ms()

        store.ledger.mark([write_mark(dispatch, WriteState.HELD, due_in_ms=MINUTE)])

        copy = store.get(dispatch).copy(Side.LEGACY)
        assert copy is not None
        assert copy.state is WriteState.HELD
        assert just_after(copy.due_at_ms, now_ms + MINUTE)

    def test_marks_of_several_dispatches_and_sides_are_noted_together(self, store: Store) -> None:
        first, second = store.record(), store.record()

        store.ledger.mark(
            [
                write_mark(first),
                write_mark(first, WriteState.FAILED, side=Side.PUSH),
                write_mark(second, WriteState.UNKNOWN),
            ]
        )

        states = [[copy.state for copy in store.get(dispatch).copies] for dispatch in (first, second)]
        assert states == [[WriteState.WRITTEN, WriteState.FAILED], [WriteState.UNKNOWN, WriteState.PLANNED]]

    def test_mark_of_an_unknown_dispatch_is_ignored(self, store: Store) -> None:
        known, unknown = store.record(), new_dispatch()

        store.ledger.mark([write_mark(unknown), write_mark(known)], check_in_ms=0)

        assert store.ledger.executions.get(unknown.dispatch_id) is None
        assert store.get(known).copies[0].state is WriteState.WRITTEN

    def test_mark_of_a_settled_dispatch_is_noted_and_changes_nothing_else(self, store: Store) -> None:
        dispatch = store.settled()
        before = store.get(dispatch)

        store.ledger.mark([write_mark(dispatch, message_id="m1")], check_in_ms=0)

        copies = (planned(state=WriteState.WRITTEN, message_id="m1"), before.copies[1])
        assert store.get(dispatch) == dataclasses.replace(before, copies=copies)
        assert store.due() == []

    def test_accepted_dispatch_is_checked_after_the_given_time(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record(copies=(planned(), held(now_ms + HOUR)))

        store.ledger.mark([write_mark(dispatch)], check_in_ms=2 * HOUR)

        assert just_after(store.get(dispatch).next_check_at_ms, now_ms + 2 * HOUR)

    def test_without_a_given_time_it_is_checked_when_its_held_copy_is_due(self, store: Store) -> None:
        due_at_ms = store.ledger.now_ms() + HOUR
        dispatch = store.record(copies=(planned(), held(due_at_ms)))

        store.ledger.mark([write_mark(dispatch)])

        assert store.get(dispatch).next_check_at_ms == due_at_ms

    def test_held_by_the_mark_itself_counts_too(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch, WriteState.HELD, due_in_ms=HOUR)])

        assert just_after(store.get(dispatch).next_check_at_ms, now_ms + HOUR)

    def test_without_either_it_is_not_checked_any_more(self, store: Store) -> None:
        dispatch = store.record()

        store.ledger.mark([write_mark(dispatch)])
        store.move(24 * HOUR)

        assert store.get(dispatch).next_check_at_ms is None
        assert store.due() == []

    @pytest.mark.parametrize("state", [State.RUNNING, State.WAITING], ids=lambda s: s.value)
    def test_check_of_a_dispatch_in_another_state_stays_as_it_is(self, store: Store, state: State) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        if state is State.WAITING:
            store.release(dispatch, token)
        before = store.get(dispatch).next_check_at_ms

        store.ledger.mark([write_mark(dispatch)])
        store.ledger.mark([write_mark(dispatch, side=Side.PUSH)], check_in_ms=0)

        assert store.get(dispatch).state is state
        assert store.get(dispatch).next_check_at_ms == before


class TestClaim:
    def test_accepted_dispatch_is_granted_and_runs(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record()

        claim = store.granted(dispatch, owner="me", digest="d1", side=Side.PUSH, role=Role.SAFETY)

        execution = store.get(dispatch)
        assert (claim.attempt, claim.token) == (1, execution.token)
        assert just_after(claim.now_ms, now_ms)
        assert (execution.state, execution.attempts, execution.owner) == (State.RUNNING, 1, "me")
        assert (execution.executed_by, execution.executed_role) == ("qstash", Role.SAFETY)
        assert execution.digest == "d1"
        assert just_after(execution.started_at_ms, now_ms)
        assert just_after(execution.lease_until_ms, now_ms + LEASE)
        assert just_after(execution.next_check_at_ms, now_ms + LEASE + GRACE)

    def test_token_is_at_least_the_stores_time_in_microseconds(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()

        token = store.granted(store.record()).token

        assert now_ms * 1000 <= token <= (now_ms + 10 * SECOND) * 1000

    def test_dispatch_that_runs_is_busy_until_its_lease_ends(self, store: Store) -> None:
        dispatch = store.record()
        now_ms = store.ledger.now_ms()
        store.granted(dispatch)

        claim = store.claim(dispatch, owner="another")

        assert isinstance(claim, Busy)
        assert claim.until_ms == store.get(dispatch).lease_until_ms
        assert just_after(claim.now_ms, now_ms)
        assert (store.get(dispatch).owner, store.get(dispatch).attempts) == ("host:1:worker", 1)

    def test_dispatch_whose_lease_has_ended_is_granted_to_another(self, store: Store) -> None:
        dispatch = store.record()
        first = store.granted(dispatch)

        store.move(LEASE)
        second = store.granted(dispatch, owner="another")

        assert second.attempt == 2
        assert second.token > first.token
        assert store.get(dispatch).owner == "another"

    def test_lease_of_each_request_is_its_own(self, store: Store) -> None:
        dispatch = store.record()
        now_ms = store.ledger.now_ms()

        store.granted(dispatch, lease_ms=7 * MINUTE)

        assert just_after(store.get(dispatch).lease_until_ms, now_ms + 7 * MINUTE)

    def test_settled_dispatch_is_settled(self, store: Store) -> None:
        dispatch = store.settled(settlement=FAILED)

        claim = store.claim(dispatch, owner="another")

        assert claim == Settled(state=State.FAILED, first=False, owner="host:1:worker")
        assert store.get(dispatch).attempts == 1

    def test_settled_dispatch_is_settled_even_after_its_expiry(self, store: Store) -> None:
        dispatch = store.settled(new_dispatch(expires_at_ms=wall_clock_ms() + MINUTE))
        store.move(HOUR)

        assert store.claim(dispatch) == Settled(state=State.DONE, owner="host:1:worker")

    def test_expired_dispatch_is_settled_as_expired_and_the_first_is_told(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + MINUTE)
        store.move(HOUR)
        now_ms = store.ledger.now_ms()

        first, second = store.claim(dispatch), store.claim(dispatch)

        assert first == Settled(state=State.EXPIRED, first=True)
        assert second == Settled(state=State.EXPIRED, first=False)
        execution = store.get(dispatch)
        assert (execution.state, execution.attempts, execution.next_check_at_ms) == (State.EXPIRED, 0, None)
        assert just_after(execution.finished_at_ms, now_ms)

    def test_expiry_does_not_end_a_dispatch_that_runs(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + MINUTE)
        token = store.granted(dispatch, lease_ms=HOUR).token
        store.move(10 * MINUTE)

        assert isinstance(store.claim(dispatch), Busy)
        assert store.settle(dispatch, token)

    def test_expiry_ends_a_dispatch_whose_lease_has_ended(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + 10 * MINUTE)
        token = store.granted(dispatch).token
        store.move(HOUR)

        assert store.claim(dispatch) == Settled(state=State.EXPIRED, first=True, owner="host:1:worker")
        assert not store.settle(dispatch, token)
        assert store.get(dispatch).lease_until_ms is None

    def test_expiry_ends_a_dispatch_that_waits(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + 10 * MINUTE)
        store.release(dispatch, store.granted(dispatch).token, retry_in_ms=2 * HOUR)
        store.move(HOUR)

        assert store.claim(dispatch) == Settled(state=State.EXPIRED, first=True, owner="host:1:worker")
        assert store.get(dispatch).retry_at_ms is None

    def test_dispatch_before_its_expiry_is_granted(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + HOUR)

        assert isinstance(store.claim(dispatch), Granted)

    def test_dispatch_whose_attempts_are_used_up_is_quarantined(self, store: Store) -> None:
        dispatch = store.record(max_attempts=2)
        for _ in range(2):
            store.granted(dispatch, owner="the last one")
            store.move(LEASE)

        first, second = store.claim(dispatch), store.claim(dispatch)

        assert first == Settled(state=State.QUARANTINED, first=True, owner="the last one")
        assert second == Settled(state=State.QUARANTINED, first=False, owner="the last one")
        execution = store.get(dispatch)
        assert (execution.state, execution.attempts) == (State.QUARANTINED, 2)
        assert (execution.lease_until_ms, execution.next_check_at_ms) == (None, None)

    def test_last_attempt_is_not_quarantined_while_it_runs(self, store: Store) -> None:
        dispatch = store.record(max_attempts=1)
        token = store.granted(dispatch).token

        assert isinstance(store.claim(dispatch), Busy)
        assert store.settle(dispatch, token)

    def test_what_was_recorded_counts_not_what_the_request_says(self, store: Store) -> None:
        dispatch = store.record(max_attempts=1)
        store.granted(dispatch, max_attempts=9, task="other", payload="{}", user_id="other")
        store.move(LEASE)

        claim = store.claim(dispatch, max_attempts=9)

        assert isinstance(claim, Settled)
        execution = store.get(dispatch)
        assert (execution.task, execution.payload, execution.user_id) == ("reports.build", dispatch.payload, None)

    def test_dispatch_never_seen_is_created_and_granted(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = new_dispatch(user_id="user-1", organization_id="organization-1", not_before_ms=now_ms, copies=())

        claim = store.granted(dispatch)

        execution = store.get(dispatch)
        assert (claim.attempt, execution.state) == (1, State.RUNNING)
        for name in {field.name for field in dataclasses.fields(NewDispatch)} - {
            "body",
            "check_in_ms",
            "deadline_in_ms",
        }:
            assert getattr(execution, name) == getattr(dispatch, name), name
        assert just_after(execution.accepted_at_ms, now_ms)
        assert just_after(execution.deadline_ms, now_ms + DEADLINE)

    def test_dispatch_never_seen_keeps_its_body_for_reconcile(self, store: Store) -> None:
        store.granted(new_dispatch(body=b"\x00\xffsealed"))
        store.move(LEASE + GRACE)

        (due,) = store.take_due()

        assert due.body == b"\x00\xffsealed"

    def test_dispatch_never_seen_that_has_expired_is_settled(self, store: Store) -> None:
        dispatch = new_dispatch(expires_at_ms=wall_clock_ms() - HOUR)

        assert store.claim(dispatch) == Settled(state=State.EXPIRED, first=True)

    def test_record_after_the_claim_changes_nothing(self, store: Store) -> None:
        dispatch = new_dispatch()
        store.granted(dispatch)
        before = store.get(dispatch)

        (answer,) = store.ledger.record([dispatch])

        assert (answer.new, answer.state, answer.copies) == (False, State.RUNNING, ())
        assert store.get(dispatch) == before

    def test_tokens_grow_with_each_claim_even_at_the_same_moment(self, store: Store) -> None:
        dispatch = store.record(max_attempts=50)
        tokens = [store.granted(dispatch, lease_ms=0).token for _ in range(20)]

        assert tokens == sorted(set(tokens))

    def test_tokens_grow_when_the_clock_goes_back(self, store: Store) -> None:
        dispatch = store.record()
        first = store.granted(dispatch, lease_ms=0).token
        store.release(dispatch, first, retry_in_ms=-HOUR)
        store.move(-HOUR)

        assert store.granted(dispatch).token == first + 1

    def test_tokens_grow_when_the_dispatch_is_forgotten_and_claimed_anew(self, store: Store) -> None:
        dispatch = store.settled()
        first = store.get(dispatch).token
        store.move(MINUTE)
        assert store.ledger.purge(settled_before_ms=store.ledger.now_ms(), limit=10) == 1

        assert store.granted(dispatch).token > first

    def test_epochs_of_busy_and_due_never_repeat(self, store: Store) -> None:
        dispatch = store.record(check_in_ms=0)
        epochs = [due.epoch for due in store.take_due()]
        store.granted(dispatch)
        for _ in range(2):
            busy = store.claim(dispatch)
            assert isinstance(busy, Busy)
            epochs.append(busy.epoch)
        store.move(LEASE + GRACE)
        epochs += [due.epoch for due in store.take_due()]

        assert epochs == [1, 2, 3, 4]
        assert store.get(dispatch).epoch == 4


class TestDeliveries:
    def test_each_answer_is_recorded(self, store: Store) -> None:
        dispatch = store.record()
        requests = [
            claim_request(dispatch, message_id="m1"),
            claim_request(dispatch, message_id="m2", side=Side.PUSH),
            claim_request(dispatch, message_id="m3", side=None, role=None, backend="rq"),
        ]
        granted = store.ledger.claim(requests[0], grace_ms=GRACE)
        store.move(SECOND)
        store.ledger.claim(requests[1], grace_ms=GRACE)
        store.move(SECOND)
        assert isinstance(granted, Granted)
        store.settle(dispatch, granted.token)
        store.ledger.claim(requests[2], grace_ms=GRACE)

        deliveries = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]

        seen = [(d.backend, d.message_id, d.side, d.role, d.outcome, d.attempt) for d in deliveries]
        assert seen == [
            ("celery", "m1", Side.LEGACY, Role.PREFERRED, DeliveryOutcome.GRANTED, 1),
            ("qstash", "m2", Side.PUSH, Role.SAFETY, DeliveryOutcome.BUSY, None),
            ("rq", "m3", None, None, DeliveryOutcome.SUPPRESSED, None),
        ]

    def test_delivery_of_a_dispatch_never_seen_is_recorded(self, store: Store) -> None:
        dispatch = new_dispatch()
        store.granted(dispatch, message_id="m1")

        deliveries = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]

        assert [delivery.message_id for delivery in deliveries] == ["m1"]

    def test_delivery_that_ends_the_dispatch_is_suppressed(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() - HOUR)
        store.claim(dispatch)

        (delivery,) = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]

        assert delivery.outcome is DeliveryOutcome.SUPPRESSED

    def test_lag_counts_from_the_enqueue(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record(enqueued_at_ms=now_ms - MINUTE)
        store.granted(dispatch)

        (delivery,) = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]

        assert just_after(delivery.at_ms, now_ms)
        assert delivery.lag_ms == delivery.at_ms - dispatch.enqueued_at_ms

    def test_lag_of_a_delayed_job_counts_from_its_not_before_time(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = store.record(enqueued_at_ms=now_ms - HOUR, not_before_ms=now_ms - MINUTE)
        store.granted(dispatch)

        (delivery,) = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]

        assert just_after(delivery.lag_ms, MINUTE)

    def test_shadow_copy_is_recorded_with_digest_and_problem(self, store: Store) -> None:
        dispatch = store.record(enqueued_at_ms=wall_clock_ms() - MINUTE)
        before = store.get(dispatch)

        store.ledger.note_shadow(shadow_note(dispatch, message_id="m1", digest="d1", problem="unknown task"))

        (delivery,) = store.ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]
        assert (delivery.backend, delivery.message_id) == ("qstash", "m1")
        assert (delivery.side, delivery.role) == (Side.PUSH, Role.SHADOW)
        assert (delivery.outcome, delivery.attempt) == (DeliveryOutcome.SHADOWED, None)
        assert (delivery.digest, delivery.problem) == ("d1", "unknown task")
        assert just_after(delivery.lag_ms, MINUTE)
        assert store.get(dispatch) == before

    def test_shadow_copy_of_a_settled_dispatch_changes_no_state(self, store: Store) -> None:
        dispatch = store.settled()
        before = store.get(dispatch)

        store.ledger.note_shadow(shadow_note(dispatch))

        assert store.get(dispatch) == before

    def test_shadow_copy_of_a_dispatch_never_seen_creates_it_as_accepted(self, store: Store) -> None:
        now_ms = store.ledger.now_ms()
        dispatch = new_dispatch(user_id="user-1", organization_id="organization-1", stage="shadow")

        store.ledger.note_shadow(shadow_note(dispatch))

        execution = store.get(dispatch)
        assert (execution.state, execution.attempts, execution.copies) == (State.ACCEPTED, 0, ())
        assert (execution.job_id, execution.task, execution.user_id) == (dispatch.job_id, dispatch.task, "user-1")
        assert execution.next_check_at_ms is None
        assert just_after(execution.deadline_ms, now_ms + DEADLINE)
        assert store.granted(dispatch).attempt == 1


class TestRenew:
    def test_claim_is_extended_from_now(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.move(LEASE - 10 * SECOND)
        now_ms = store.ledger.now_ms()

        assert store.renew(dispatch, token)

        execution = store.get(dispatch)
        assert just_after(execution.lease_until_ms, now_ms + LEASE)
        assert just_after(execution.next_check_at_ms, now_ms + LEASE + GRACE)
        store.move(LEASE - 10 * SECOND)
        assert isinstance(store.claim(dispatch), Busy)

    def test_lease_that_ended_and_that_nobody_has_claimed_is_extended(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.move(HOUR)

        assert store.renew(dispatch, token)
        assert isinstance(store.claim(dispatch), Busy)

    def test_claim_that_was_taken_over_is_lost(self, store: Store) -> None:
        dispatch = store.record()
        first = store.granted(dispatch).token
        store.move(LEASE)
        store.granted(dispatch)
        before = store.get(dispatch)

        assert not store.renew(dispatch, first)
        assert store.get(dispatch) == before

    def test_settled_released_and_unknown_dispatches_are_not_renewed(self, store: Store) -> None:
        settled, released, unknown = store.settled(), store.record(), new_dispatch()
        token = store.granted(released).token
        store.release(released, token)

        assert not store.renew(settled, store.get(settled).token)
        assert not store.renew(released, token)
        assert not store.renew(unknown, 1)
        assert store.get(released).state is State.WAITING


class TestSettle:
    @pytest.mark.parametrize(
        "state", [State.DONE, State.FAILED, State.RETRIED, State.CANCELLED, State.EXPIRED], ids=lambda s: s.value
    )
    def test_end_is_recorded(self, store: Store, state: State) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        now_ms = store.ledger.now_ms()

        assert store.settle(dispatch, token, Settlement(state=state, result="[1]", error="no", traceback="Zeile 1\nß"))

        execution = store.get(dispatch)
        assert (execution.state, execution.attempts, execution.stale_settles) == (state, 1, 0)
        assert (execution.result, execution.error, execution.traceback) == ("[1]", "no", "Zeile 1\nß")
        assert just_after(execution.finished_at_ms, now_ms)
        assert (execution.lease_until_ms, execution.retry_at_ms, execution.next_check_at_ms) == (None, None, None)

    def test_success_after_a_failed_attempt_leaves_no_error(self, store: Store) -> None:
        dispatch = store.record()
        store.release(dispatch, store.granted(dispatch).token, retry_in_ms=0)
        store.settle(dispatch, store.granted(dispatch).token)

        execution = store.get(dispatch)
        assert (execution.result, execution.error, execution.traceback) == (DONE.result, None, None)

    def test_same_token_may_settle_again_in_the_same_state(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.settle(dispatch, token)
        before = store.get(dispatch)
        store.move(MINUTE)

        assert store.settle(dispatch, token, Settlement(state=State.DONE, result='"other"'))
        assert store.get(dispatch) == before

    def test_same_token_may_not_settle_again_in_another_state(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.settle(dispatch, token)
        before = store.get(dispatch)

        assert not store.settle(dispatch, token, FAILED)
        assert store.get(dispatch) == dataclasses.replace(before, stale_settles=1)

    def test_stale_token_is_refused_and_counted(self, store: Store) -> None:
        dispatch = store.record()
        stale = store.granted(dispatch).token
        store.move(LEASE)
        current = store.granted(dispatch).token
        before = store.get(dispatch)

        refused = [store.settle(dispatch, stale), store.settle(dispatch, stale, FAILED)]

        assert refused == [False, False]
        assert store.get(dispatch) == dataclasses.replace(before, stale_settles=2)
        assert store.settle(dispatch, current)
        assert not store.settle(dispatch, stale)
        assert store.get(dispatch).stale_settles == 3

    def test_current_token_settles_after_its_lease_has_ended(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.move(HOUR)

        assert store.settle(dispatch, token)

    def test_current_token_settles_after_a_release(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.release(dispatch, token)

        assert store.settle(dispatch, token, FAILED)
        assert (store.get(dispatch).state, store.get(dispatch).retry_at_ms) == (State.FAILED, None)

    def test_dispatch_that_was_settled_by_others_is_refused_whatever_the_state(self, store: Store) -> None:
        dispatch = store.record(expires_at_ms=wall_clock_ms() + 10 * MINUTE)
        token = store.granted(dispatch).token
        store.move(HOUR)
        store.claim(dispatch)

        assert not store.settle(dispatch, token, Settlement(state=State.EXPIRED))
        assert store.get(dispatch).stale_settles == 1

    def test_dispatch_that_nobody_has_claimed_cannot_be_settled(self, store: Store) -> None:
        dispatch = store.record()

        assert not store.settle(dispatch, 0)
        assert store.get(dispatch).state is State.ACCEPTED

    def test_unknown_dispatch_cannot_be_settled(self, store: Store) -> None:
        dispatch = new_dispatch()

        assert not store.settle(dispatch, 1)
        assert store.ledger.executions.get(dispatch.dispatch_id) is None

    def test_body_is_forgotten(self, store: Store) -> None:
        body = f"envelope-{new_id()}".encode()
        dispatch = store.record(body=body)
        token = store.granted(dispatch).token
        before = store.holds(body)

        store.settle(dispatch, token)

        assert (before, store.holds(body)) == (True, False)


class TestRelease:
    def test_dispatch_waits_with_its_error(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        now_ms = store.ledger.now_ms()

        released = store.ledger.release(
            dispatch.dispatch_id, token, retry_in_ms=HOUR, grace_ms=GRACE, error="ValueError: no", traceback="T"
        )

        execution = store.get(dispatch)
        assert (released, execution.state) == (True, State.WAITING)
        assert just_after(execution.retry_at_ms, now_ms + HOUR)
        assert just_after(execution.next_check_at_ms, now_ms + HOUR + GRACE)
        assert (execution.error, execution.traceback) == ("ValueError: no", "T")
        assert (execution.lease_until_ms, execution.finished_at_ms) == (None, None)

    def test_dispatch_is_busy_until_its_retry_time_then_granted_as_the_next_attempt(self, store: Store) -> None:
        dispatch = store.record()
        first = store.granted(dispatch)
        store.release(dispatch, first.token)

        busy = store.claim(dispatch)
        store.move(MINUTE)
        second = store.granted(dispatch)

        assert isinstance(busy, Busy)
        assert just_after(busy.until_ms, first.now_ms + MINUTE)
        assert second.attempt == 2
        assert second.token > first.token
        assert store.get(dispatch).retry_at_ms is None

    def test_body_is_kept_for_reconcile(self, store: Store) -> None:
        dispatch = store.record(body=b"kept")
        store.release(dispatch, store.granted(dispatch).token)
        store.move(MINUTE + GRACE)

        assert [due.body for due in store.take_due()] == [b"kept"]

    def test_same_token_may_release_again(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.release(dispatch, token)
        before = store.get(dispatch)

        assert store.release(dispatch, token, retry_in_ms=HOUR)
        assert store.get(dispatch) == before

    def test_stale_token_is_refused_and_counted(self, store: Store) -> None:
        dispatch = store.record()
        stale = store.granted(dispatch).token
        store.move(LEASE)
        store.granted(dispatch)
        before = store.get(dispatch)

        assert not store.release(dispatch, stale)
        assert store.get(dispatch) == dataclasses.replace(before, stale_settles=1)

    def test_settled_dispatch_is_not_released(self, store: Store) -> None:
        dispatch = store.settled()
        before = store.get(dispatch)

        assert not store.release(dispatch, before.token)
        assert store.get(dispatch) == dataclasses.replace(before, stale_settles=1)

    def test_dispatch_that_does_not_run_is_not_released(self, store: Store) -> None:
        accepted, unknown = store.record(), new_dispatch()

        assert not store.release(accepted, 0)
        assert not store.release(unknown, 1)
        assert store.get(accepted).state is State.ACCEPTED


class TestCancel:
    def test_all_dispatches_of_a_job_that_nobody_runs_are_cancelled(self, store: Store) -> None:
        job_id = new_id()
        accepted, waiting, abandoned, other = (
            store.record(job_id=job_id),
            store.record(job_id=job_id),
            store.record(job_id=job_id),
            store.record(),
        )
        store.granted(abandoned)
        store.move(LEASE)
        store.release(waiting, store.granted(waiting).token)
        store.settled(new_dispatch(job_id=job_id))
        now_ms = store.ledger.now_ms()

        assert store.ledger.cancel(job_id) == (3, 0)

        states = [store.get(dispatch).state for dispatch in (accepted, waiting, abandoned, other)]
        assert states == [State.CANCELLED] * 3 + [State.ACCEPTED]
        assert just_after(store.get(accepted).finished_at_ms, now_ms)
        store.move(24 * HOUR)
        assert store.due() == [other.dispatch_id]

    def test_dispatch_that_runs_is_counted_and_left_alone(self, store: Store) -> None:
        dispatch = store.record()
        idle = store.record(job_id=dispatch.job_id)
        token = store.granted(dispatch).token

        assert store.ledger.cancel(dispatch.job_id) == (1, 1)
        assert store.get(idle).state is State.CANCELLED
        assert store.settle(dispatch, token)

    def test_cancelled_dispatch_does_not_run(self, store: Store) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        store.release(dispatch, token, retry_in_ms=0)
        store.ledger.cancel(dispatch.job_id)

        assert store.claim(dispatch) == Settled(state=State.CANCELLED, owner="host:1:worker")
        assert not store.settle(dispatch, token)
        assert not store.settle(dispatch, token, Settlement(state=State.CANCELLED))

    def test_unknown_job_has_nothing_to_cancel(self, store: Store) -> None:
        assert store.ledger.cancel("unknown") == (0, 0)


class TestWithdraw:
    def test_accepted_dispatch_is_forgotten_and_can_be_recorded_anew(self, store: Store) -> None:
        dispatch = store.record()

        assert store.ledger.withdraw(dispatch.dispatch_id)

        assert store.ledger.executions.get(dispatch.dispatch_id) is None
        assert store.ledger.executions.of_job(dispatch.job_id) == []
        store.move(HOUR)
        assert store.due() == []
        assert store.ledger.record([dispatch])[0].new

    @pytest.mark.parametrize("state", [State.RUNNING, State.WAITING, State.DONE], ids=lambda s: s.value)
    def test_dispatch_that_was_claimed_is_left_alone(self, store: Store, state: State) -> None:
        dispatch = store.record()
        token = store.granted(dispatch).token
        if state is State.WAITING:
            store.release(dispatch, token)
        elif state is State.DONE:
            store.settle(dispatch, token)
        before = store.get(dispatch)

        assert not store.ledger.withdraw(dispatch.dispatch_id)
        assert store.get(dispatch) == before

    def test_dispatch_that_was_given_out_is_left_alone(self, store: Store) -> None:
        dispatch = store.record()
        store.move(HOUR)
        assert len(store.due()) == 1
        before = store.get(dispatch)

        assert not store.ledger.withdraw(dispatch.dispatch_id)
        assert store.get(dispatch) == before

    def test_unknown_dispatch_needs_no_withdrawal(self, store: Store) -> None:
        assert store.ledger.withdraw("unknown")
