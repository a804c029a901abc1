"""The longest run and the largest arguments of each task, as far as the ledger has them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from queuebridge.ledger import ExecutionLog, State
from queuebridge.reporting.paging import scan_tasks

_RUN_ENDS = (State.DONE, State.FAILED, State.RETRIED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The extremes of one task.

    Attributes:
        dispatches: How many dispatches the ledger knows.
        longest_ms: The longest of the last runs of finished dispatches; None if none has finished.
        largest_bytes: The size of the largest arguments as the ledger shows them to people, which blanks out secrets;
            None if it shows none.
        cut: Whether there were larger ones, of which it shows only the beginning.
    """

    dispatches: int
    longest_ms: int | None
    largest_bytes: int | None
    cut: bool


def task_extremes(log: ExecutionLog, *, task: str | None = None) -> dict[str, Extremes]:
    """Return the extremes of each task, by its name.

    Args:
        log: Where the executions are; they are read in pages.
        task: The name of a task, or a glob pattern; None for all.

    Raises:
        LedgerUnavailable: The store cannot be reached.
    """
    found: dict[str, Extremes] = {}
    for execution in scan_tasks(log, task=task):
        before = found.get(execution.task)
        run_ms: int | None = None
        if execution.started_at_ms is not None and execution.finished_at_ms is not None:
            run_ms = execution.finished_at_ms - execution.started_at_ms if execution.state in _RUN_ENDS else None
        size, cut = _size(execution.payload)
        found[execution.task] = Extremes(
            dispatches=1 + (before.dispatches if before else 0),
            longest_ms=_larger(run_ms, before.longest_ms if before else None),
            largest_bytes=_larger(size, before.largest_bytes if before else None),
            cut=cut or (before is not None and before.cut),
        )
    return found


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _size(payload: str) -> tuple[int | None, bool]:
    try:
        shown = json.loads(payload)
    except ValueError:
        return None, False
    # What custody shows instead of arguments that are long, or no JSON.
    if not isinstance(shown, dict) or "not JSON" in shown or set(shown) == {"cut"}:
        return None, isinstance(shown, dict) and "cut" in shown
    return len(payload.encode()), False
