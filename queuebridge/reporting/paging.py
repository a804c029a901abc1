"""Reading the execution log page by page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice

from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, ExecutionLog, State
from queuebridge.stages import Stage

PAGE = 500

OPEN_STATES = tuple(state for state in State if not state.settled)


def scan_tasks(
    log: ExecutionLog,
    *,
    task: str | None,
    stage: Stage | None = None,
    states: Sequence[State] = (),
    since_ms: int | None = None,
) -> Iterator[Execution]:
    """Yield the executions of tasks, in ascending order of acceptance.

    Args:
        log: Where they are.
        task: The name of the task, or a glob pattern as in `mail.*`; None for all.
        stage, states, since_ms: As in `ExecutionFilter`.
    """
    pattern = task if task is not None and any(sign in task for sign in "*?[") else None
    wanted = ExecutionFilter(
        task=task if pattern is None else None,
        states=tuple(states),
        stage=stage.value if stage is not None else None,
        since_ms=since_ms,
    )
    for execution in log.scan(wanted, page=PAGE):
        if pattern is None or fnmatchcase(execution.task, pattern):
            yield execution


def with_deliveries(
    log: ExecutionLog, executions: Iterator[Execution]
) -> Iterator[tuple[Execution, list[DeliveryRecord]]]:
    """Yield executions with their deliveries, of which one page at a time is in memory."""
    while page := list(islice(executions, PAGE)):
        deliveries = log.deliveries([execution.dispatch_id for execution in page])
        for execution in page:
            yield execution, deliveries[execution.dispatch_id]
