"""The longest run and the largest arguments of each task."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from histories import History

from queuebridge.ledger import Execution
from queuebridge.reporting.extremes import Extremes, task_extremes
from queuebridge.stages import Side

LEGACY = Side.LEGACY


def test_longest_is_that_of_the_runs_that_have_ended(history: History) -> None:
    for number, took_ms in enumerate((10, 300, 20)):
        history.record(f"{number}")
        history.run(f"{number}", LEGACY, took_ms=took_ms)
    history.record("running")
    history.arrive("running", LEGACY)
    history.wait(1000)
    history.record("other", task="files.scan")

    found = task_extremes(history.log)

    assert found["mail.send"] == Extremes(dispatches=4, longest_ms=300, largest_bytes=13, cut=False)
    assert found["files.scan"].longest_ms is None
    assert set(task_extremes(history.log, task="mail.*")) == {"mail.send"}


@pytest.mark.parametrize(
    ("payloads", "largest", "cut"),
    [
        (['{"args":[1],"kwargs":{}}', '{"args":["é"],"kwargs":{}}'], 27, False),
        (['{"args":[1],"kwargs":{}}', json.dumps({"cut": "x" * 10_000})], 24, True),
        ([json.dumps({"cut": "x" * 10_000}), '{"args":[1],"kwargs":{}}'], 24, True),
        (['{"not JSON":"application/x-python-serialize"}'], None, False),
        (["no JSON"], None, False),
    ],
)
def test_largest_is_what_the_ledger_shows(
    history: History, monkeypatch: pytest.MonkeyPatch, payloads: list[str], largest: int | None, cut: bool
) -> None:
    history.record("1")
    known = history.log.get("1")
    assert known is not None
    executions: list[Execution] = [replace(known, payload=payload) for payload in payloads]
    monkeypatch.setattr(type(history.log), "scan", lambda log, wanted, *, page: iter(executions))

    (found,) = task_extremes(history.log).values()

    assert (found.largest_bytes, found.cut) == (largest, cut)
