"""Stages from the ledger: a change is seen, an outage is survived, and nobody waits."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from queuebridge import ConfigurationError
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import ProcessSeen, Revision, StageStore
from queuebridge.routing.codec import to_json
from queuebridge.routing.ledger_source import LedgerSource, new_process_id
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import Stage
from queuebridge.storage.memory import MemoryLedger

NEVER = 3600.0


class FragileStore(StageStore):
    """The stages of a memory ledger, which can be cut off."""

    def __init__(self) -> None:
        self.inner = MemoryLedger().stages
        self.down: Exception | None = None
        self.calls = 0
        self.before_report: Callable[[], object] = lambda: None
        self.after_report: Callable[[], object] = lambda: None

    def _reach(self) -> StageStore:
        self.calls += 1
        if self.down is not None:
            raise self.down
        return self.inner

    def current(self) -> Revision | None:
        return self._reach().current()

    def add(self, settings: str, *, after: int, author: str, reason: str, forced: bool = False) -> Revision:
        return self._reach().add(settings, after=after, author=author, reason=reason, forced=forced)

    def history(self, limit: int) -> list[Revision]:
        return self._reach().history(limit)

    def report_process(self, process_id: str, kind: str, revision: int) -> Revision | None:
        self.before_report()
        latest = self._reach().report_process(process_id, kind, revision)
        self.after_report()
        return latest

    def forget_process(self, process_id: str) -> None:
        self._reach().forget_process(process_id)

    def processes(self, *, within_ms: int) -> list[ProcessSeen]:
        return self._reach().processes(within_ms=within_ms)

    def put(self, stage: Stage) -> None:
        current = self.inner.current()
        text = to_json(StageSettings(default=StageRule(stage=stage)))
        self.inner.add(text, after=current.number if current else 0, author="a", reason="r")

    def seen(self) -> list[tuple[str, str, int]]:
        return [(p.process_id, p.kind, p.revision) for p in self.inner.processes(within_ms=10_000)]


@pytest.fixture
def store() -> FragileStore:
    return FragileStore()


@pytest.fixture
def source(store: FragileStore) -> Iterator[LedgerSource]:
    # The thread waits for ever: the test polls.
    source = LedgerSource(store, kind="worker", process_id=lambda: "p-1", poll_seconds=NEVER)
    yield source
    source.close()


def test_change_is_seen_at_the_next_poll_and_reported(store: FragileStore, source: LedgerSource) -> None:
    store.put(Stage.SHADOW)
    assert (source.settings().default.stage, source.revision()) == (Stage.SHADOW, 1)
    assert store.seen() == [("p-1", "worker", 1)]

    store.put(Stage.DUAL)
    assert source.settings().default.stage is Stage.SHADOW
    source.refresh()
    assert (source.settings().default.stage, source.revision()) == (Stage.DUAL, 2)
    assert store.seen() == [("p-1", "worker", 2)]


def test_change_is_in_force_before_it_is_reported(store: FragileStore, source: LedgerSource) -> None:
    store.put(Stage.SHADOW)
    source.settings()
    store.put(Stage.DUAL)
    at_report: list[tuple[int, int]] = []
    store.after_report = lambda: at_report.append((store.seen()[0][2], source.revision()))
    source.refresh()

    assert at_report == [(1, 1), (2, 2)]


def test_settings_are_asked_for_once_however_many_jobs_there_are(store: FragileStore, source: LedgerSource) -> None:
    source.settings()
    calls = store.calls
    store.down = LedgerUnavailable("gone")

    assert all(source.settings().default.stage is Stage.LEGACY for _ in range(1000))
    assert store.calls == calls


def test_thread_follows_the_ledger(store: FragileStore) -> None:
    source = LedgerSource(store, kind="producer", poll_seconds=0.001)
    source.settings()
    store.put(Stage.LIVE)
    seen = threading.Event()
    store.after_report = lambda: seen.set() if source.revision() == 1 else None

    assert seen.wait(10)
    assert source.settings().default.stage is Stage.LIVE
    source.close()


def test_ledger_without_a_revision_means_stage_legacy_and_says_what_to_do(
    source: LedgerSource, caplog: pytest.LogCaptureFixture
) -> None:
    assert source.settings() == StageSettings(default=StageRule(stage=Stage.LEGACY))
    assert source.revision() == 0
    assert "queuebridge stage set STAGE" in caplog.text


def test_ledger_that_was_never_reached_is_an_error_each_time(store: FragileStore, source: LedgerSource) -> None:
    store.down = LedgerUnavailable("no ledger at postgresql://***@host")

    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            source.settings()
    store.down = None
    assert source.settings().default.stage is Stage.LEGACY


@pytest.mark.parametrize(
    "error", [LedgerUnavailable("redis://:hunter2@host is gone"), OSError("hunter2@host token=hunter2")]
)
def test_outage_leaves_the_last_settings_in_force_and_is_logged_once(
    store: FragileStore, source: LedgerSource, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    store.put(Stage.DUAL)
    source.settings()
    store.down = error
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            source.refresh()
            assert source.settings().default.stage is Stage.DUAL
        assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.ERROR]
        assert "Revision 1 of the stage settings stays in force" in caplog.text
        assert "=hunter2" not in caplog.text
        assert ":hunter2" not in caplog.text

        store.down = None
        store.put(Stage.LIVE)
        source.refresh()
    assert source.settings().default.stage is Stage.LIVE
    assert "can be read from the ledger again" in caplog.text


def test_revision_of_a_newer_version_is_not_used_and_not_reported_as_seen(
    store: FragileStore, source: LedgerSource, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(Stage.DUAL)
    source.settings()
    store.inner.add('{"version": 2}', after=1, author="a", reason="r")
    for _ in range(3):
        source.refresh()

    assert (source.settings().default.stage, source.revision()) == (Stage.DUAL, 1)
    assert store.seen() == [("p-1", "worker", 1)]
    assert caplog.text.count("Revision 2 in the ledger: the stage settings have version 2") == 1


def test_unreadable_revision_is_an_error_at_the_start(store: FragileStore, source: LedgerSource) -> None:
    store.inner.add("{", after=0, author="a", reason="r")

    with pytest.raises(ConfigurationError, match="Revision 1 in the ledger: the stage settings are not JSON"):
        source.settings()


def test_close_stops_the_thread_and_forgets_the_process(store: FragileStore) -> None:
    before = set(threading.enumerate())
    source = LedgerSource(store, kind="worker", poll_seconds=NEVER)
    source.settings()
    (thread,) = set(threading.enumerate()) - before

    source.close()
    thread.join(10)
    assert not thread.is_alive()
    assert store.seen() == []
    source.close()

    store.put(Stage.PUSH)
    assert source.settings().default.stage is Stage.PUSH
    source.close()


def test_close_during_a_poll_leaves_no_report_behind(store: FragileStore, source: LedgerSource) -> None:
    source.settings()
    store.before_report = source.close
    source.refresh()

    assert store.seen() == []


def test_close_does_not_fail_with_the_ledger(store: FragileStore, source: LedgerSource) -> None:
    source.settings()
    store.down = LedgerUnavailable("gone")

    source.close()
    store.down = None


def test_source_that_nobody_uses_any_more_ends_its_thread(store: FragileStore) -> None:
    before = set(threading.enumerate())
    source = LedgerSource(store, kind="worker", poll_seconds=0.001)
    source.settings()
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(source)

    del source
    # The thread may hold it for the length of a poll.
    thread.join(10)
    gc.collect()
    assert not thread.is_alive()
    assert gone() is None


def test_many_threads_at_the_first_use_read_once(store: FragileStore, source: LedgerSource) -> None:
    start = threading.Barrier(8)

    def use() -> None:
        start.wait(10)
        source.settings()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert store.calls == 1


def test_process_ids_differ() -> None:
    assert new_process_id() != new_process_id()
    assert f"-{os.getpid()}-" in new_process_id()


# In an interpreter of its own: forking this one, which may have threads, is deprecated by newer Pythons.
FORK = """
import os, sys, threading
from queuebridge.ledger import Revision
from queuebridge.routing import StageRule, StageSettings
from queuebridge.routing.codec import to_json
from queuebridge.routing.ledger_source import LedgerSource
from queuebridge.stages import Stage
from queuebridge.storage.memory import MemoryLedger

age, trouble = float(sys.argv[1]), sys.argv[2] == "trouble"
now = [1000.0]
store = MemoryLedger().stages
text = to_json(StageSettings(default=StageRule(stage=Stage.DUAL)))
store.add(text, after=0, author="a", reason="r")
source = LedgerSource(store, kind="worker", poll_seconds=2.0, clock=lambda: now[0])
source.settings()
if trouble:
    source._note_trouble("gone")
# Another thread may hold the lock in the moment of the fork.
source._lock().acquire()
now[0] += age
pid = os.fork()
if pid == 0:
    store.add(text.replace("dual", "live"), after=1, author="a", reason="r")
    stage = source.settings().default.stage.value
    threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    first = len(store.processes(within_ms=10_000))
    source.refresh()
    print(stage, threads, first, source.settings().default.stage.value, flush=True)
    print(sorted(f"-{os.getpid()}-" in p.process_id for p in store.processes(within_ms=10_000)), flush=True)
    source.close()
    print(len(store.processes(within_ms=10_000)), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(
    ("age", "trouble", "stage", "reported"),
    [
        # Fresh enough: used at once, without waiting for the ledger, and without a trace.
        (2.4, "none", "dual", 1),
        # The parent's thread did not get over; what it knew may be hours old.
        (2.6, "none", "live", 2),
        # The parent knew that the ledger is down: its children do not wait for it either.
        (999, "trouble", "dual", 1),
    ],
)
def test_forked_child_follows_the_ledger_itself(age: float, trouble: str, stage: str, reported: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), str(age), trouble],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert result.stdout.splitlines() == [
        f"{stage} ['queuebridge-stages'] {reported} live",
        "[False, True]",
        "1",
    ]
