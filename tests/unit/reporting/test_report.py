"""Every figure of a report, from histories that the ledger's own operations have made."""

from __future__ import annotations

from typing import Any

import pytest
from histories import HOUR_MS, History

from queuebridge.ledger import Busy, Granted, Settled, State, WriteState
from queuebridge.reporting import StageReport, build_report
from queuebridge.stages import Side, Stage

LEGACY, PUSH = Side.LEGACY, Side.PUSH
MINUTE_MS = 60_000


def report(history: History, **options: Any) -> StageReport:
    (only,) = build_report(history.log, now_ms=history.now_ms, **options)
    return only


def test_no_jobs_make_no_report(history: History) -> None:
    assert build_report(history.log, now_ms=history.now_ms) == []


def test_there_is_one_report_per_stage_and_task_in_the_order_of_stages(history: History) -> None:
    for number, (stage, task) in enumerate(
        [("push", "a"), ("shadow", "b"), ("shadow", "a"), ("legacy", "z"), (None, "a"), ("shadow", "a")]
    ):
        history.record(f"{number}", stage=stage, task=task)

    found = [(one.stage, one.task, one.jobs) for one in build_report(history.log, now_ms=history.now_ms)]

    assert found == [
        (None, "a", 1),
        ("legacy", "z", 1),
        ("shadow", "a", 2),
        ("shadow", "b", 1),
        ("push", "a", 1),
    ]


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ({"task": "mail.send"}, {"mail.send": 1}),
        ({"task": "mail.*"}, {"mail.send": 1, "mail.bounce": 1}),
        ({"task": "mail"}, {}),
        ({"stage": Stage.SHADOW}, {"mail.bounce": 1}),
    ],
)
def test_only_what_was_asked_for_counts(history: History, options: dict[str, Any], jobs: dict[str, int]) -> None:
    history.record("1", task="mail.send")
    history.record("2", task="mail.bounce", stage="shadow")
    history.record("3", task="files.scan")

    found = build_report(history.log, now_ms=history.now_ms, **options)

    assert {one.task: one.jobs for one in found} == jobs


def test_jobs_accepted_before_the_given_time_do_not_count(history: History) -> None:
    history.record("1")
    history.wait(1)
    history.record("2")

    assert report(history, since_ms=history.now_ms).jobs == 1


def test_writes_count_by_side_and_what_became_of_them(history: History) -> None:
    made: dict[str, list[WriteState]] = {
        "legacy": [WriteState.WRITTEN] * 3 + [WriteState.FAILED] * 2 + [WriteState.PLANNED],
        "push": [WriteState.WRITTEN, WriteState.UNKNOWN, WriteState.UNKNOWN] + [WriteState.HELD] * 3,
    }
    for number, (legacy, push) in enumerate(zip(made["legacy"], made["push"], strict=True)):
        history.record(f"{number}", states={LEGACY: legacy, PUSH: push})

    one = report(history)

    assert (one.legacy.written, one.legacy.unknown, one.legacy.failed) == (3, 0, 2)
    assert (one.legacy.planned, one.legacy.held) == (1, 0)
    assert (one.push.written, one.push.unknown, one.push.failed, one.push.planned, one.push.held) == (1, 2, 0, 0, 3)


def test_dispatch_counts_as_delivered_once_on_each_side_where_it_arrived(history: History) -> None:
    history.record("1")
    history.run("1", LEGACY)
    for _ in range(3):
        history.arrive("1", PUSH)
    history.record("2")
    history.run("2", LEGACY)

    one = report(history)

    assert (one.legacy.delivered, one.push.delivered) == (2, 1)


def test_written_copy_is_missing_once_the_grace_has_passed(history: History) -> None:
    history.record("1")
    history.run("1", LEGACY)
    history.wait(5 * MINUTE_MS)

    assert report(history).push.missing == 0

    history.wait(1)

    assert (report(history).push.missing, report(history).legacy.missing) == (1, 0)
    assert report(history, grace_ms=10 * MINUTE_MS).push.missing == 0

    history.arrive("1", PUSH)

    assert report(history).push.missing == 0


def test_copy_of_a_delayed_job_is_not_missing_before_it_could_start(history: History) -> None:
    history.record("1", not_before_in_ms=HOUR_MS, deadline_in_ms=3 * HOUR_MS)
    history.wait(HOUR_MS + 5 * MINUTE_MS)

    assert report(history).push.missing == 0


@pytest.mark.parametrize("state", [WriteState.FAILED, WriteState.UNKNOWN, WriteState.HELD, WriteState.PLANNED])
def test_copy_that_is_not_known_to_be_written_is_not_missing(history: History, state: WriteState) -> None:
    history.record("1", states={PUSH: state})
    history.wait(HOUR_MS)

    assert report(history).push.missing == 0


def test_copy_of_a_cancelled_job_is_not_missing(history: History) -> None:
    history.record("1", job_id="job")
    history.ledger.cancel("job")
    history.wait(HOUR_MS)

    assert report(history).push.missing == 0


def test_executions_count_by_backend(history: History) -> None:
    for number, side in enumerate([LEGACY, PUSH, PUSH]):
        history.record(f"{number}")
        history.run(f"{number}", side)
    history.record("never")

    assert report(history).executed_by == {"celery": 1, "qstash": 2}


def test_suppressed_and_busy_deliveries_count_apart(history: History) -> None:
    history.record("1")
    granted = history.arrive("1", LEGACY)
    assert isinstance(granted, Granted)
    assert isinstance(history.arrive("1", PUSH), Busy)
    history.settle("1", granted.token)
    assert isinstance(history.arrive("1", PUSH), Settled)
    assert isinstance(history.arrive("1", LEGACY), Settled)

    one = report(history)

    assert (one.busy, one.suppressed) == (1, 2)
    assert (one.arrived_twice, one.unsuppressed) == (1, 0)


def test_job_of_which_both_copies_ran_had_no_duplicate_suppressed(history: History) -> None:
    history.record("1")
    history.arrive("1", LEGACY, lease_ms=1000)
    history.wait(1000)
    history.run("1", PUSH)

    one = report(history)

    assert (one.arrived_twice, one.unsuppressed) == (1, 1)


def test_job_that_arrived_on_one_side_did_not_arrive_twice(history: History) -> None:
    history.record("1")
    history.run("1", LEGACY)
    history.arrive("1", LEGACY)

    assert report(history).arrived_twice == 0


def test_shadow_copy_does_not_arrive_as_a_duplicate(history: History) -> None:
    history.record("1", stage="shadow")
    history.run("1", LEGACY)
    history.shadow("1")

    one = report(history)

    assert (one.arrived_twice, one.unsuppressed, one.push.delivered) == (0, 0, 1)


def test_execution_of_the_safety_copy_counts_as_needed_only_if_it_was_the_first(history: History) -> None:
    for dispatch_id in ("first", "another"):
        history.record(dispatch_id)
        history.run(dispatch_id, PUSH)
    history.record("retry")
    granted = history.arrive("retry", LEGACY)
    assert isinstance(granted, Granted)
    history.release("retry", granted.token, retry_in_ms=0)
    history.run("retry", PUSH)
    history.record("preferred")
    history.run("preferred", LEGACY)
    history.arrive("preferred", PUSH)

    one = report(history)

    assert (one.safety_ran, one.safety_first) == (3, 2)


def test_start_is_late_two_minutes_after_it_was_possible(history: History) -> None:
    history.record("on time")
    history.record("late")
    history.record("delayed", not_before_in_ms=2 * MINUTE_MS)
    history.wait(2 * MINUTE_MS)
    history.run("on time", LEGACY)
    history.wait(1)
    history.run("late", LEGACY)
    history.run("delayed", LEGACY)

    assert report(history).late == 1
    assert report(history, late_after_ms=0).late == 3


def test_job_that_still_waits_for_its_start_is_late_too(history: History) -> None:
    for dispatch_id in ("1", "2", "3"):
        history.record(dispatch_id)
    history.record("delayed", not_before_in_ms=MINUTE_MS)
    history.record("4", job_id="cancelled")
    history.ledger.cancel("cancelled")
    history.wait(2 * MINUTE_MS)

    assert report(history).late == 0

    history.wait(1)

    assert report(history).late == 3

    # One that has begun counts by its start alone.
    history.arrive("1", LEGACY)

    assert report(history).late == 3


def test_attempt_after_a_failure_is_not_late(history: History) -> None:
    history.record("1")
    granted = history.arrive("1", LEGACY)
    assert isinstance(granted, Granted)
    history.release("1", granted.token, retry_in_ms=10 * MINUTE_MS)
    history.wait(10 * MINUTE_MS)
    history.run("1", LEGACY)

    one = report(history)

    assert (one.late, one.lag_ms.count, one.lag_ms.p99) == (0, 1, 0)


def test_unsettled_job_is_open_until_its_deadline_and_lost_after(history: History) -> None:
    history.record("accepted", deadline_in_ms=1000)
    history.record("running", deadline_in_ms=1000)
    history.arrive("running", LEGACY)
    history.record("done", deadline_in_ms=1000)
    history.run("done", LEGACY)
    history.wait(1000)

    assert (report(history).open, report(history).lost) == (2, 0)

    history.wait(1)

    assert (report(history).open, report(history).lost) == (0, 2)


def test_ends_count_by_their_kind(history: History) -> None:
    for number, state in enumerate([State.DONE] * 4 + [State.FAILED] * 3 + [State.CANCELLED] * 2):
        history.record(f"{number}")
        history.run(f"{number}", LEGACY, state=state)
    history.record("expired", expires_in_ms=1)
    history.wait(2)
    history.arrive("expired", LEGACY)
    history.record("quarantined", max_attempts=1)
    history.arrive("quarantined", LEGACY, lease_ms=1)
    history.wait(1)
    history.arrive("quarantined", LEGACY)

    one = report(history)

    assert (one.done, one.failed, one.cancelled, one.expired, one.quarantined) == (4, 3, 2, 1, 1)
    assert (one.jobs, one.open, one.lost) == (11, 0, 0)


def test_job_that_was_published_anew_counts_once(history: History) -> None:
    history.record("1", job_id="job")
    history.run("1", LEGACY, state=State.RETRIED)
    history.record("2", job_id="job")
    history.run("2", LEGACY)

    one = report(history)

    assert (one.jobs, one.retried, one.done, one.legacy.written) == (1, 1, 1, 2)


def test_stale_settles_are_added_up(history: History) -> None:
    for dispatch_id in ("1", "2"):
        history.record(dispatch_id)
        token = history.run(dispatch_id, LEGACY)
        assert not history.settle(dispatch_id, token - 1)
    assert not history.settle("2", 1)

    assert report(history).stale_settles == 3


def test_lag_is_that_of_granted_deliveries_and_apart_for_each_side(history: History) -> None:
    for number in range(4):
        history.record(f"{number}")
    history.wait(10)
    history.run("0", LEGACY)
    history.wait(10)
    history.run("1", LEGACY)
    history.wait(70)
    history.run("2", PUSH)
    # This one is suppressed.
    history.wait(10)
    history.arrive("2", LEGACY)

    one = report(history)

    assert (one.lag_ms.count, one.lag_ms.p50, one.lag_ms.p95, one.lag_ms.p99) == (3, 20, 90, 90)
    assert (one.legacy.lag_ms.count, one.legacy.lag_ms.p50, one.legacy.lag_ms.p95) == (2, 10, 20)
    assert (one.push.lag_ms.count, one.push.lag_ms.p50, one.push.lag_ms.p99) == (1, 90, 90)


def test_shadow_copies_count_by_what_they_were_like(history: History) -> None:
    for number in range(7):
        history.record(f"{number}", stage="shadow")
        if number != 6:
            history.run(f"{number}", LEGACY)
    history.shadow("0")
    history.shadow("1")
    history.shadow("2")
    history.shadow("3", digest="other")
    history.shadow("4", digest="other", problem="unknown task")
    history.shadow("6")

    shadow = report(history).shadow

    assert (shadow.arrived, shadow.same, shadow.different, shadow.invalid, shadow.uncompared) == (6, 3, 1, 1, 1)


def test_shadow_copy_that_came_again_counts_by_its_last_arrival(history: History) -> None:
    history.record("1", stage="shadow")
    history.run("1", LEGACY)
    history.wait(30)
    history.shadow("1", problem="unknown task")
    history.wait(30)
    history.shadow("1")

    shadow = report(history).shadow

    assert (shadow.arrived, shadow.invalid, shadow.same, shadow.lag_ms.p50) == (1, 0, 1, 30)


def test_shadow_copy_that_never_came_is_missing(history: History) -> None:
    for number in range(3):
        history.record(f"{number}", stage="shadow")
        history.run(f"{number}", LEGACY)
    history.shadow("0")
    history.record("failed", stage="shadow", states={PUSH: WriteState.FAILED})

    assert report(history).shadow.missing == 0

    history.wait(5 * MINUTE_MS + 1)

    assert report(history).shadow.missing == 2


def test_safety_copy_that_never_came_is_no_missing_shadow_copy(history: History) -> None:
    history.record("1", stage="dual")
    history.wait(HOUR_MS)

    assert (report(history).push.missing, report(history).shadow.missing) == (1, 0)


def test_jobs_of_the_shadow_stage_without_a_copy_are_unsampled(history: History) -> None:
    history.record("0", stage="shadow", sides=[LEGACY])
    history.record("1", stage="shadow", sides=[LEGACY])
    history.record("2", stage="shadow")
    history.record("3", stage="dual", sides=[LEGACY])

    shadow, dual = build_report(history.log, now_ms=history.now_ms)

    assert (shadow.shadow.unsampled, dual.shadow.unsampled) == (2, 0)


def test_lag_of_shadow_copies_is_apart_from_that_of_jobs(history: History) -> None:
    history.record("1", stage="shadow")
    history.run("1", LEGACY)
    history.wait(50)
    history.shadow("1")

    one = report(history)

    assert (one.shadow.lag_ms.count, one.shadow.lag_ms.p95) == (1, 50)
    assert (one.lag_ms.p95, one.push.lag_ms.count) == (0, 0)


def test_open_legacy_copies_count_whatever_their_stage_and_age(history: History) -> None:
    history.record("old", stage="dual")
    history.record("held", stage="live", states={LEGACY: WriteState.HELD})
    history.record("ended", stage="live")
    history.run("ended", LEGACY)
    history.record("failed", stage="live", states={LEGACY: WriteState.FAILED})
    history.record("other", stage="live", task="files.scan")
    history.wait(10)
    history.record("new", stage="rampdown")

    found = build_report(history.log, now_ms=history.now_ms, since_ms=history.now_ms)

    assert [(one.stage, one.open_legacy) for one in found] == [("rampdown", 2)]
