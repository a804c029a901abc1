"""The log is read in pages, and nothing of a page is kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from histories import History

from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, ExecutionLog
from queuebridge.reporting import build_report, judge_advance, task_statistics
from queuebridge.reporting.paging import PAGE
from queuebridge.stages import Stage

COUNT = 5 * PAGE + 1


class EndlessLog(ExecutionLog):
    """Makes up executions as they are asked for, and counts how many are in memory.

    Attributes:
        most: The highest number of executions whose deliveries were in memory at once.
        asked: How many executions each call of `deliveries` was for.
        scanned: What each scan was for.
    """

    def __init__(self, model: Execution, count: int = COUNT) -> None:
        self._model = model
        self._count = count
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0
        self.asked: list[int] = []
        self.scanned: list[ExecutionFilter] = []

    def get(self, dispatch_id: str) -> Execution | None:
        raise NotImplementedError

    def of_job(self, job_id: str) -> list[Execution]:
        raise NotImplementedError

    def recent(self, wanted: ExecutionFilter, *, limit: int) -> list[Execution]:
        raise NotImplementedError

    def deliveries(self, dispatch_ids: Sequence[str]) -> dict[str, list[DeliveryRecord]]:
        made = {dispatch_id: Marked() for dispatch_id in dispatch_ids}
        for one in made.values():
            self._alive.add(one)
        self.asked.append(len(dispatch_ids))
        self.most = max(self.most, len(self._alive))
        return dict(made)

    def scan(self, wanted: ExecutionFilter, *, page: int = 1000) -> Iterator[Execution]:
        self.scanned.append(wanted)
        assert page <= 1000
        if not wanted.states:
            for number in range(self._count):
                yield replace(self._model, dispatch_id=f"{number}")


class Marked(list[DeliveryRecord]):
    """A list that can be referred to weakly."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.fixture
def model(history: History) -> Execution:
    history.record("model")
    found = history.log.get("model")
    assert found is not None
    return found


def test_report_keeps_two_pages_at_most(model: Execution) -> None:
    log = EndlessLog(model)

    (report,) = build_report(log, now_ms=model.accepted_at_ms)

    assert report.jobs == COUNT
    assert log.asked == [PAGE] * 5 + [1]
    assert log.most <= 2 * PAGE


def test_evidence_keeps_two_pages_at_most(model: Execution) -> None:
    log = EndlessLog(model)

    judge_advance(log, task=None, stage=Stage.DUAL, now_ms=model.accepted_at_ms)

    assert sum(log.asked) == COUNT
    assert log.most <= 2 * PAGE


def test_statistics_need_no_deliveries(model: Execution) -> None:
    log = EndlessLog(model)

    (statistics,) = task_statistics(log)

    assert (statistics.total, log.asked) == (COUNT, [])


@pytest.mark.parametrize(("task", "asked"), [("mail.send", "mail.send"), ("mail.*", None), (None, None)])
def test_store_selects_by_name_and_stage_where_it_can(model: Execution, task: str | None, asked: str | None) -> None:
    log = EndlessLog(model, count=0)

    build_report(log, now_ms=0, task=task, stage=Stage.DUAL, since_ms=7)

    first, unsettled = log.scanned
    assert first == ExecutionFilter(task=asked, stage="dual", since_ms=7)
    assert unsettled.task == asked
    assert {state.value for state in unsettled.states} == {"accepted", "running", "waiting"}
