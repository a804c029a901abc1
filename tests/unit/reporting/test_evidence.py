"""When a stage has shown that the next one is safe, and what it says if it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from histories import HOUR_MS, History

from queuebridge.ledger import Granted, State, WriteState
from queuebridge.reporting import (
    DEFAULT_THRESHOLDS,
    Percentiles,
    ShadowReport,
    SideReport,
    StageReport,
    Thresholds,
    judge,
    judge_advance,
)
from queuebridge.stages import Side, Stage

LEGACY, PUSH = Side.LEGACY, Side.PUSH
LAG = Percentiles(count=1000, p50=10, p95=30_000, p99=90_000)
SIDE = SideReport(written=1000, unknown=0, failed=0, planned=0, held=0, delivered=1000, missing=0, lag_ms=LAG)
NO_SIDE = replace(SIDE, written=0, delivered=0)
SHADOW = ShadowReport(arrived=1000, missing=0, invalid=0, different=0, same=1000, uncompared=0, unsampled=0, lag_ms=LAG)


def good(stage: str | None, **changes: Any) -> StageReport:
    """Return a report that is ready, but for the changes."""
    report = StageReport(
        stage=stage,
        task="mail.send",
        jobs=1000,
        retried=0,
        done=1000,
        failed=0,
        quarantined=0,
        expired=0,
        cancelled=0,
        open=0,
        lost=0,
        legacy=NO_SIDE if stage == "rampdown" else SIDE,
        push=SIDE,
        executed_by={"celery": 1000},
        suppressed=1000,
        busy=0,
        arrived_twice=1000,
        unsuppressed=0,
        safety_ran=0,
        safety_first=0,
        late=0,
        stale_settles=0,
        open_legacy=0,
        lag_ms=LAG,
        shadow=SHADOW,
    )
    return replace(report, **changes)


@pytest.mark.parametrize("stage", ["legacy", "shadow", "dual", "live", "rampdown"])
def test_stage_without_blemish_is_ready_and_says_why(stage: str) -> None:
    verdict = judge(good(stage))

    assert verdict.ready
    assert verdict.reasons


def test_legacy_is_ready_without_any_jobs() -> None:
    verdict = judge(good("legacy", jobs=0, lost=5))

    assert verdict.ready
    assert verdict.reasons == (
        "Stage shadow may always follow: its push copies never run, and the caller is unaffected.",
    )


@pytest.mark.parametrize(
    ("stage", "reason"),
    [("push", "Stage push is the last one."), (None, "These jobs were written without a stage.")],
)
def test_there_is_nothing_to_be_ready_for(stage: str | None, reason: str) -> None:
    verdict = judge(good(stage))

    assert (verdict.ready, verdict.reasons) == (False, (reason,))


AGAINST: dict[str, tuple[StageReport, str]] = {
    "too few shadow copies": (
        good("shadow", shadow=replace(SHADOW, arrived=99, same=99)),
        "Shadow copies that have arrived: 99; wanted: at least 100.",
    ),
    "shadow copies missing": (
        good("shadow", shadow=replace(SHADOW, arrived=998, missing=2)),
        "Shadow copies that have arrived, of those that are due: 998 of 1000 (99.8 %); wanted: at least 99.9 %.",
    ),
    "shadow copies invalid": (
        good("shadow", shadow=replace(SHADOW, invalid=1)),
        "Shadow copies that could not have run (unknown task, invalid arguments): 1; wanted: none.",
    ),
    "shadow copies different": (
        good("shadow", shadow=replace(SHADOW, different=1, same=499)),
        "Shadow copies with other arguments than what legacy ran: 1 of 500 compared; wanted: none.",
    ),
    "shadow writes failed": (
        good("shadow", push=replace(SIDE, written=999, failed=1)),
        "Push writes that failed or got no answer: 1 of 1000 (0.1 %); wanted: none, or less than 0.1 %.",
    ),
    "shadow writes without answer": (
        good("shadow", push=replace(SIDE, written=999, unknown=1)),
        "Push writes that failed or got no answer: 1 of 1000 (0.1 %); wanted: none, or less than 0.1 %.",
    ),
    "too few jobs in dual": (
        good("dual", jobs=99),
        "Jobs written by this stage: 99; wanted: at least 100.",
    ),
    "lost in dual": (good("dual", lost=1), "Lost jobs (not ended by their deadline): 1; wanted: none."),
    "push does not arrive": (
        good("dual", push=replace(SIDE, delivered=998, missing=2)),
        "Push copies that have arrived, of those that are due: 998 of 1000 (99.8 %); wanted: at least 99.9 %.",
    ),
    "no push copy is due": (
        good("dual", push=replace(SIDE, delivered=0)),
        "Push copies that have arrived, of those that are due: 0 of 0; wanted: at least 99.9 %.",
    ),
    "legacy does not claim": (
        good("dual", legacy=replace(SIDE, delivered=998, missing=2)),
        "Legacy copies that have arrived, of those that are due: 998 of 1000 (99.8 %); wanted: at least 99.9 %.",
    ),
    "push writes failed in dual": (
        good("dual", push=replace(SIDE, written=999, failed=1)),
        "Push writes that failed or got no answer: 1 of 1000 (0.1 %); wanted: none, or less than 0.1 %.",
    ),
    "no duplicates": (
        good("dual", arrived_twice=0),
        "Jobs that arrived on both sides: 0; wanted: at least 1.",
    ),
    "duplicates not suppressed": (
        good("dual", unsuppressed=11),
        (
            "Jobs with a duplicate suppressed or put off, of those that arrived on both sides: 989 of 1000 (98.9 %); "
            "wanted: at least 99 %."
        ),
    ),
    "stale settles": (
        good("dual", stale_settles=1),
        "Settlements refused because the claim had been taken over: 1; wanted: none.",
    ),
    "too few jobs in live": (good("live", jobs=99), "Jobs written by this stage: 99; wanted: at least 100."),
    "lost in live": (good("live", lost=2), "Lost jobs (not ended by their deadline): 2; wanted: none."),
    "safety copies had to run": (
        good("live", safety_first=1),
        "Jobs that their safety copy had to start: 1 of 1000 (0.1 %); wanted: none, or less than 0.1 %.",
    ),
    "slow": (
        good("live", push=replace(SIDE, lag_ms=replace(LAG, p95=30_001))),
        "Lag of the jobs that push started, p95: 30001 ms; wanted: at most 30000 ms.",
    ),
    "push has started nothing": (
        good("live", push=replace(SIDE, lag_ms=replace(LAG, p95=None))),
        "Lag of the jobs that push started, p95: unknown, it has started none; wanted: at most 30000 ms.",
    ),
    "too few jobs in rampdown": (
        good("rampdown", jobs=99),
        "Jobs written by this stage: 99; wanted: at least 100.",
    ),
    "lost in rampdown": (good("rampdown", lost=1), "Lost jobs (not ended by their deadline): 1; wanted: none."),
    "open legacy copies": (
        good("rampdown", open_legacy=3),
        "Jobs that have not ended and that legacy may still deliver: 3; wanted: none.",
    ),
    **{
        f"fallback {state}": (
            good("rampdown", legacy=replace(NO_SIDE, **{state: 1})),
            "Writes that fell back to legacy: 1; wanted: none.",
        )
        for state in ("written", "unknown", "failed", "planned")
    },
}


@pytest.mark.parametrize("case", AGAINST)
def test_what_speaks_against_the_next_stage_is_the_only_reason_given(case: str) -> None:
    report, reason = AGAINST[case]

    verdict = judge(report)

    assert (verdict.ready, verdict.reasons) == (False, (reason,))


@pytest.mark.parametrize(
    "report",
    [
        good("shadow", shadow=replace(SHADOW, arrived=999, missing=1)),
        good("shadow", jobs=10_000, push=replace(SIDE, written=10_000, failed=9)),
        good("dual", unsuppressed=10),
        good("live", jobs=1001, safety_first=1),
        # Attempts after a failure may run on either side.
        good("live", safety_ran=500),
        good("rampdown", legacy=replace(NO_SIDE, held=5)),
    ],
    ids=["arrived", "write failures", "unsuppressed", "safety first", "safety after failures", "held before"],
)
def test_figures_at_the_threshold_are_good_enough(report: StageReport) -> None:
    assert judge(report).ready


@pytest.mark.parametrize(
    ("thresholds", "report"),
    [
        (Thresholds(min_jobs=1001), good("dual")),
        (Thresholds(min_arrived=1.0), good("shadow", shadow=replace(SHADOW, arrived=999, missing=1))),
        (Thresholds(min_suppressed=1.0), good("dual", unsuppressed=1)),
        (Thresholds(max_write_failures=0.0001), good("shadow", push=replace(SIDE, written=9999, failed=1))),
        (Thresholds(max_safety_first=0.0001), good("live", jobs=10_000, safety_first=1)),
        (Thresholds(max_p95_lag_ms=29_999), good("live")),
    ],
    ids=["jobs", "arrived", "suppressed", "write failures", "safety first", "lag"],
)
def test_threshold_can_be_set(thresholds: Thresholds, report: StageReport) -> None:
    assert judge(report).ready
    assert not judge(report, thresholds).ready


def test_several_reasons_are_all_given() -> None:
    assert len(judge(good("dual", jobs=1, lost=1, stale_settles=1)).reasons) == 3


# --- over a ledger


def shadowed(history: History, dispatch_id: str, task: str) -> None:
    history.record(dispatch_id, stage="shadow", task=task)
    history.run(dispatch_id, LEGACY)
    history.shadow(dispatch_id)


def duplicated(history: History, dispatch_id: str, task: str) -> None:
    history.record(dispatch_id, stage="dual", task=task)
    history.run(dispatch_id, LEGACY)
    history.arrive(dispatch_id, PUSH)


def pushed(history: History, dispatch_id: str, task: str) -> None:
    history.record(dispatch_id, stage="live", task=task, states={LEGACY: WriteState.HELD})
    history.run(dispatch_id, PUSH)


def alone(history: History, dispatch_id: str, task: str) -> None:
    history.record(dispatch_id, stage="rampdown", task=task)
    history.run(dispatch_id, PUSH)


@pytest.mark.parametrize(
    ("stage", "live_one"),
    [(Stage.SHADOW, shadowed), (Stage.DUAL, duplicated), (Stage.LIVE, pushed), (Stage.RAMPDOWN, alone)],
    ids=lambda value: getattr(value, "value", ""),
)
def test_a_hundred_jobs_without_blemish_are_enough(
    history: History, stage: Stage, live_one: Callable[[History, str, str], None]
) -> None:
    for number in range(99):
        live_one(history, f"{number}", "mail.send" if number % 2 else "mail.bounce")
    live_one(history, "other", "files.scan")

    def ready(task: str | None) -> bool:
        return judge_advance(history.log, task=task, stage=stage, now_ms=history.now_ms).ready

    assert not ready("mail.*")
    live_one(history, "last", "mail.send")
    assert ready("mail.*")
    assert ready(None)
    assert not ready("mail.send")


def test_jobs_of_another_stage_are_no_evidence(history: History) -> None:
    for number in range(100):
        shadowed(history, f"{number}", "mail.send")

    verdict = judge_advance(history.log, task="mail.send", stage=Stage.DUAL, now_ms=history.now_ms)

    assert "Jobs written by this stage: 0; wanted: at least 100." in verdict.reasons


def test_jobs_before_the_beginning_of_the_stage_are_no_evidence(history: History) -> None:
    for number in range(100):
        shadowed(history, f"{number}", "mail.send")
    history.wait(1)
    since_ms = history.now_ms

    def ready(since_ms: int | None) -> bool:
        return judge_advance(history.log, task=None, stage=Stage.SHADOW, now_ms=history.now_ms, since_ms=since_ms).ready

    assert ready(None)
    assert not ready(since_ms)


def test_thresholds_of_an_advance_can_be_set(history: History) -> None:
    shadowed(history, "1", "mail.send")

    verdict = judge_advance(
        history.log,
        task=None,
        stage=Stage.SHADOW,
        now_ms=history.now_ms,
        thresholds=replace(DEFAULT_THRESHOLDS, min_jobs=1),
    )

    assert verdict.ready


def test_legacy_jobs_that_wait_from_earlier_stages_keep_rampdown_from_ending(history: History) -> None:
    history.record("old", stage="dual", deadline_in_ms=HOUR_MS)
    for number in range(100):
        alone(history, f"{number}", "mail.send")

    def reasons() -> tuple[str, ...]:
        return judge_advance(
            history.log, task="mail.*", stage=Stage.RAMPDOWN, now_ms=history.now_ms, since_ms=history.now_ms
        ).reasons

    history.wait(1)
    for number in range(100, 200):
        alone(history, f"{number}", "mail.send")

    assert reasons() == ("Jobs that have not ended and that legacy may still deliver: 1; wanted: none.",)

    history.run("old", LEGACY)

    assert len(reasons()) == 4


def test_job_that_waits_for_its_next_attempt_is_neither_lost_nor_ended(history: History) -> None:
    for number in range(100):
        duplicated(history, f"{number}", "mail.send")
    history.record("retry", stage="dual", deadline_in_ms=HOUR_MS)
    granted = history.arrive("retry", LEGACY)
    assert isinstance(granted, Granted)
    history.release("retry", granted.token, retry_in_ms=HOUR_MS)

    def ready() -> bool:
        return judge_advance(history.log, task=None, stage=Stage.DUAL, now_ms=history.now_ms).ready

    assert ready()

    history.wait(HOUR_MS + 1)

    assert not ready()
    history.run("retry", LEGACY, state=State.FAILED)
    history.arrive("retry", PUSH)
    assert ready()
