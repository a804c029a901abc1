"""Statistics of tasks, from histories that the ledger's own operations have made."""

from __future__ import annotations

import pytest
from histories import History

from queuebridge.ledger import Granted, State
from queuebridge.reporting import TaskStatistics, task_statistics
from queuebridge.stages import Side

LEGACY = Side.LEGACY


def only(history: History) -> TaskStatistics:
    (statistics,) = task_statistics(history.log)
    return statistics


def test_tasks_stand_in_the_order_of_their_names(history: History) -> None:
    for number, task in enumerate(["mail.send", "files.scan", "mail.send", "mail.bounce"]):
        history.record(f"{number}", task=task)

    def totals(task: str | None = None) -> list[tuple[str, int]]:
        return [(one.task, one.total) for one in task_statistics(history.log, task=task)]

    assert totals() == [("files.scan", 1), ("mail.bounce", 1), ("mail.send", 2)]
    assert totals("mail.*") == [("mail.bounce", 1), ("mail.send", 2)]
    assert totals("mail.send") == [("mail.send", 2)]


def test_jobs_accepted_before_the_given_time_do_not_count(history: History) -> None:
    history.record("1")
    history.wait(1)
    history.record("2")

    assert [one.total for one in task_statistics(history.log, since_ms=history.now_ms)] == [1]


def test_dispatches_count_by_state_and_every_state_is_there(history: History) -> None:
    for number, state in enumerate([State.DONE] * 3 + [State.FAILED] * 2 + [State.RETRIED]):
        history.record(f"{number}")
        history.run(f"{number}", LEGACY, state=state)
    history.record("open")

    statistics = only(history)

    assert set(statistics.states) == {state.value for state in State}
    assert {name: count for name, count in statistics.states.items() if count} == {
        "accepted": 1,
        "done": 3,
        "failed": 2,
        "retried": 1,
    }
    assert statistics.total == 7


@pytest.mark.parametrize(
    ("states", "rate"),
    [
        ([], None),
        ([State.CANCELLED, State.RETRIED], None),
        ([State.FAILED], 0.0),
        ([State.DONE] * 3 + [State.FAILED, State.CANCELLED, State.RETRIED], 0.75),
        ([State.DONE, State.EXPIRED], 0.5),
    ],
)
def test_success_rate_is_the_share_of_done_in_what_succeeded_or_failed(
    history: History, states: list[State], rate: float | None
) -> None:
    history.record("open")
    for number, state in enumerate(states):
        history.record(f"{number}")
        history.run(f"{number}", LEGACY, state=state)

    assert only(history).success_rate == rate


def test_quarantined_job_is_a_failure_without_a_duration(history: History) -> None:
    history.record("1", max_attempts=1)
    history.arrive("1", LEGACY, lease_ms=1000)
    history.wait(5000)
    history.arrive("1", LEGACY)

    statistics = only(history)

    assert statistics.states["quarantined"] == 1
    assert (statistics.success_rate, statistics.duration_ms.count) == (0.0, 0)


def test_durations_are_those_of_finished_runs(history: History) -> None:
    for number, (took_ms, state) in enumerate(
        [(10, State.DONE), (20, State.FAILED), (30, State.RETRIED), (120, State.DONE)]
    ):
        history.record(f"{number}")
        history.run(f"{number}", LEGACY, took_ms=took_ms, state=state)
    history.record("running")
    history.arrive("running", LEGACY)

    statistics = only(history)

    assert statistics.duration_ms.count == 4
    assert (statistics.duration_ms.p50, statistics.duration_ms.p95, statistics.duration_ms.p99) == (20, 120, 120)
    assert statistics.average_duration_ms == 45.0


def test_duration_of_a_retried_job_is_that_of_its_last_run(history: History) -> None:
    history.record("1")
    granted = history.arrive("1", LEGACY)
    assert isinstance(granted, Granted)
    history.wait(500)
    history.release("1", granted.token, retry_in_ms=1000)
    history.wait(1000)
    history.run("1", LEGACY, took_ms=7)

    statistics = only(history)

    assert statistics.average_duration_ms == 7.0
    assert statistics.average_queue_ms is None


def test_time_in_the_queue_begins_when_the_job_could_have_started(history: History) -> None:
    history.record("1")
    history.record("2", not_before_in_ms=40)
    history.wait(100)
    history.run("1", LEGACY)
    history.run("2", LEGACY)

    assert only(history).average_queue_ms == 80.0


def test_job_that_never_started_has_no_times(history: History) -> None:
    history.record("1", job_id="job")
    history.wait(10)
    history.ledger.cancel("job")

    statistics = only(history)

    assert (statistics.average_duration_ms, statistics.average_queue_ms) == (None, None)
