"""A pytest plugin that runs RQ's own tests on a Redis of their own, and with our drop-ins in place of RQ's names.

The names are replaced in RQ's test modules only, as a program replaces its imports: RQ itself stays as it is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis

PORT = int(os.environ["RQ_SUITE_PORT"])
RESULTS = Path(os.environ["RQ_SUITE_RESULTS"])
BRIDGED = os.environ.get("RQ_SUITE_BRIDGED") == "1"

_outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    """Lead every client that names no server to the Redis of the suite."""
    make = redis.Redis.__init__

    def make_with_port(self: redis.Redis, *args: Any, **kwargs: Any) -> None:
        if len(args) < 2 and "connection_pool" not in kwargs:
            kwargs.setdefault("port", PORT)
        make(self, *args, **kwargs)

    redis.Redis.__init__ = make_with_port  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Replace RQ's names by ours in the test modules."""
    if not BRIDGED:
        return
    modules = {item.module for item in items if isinstance(item, pytest.Function)}
    for module in [*modules, *filter(None, [sys.modules.get("tests.fixtures")])]:
        _replace(module)


def _replace(module: ModuleType) -> None:
    import rq
    import rq.decorators

    from queuebridge.backends.rq import Job, Queue, SimpleWorker, Worker, job

    ours = {
        rq.Queue: Queue,
        rq.Worker: Worker,
        rq.SimpleWorker: SimpleWorker,
        rq.decorators.job: job,
        rq.job.Job: Job,
    }
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value in ours:
            setattr(module, name, ours[value])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Note how each test ended."""
    report = yield
    ended = "passed" if report.passed else "skipped" if report.skipped else "failed"
    if report.when == "call" or not report.passed:
        name = item.nodeid.partition("/")[2] or item.nodeid
        why = str(report.longrepr).strip().splitlines()[-1][:300] if report.failed else ""
        _outcomes[name] = f"{ended} {why}".strip()
    return report


def pytest_sessionfinish() -> None:
    """Write the results."""
    RESULTS.write_text(json.dumps(_outcomes, indent=1), encoding="utf-8")
