"""What became of the jobs of each stage and task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from queuebridge.ledger import ExecutionLog
from queuebridge.reporting.paging import OPEN_STATES, scan_tasks, with_deliveries
from queuebridge.reporting.records import StageReport
from queuebridge.reporting.tally import Tally, awaits_legacy
from queuebridge.stages import ORDER, Stage

# By default a safety copy is held back for 60 s: what it starts is late only a minute after that.
LATE_AFTER_MS = 120_000
# Longer than the default hedge with its jitter, and than a transport's first retries.
ARRIVAL_GRACE_MS = 300_000


def build_report(
    log: ExecutionLog,
    *,
    now_ms: int,
    task: str | None = None,
    stage: Stage | None = None,
    since_ms: int | None = None,
    late_after_ms: int = LATE_AFTER_MS,
    grace_ms: int = ARRIVAL_GRACE_MS,
) -> list[StageReport]:
    """Return a report for each stage and task, in the order of the stages and of the tasks' names.

    The executions are read in pages; memory grows with the number of tasks only.

    Args:
        log: Where the executions are.
        now_ms: The store's time.
        task: The name of a task, or a glob pattern; None for all.
        stage: Only jobs that were written by this stage.
        since_ms: Only jobs accepted since, in Unix milliseconds on the store's clock.
        late_after_ms: A start longer than this after the job could have started is late. The default is 60 s more
            than a safety copy is held back by default.
        grace_ms: How long after it could have started a written copy may be on its way before it is missing.

    Raises:
        LedgerUnavailable: The store cannot be reached.
    """
    tallies: dict[tuple[str | None, str], Tally] = {}
    executions = scan_tasks(log, task=task, stage=stage, since_ms=since_ms)
    for execution, deliveries in with_deliveries(log, executions):
        key = (execution.stage, execution.task)
        if key not in tallies:
            tallies[key] = Tally(now_ms=now_ms, late_after_ms=late_after_ms, grace_ms=grace_ms)
        tallies[key].add(execution, deliveries)
    open_legacy: Counter[str] = Counter()
    for execution in scan_tasks(log, task=task, states=OPEN_STATES):
        open_legacy[execution.task] += awaits_legacy(execution)
    return [
        tallies[stage_name, name].report(stage=stage_name, task=name, open_legacy=open_legacy[name])
        for stage_name, name in _ordered(tallies)
    ]


def build_total(
    log: ExecutionLog,
    *,
    now_ms: int,
    task: str | None,
    stage: Stage,
    since_ms: int | None = None,
    late_after_ms: int = LATE_AFTER_MS,
    grace_ms: int = ARRIVAL_GRACE_MS,
) -> StageReport:
    """Return one report for a stage, with all matching tasks added up. As `build_report` otherwise."""
    tally = Tally(now_ms=now_ms, late_after_ms=late_after_ms, grace_ms=grace_ms)
    executions = scan_tasks(log, task=task, stage=stage, since_ms=since_ms)
    for execution, deliveries in with_deliveries(log, executions):
        tally.add(execution, deliveries)
    open_legacy = sum(map(awaits_legacy, scan_tasks(log, task=task, states=OPEN_STATES)))
    return tally.report(stage=stage.value, task=task or "*", open_legacy=open_legacy)


def _ordered(keys: Iterable[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    positions = {stage.value: position for position, stage in enumerate(ORDER)}
    return sorted(keys, key=lambda key: (positions.get(key[0] or "", -1), key[1]))
