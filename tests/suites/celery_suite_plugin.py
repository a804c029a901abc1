"""A pytest plugin for runs of Celery's own tests: limits, results in a file, and a bridge below every app.

`celery_suite.py` loads it with `-p`, and says by the environment what it shall do, so that Celery's files stay as they
are:

- CELERY_SUITE_RESULTS: the file that gets a line of JSON for each test;
- CELERY_SUITE_SECONDS: how long a test may take, whatever its own mark says;
- CELERY_SUITE_BRIDGED: if set, every app that is made gets a bridge;
- CELERY_SUITE_RECEIVER: the port of the receiver that runs beside the worker of the session, or in place of it;
- CELERY_SUITE_NO_WORKER: if set, that worker is not started.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import celery
import celery.contrib.testing.worker
import pytest
from celery.result import allow_join_result

# Read now: tests change the environment.
_results = Path(os.environ["CELERY_SUITE_RESULTS"])
_seconds = float(os.environ["CELERY_SUITE_SECONDS"])
_testing: Any = celery.contrib.testing.worker
_plain_start_worker: Any = _testing.start_worker
_app_class: Any = celery.Celery
_outcomes: dict[str, str] = {}
_durations: dict[str, float] = {}
# What a phase of a test says, the worst first.
_WORST_FIRST = ("failed", "skipped", "passed")


def pytest_configure() -> None:
    """Put a bridge below every app that is made from now on."""
    if os.environ.get("CELERY_SUITE_BRIDGED"):
        _attach_to_every_app()
    if os.environ.get("CELERY_SUITE_RECEIVER"):
        _testing.start_worker = _start_worker


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the same time; the mark that comes first counts."""
    for item in items:
        item.add_marker(pytest.mark.timeout(_seconds, method="signal"), append=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each phase of a test ended, and each of its subtests."""
    if type(report) is pytest.TestReport:
        # A subtest is part of its test.
        _durations[report.nodeid] = _durations.get(report.nodeid, 0) + report.duration
    outcome = report.outcome
    if outcome == "skipped" and hasattr(report, "wasxfail"):
        outcome = "passed"
    known = _outcomes.get(report.nodeid, "passed")
    _outcomes[report.nodeid] = min(known, outcome, key=_WORST_FIRST.index)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Write down how a test ended. At once: a run that hangs and is ended has its results all the same."""
    seconds = round(_durations.pop(nodeid, 0), 2)
    line = json.dumps({"test": nodeid, "outcome": _outcomes.pop(nodeid, "failed"), "seconds": seconds})
    with _results.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _attach_to_every_app() -> None:
    from queuebridge.backends.celery import attach

    plain = _app_class.__init__

    @functools.wraps(plain)
    def bridged(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        attach(self)

    _app_class.__init__ = bridged


@contextmanager
def _start_worker(app: Any, **options: Any) -> Iterator[Any]:
    """Start a receiver, and a worker besides if there shall be one.

    The receiver is in this process, as Celery's worker is: the tests look into its log, signals and state.
    """
    with ExitStack() as stack:
        worker = None
        if os.environ.get("CELERY_SUITE_NO_WORKER"):
            _testing.setup_app_for_worker(app, "error", None)
        else:
            # Its processes are forked before the bridge opens anything here.
            worker = stack.enter_context(_plain_start_worker(app, perform_ping_check=False, **options))
        stack.enter_context(_receiver(app))
        from celery.contrib.testing.tasks import ping

        with allow_join_result():
            assert ping.delay().get(timeout=10) == "pong"
        yield worker


@contextmanager
def _receiver(app: Any) -> Iterator[None]:
    from werkzeug.serving import make_server

    from bridge_app import create_app
    from queuebridge.backends.celery import receiving
    from queuebridge.backends.celery.configured_app import using_app

    # The tests make many apps; what is pushed runs in that of the session, as what a worker takes from a broker does.
    found: Any = receiving
    found.receiver_app = lambda: app
    with using_app(app):
        receiver = create_app()
    # One job at a time, as the worker.
    server = make_server("127.0.0.1", int(os.environ["CELERY_SUITE_RECEIVER"]), receiver, threaded=False)
    thread = threading.Thread(target=server.serve_forever, name="receiver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
