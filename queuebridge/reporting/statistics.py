"""How tasks fare: success, durations, time in the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from queuebridge.ledger import Execution, ExecutionLog, State
from queuebridge.reporting.paging import scan_tasks
from queuebridge.reporting.percentiles import Histogram, Percentiles

_FAILURES = (State.FAILED, State.EXPIRED, State.QUARANTINED)
# Only these ends are the end of a run: a quarantined dispatch ends when it is delivered again.
_RUN_ENDS = (State.DONE, State.FAILED, State.RETRIED)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStatistics:
    """The dispatches of one task.

    Attributes:
        task: The name of the task.
        total: How many dispatches there are. A retry that was published anew is another dispatch.
        states: How many are in each state, by its name; every state is a key.
        success_rate: The share from 0 to 1 of done ones in all that are done, failed, expired or quarantined; None
            if there are none.
        duration_ms: How long the last run of each finished dispatch took.
        average_duration_ms: The exact average of these; None if there are none.
        average_queue_ms: How long after they could have started those were started that were started only once (later
            attempts wait on purpose); None if there are none.
    """

    task: str
    total: int
    states: Mapping[str, int]
    success_rate: float | None
    duration_ms: Percentiles
    average_duration_ms: float | None
    average_queue_ms: float | None


def task_statistics(log: ExecutionLog, *, task: str | None = None, since_ms: int | None = None) -> list[TaskStatistics]:
    """Return statistics for each task, in the order of their names.

    Args:
        log: Where the executions are; they are read in pages.
        task: The name of a task, or a glob pattern; None for all.
        since_ms: Only those accepted since, in Unix milliseconds on the store's clock.

    Raises:
        LedgerUnavailable: The store cannot be reached.
    """
    tallies: dict[str, _Tally] = {}
    for execution in scan_tasks(log, task=task, since_ms=since_ms):
        if execution.task not in tallies:
            tallies[execution.task] = _Tally()
        tallies[execution.task].add(execution)
    return [tallies[name].statistics(name) for name in sorted(tallies)]


class _Tally:
    def __init__(self) -> None:
        self._states: Counter[State] = Counter()
        self._durations = Histogram()
        self._queued = Histogram()

    def add(self, execution: Execution) -> None:
        self._states[execution.state] += 1
        if execution.started_at_ms is None:
            return
        if execution.finished_at_ms is not None and execution.state in _RUN_ENDS:
            self._durations.add(execution.finished_at_ms - execution.started_at_ms)
        if execution.attempts == 1:
            self._queued.add(execution.started_at_ms - max(execution.enqueued_at_ms, execution.not_before_ms or 0))

    def statistics(self, task: str) -> TaskStatistics:
        done = self._states[State.DONE]
        ended = done + sum(self._states[state] for state in _FAILURES)
        return TaskStatistics(
            task=task,
            total=self._states.total(),
            states={state.value: self._states[state] for state in State},
            success_rate=done / ended if ended else None,
            duration_ms=self._durations.percentiles(),
            average_duration_ms=self._durations.mean,
            average_queue_ms=self._queued.mean,
        )
