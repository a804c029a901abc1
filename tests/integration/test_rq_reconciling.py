"""Workers of ours reconcile: one of them, in a process beside it, which ends with it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rq_tasks
from processes import ChildProcess, Spawner, wait_until
from rq.job import Job
from rq_program import NAME, Program, running_program, work_off

from queuebridge.backends.rq import Worker

LOCK = "rq:queuebridge:reconciles"
TIMES = {
    "QUEUEBRIDGE_HEDGE_SECONDS": "0",
    "QUEUEBRIDGE_RECONCILE_SECONDS": "0.2",
    "QUEUEBRIDGE_LEASE_SECONDS": "2",
    "QUEUEBRIDGE_GRACE_SECONDS": "1",
}
Start = Callable[..., ChildProcess]


@pytest.fixture
def live(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The program in stage `live`; what it pushes is never delivered."""
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="live", **TIMES) as program:
        yield program


@pytest.fixture
def start(spawn: Spawner, redis_url: str) -> Start:
    """Start `rq worker` with our worker."""

    def run(name: str, *options: str, **env: str | None) -> ChildProcess:
        command = [Path(sys.executable).with_name("rq"), "worker", "--url", redis_url, "--name", name]
        worker = spawn([*command, "-w", "queuebridge.backends.rq.Worker", *options, NAME], env=env, name=name)
        worker.wait_for_line("[Ll]istening on|started with")
        return worker

    return run


def helpers(worker: ChildProcess) -> list[int]:
    """Return the processes beside a worker that reconcile."""
    return [pid for pid in worker.family() if b"queuebridge.reconciling" in _command(pid)]


def finished(program: Program, job: Job) -> None:
    wait_until(lambda: program.fetch(job).is_finished, 30, what="the job to finish")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _is_gone(pid: int) -> bool:
    return b"queuebridge.reconciling" not in _command(pid)


def test_p1_job_whose_push_copy_never_comes_is_run_by_a_worker_alone(live: Program, start: Start) -> None:
    start("one")
    job = live.queue.enqueue(rq_tasks.add, 1)

    finished(live, job)

    assert len(live.notes("add")) == 1


def test_one_of_several_workers_reconciles_and_another_takes_over(live: Program, start: Start) -> None:
    workers = {name: start(name) for name in ("one", "two", "three")}
    first = wait_until(lambda: next((w for w in workers.values() if helpers(w)), None), 20, what="one to reconcile")
    others = [worker for worker in workers.values() if worker is not first]
    holder = (live.connection.get(LOCK) or b"").decode()
    assert workers[holder] is first
    (helper,) = helpers(first)
    assert not any(helpers(worker) for worker in others)

    first.terminate()

    assert _is_gone(helper)
    second = wait_until(lambda: next((w for w in others if helpers(w)), None), 20, what="another to reconcile")
    assert second is workers[(live.connection.get(LOCK) or b"").decode()]
    finished(live, live.queue.enqueue(rq_tasks.add, 1))


def test_it_ends_with_a_worker_that_is_killed(live: Program, start: Start) -> None:
    worker = start("one")
    (helper,) = wait_until(lambda: helpers(worker), 20, what="it to start")

    os.kill(worker.pid, signal.SIGKILL)

    wait_until(lambda: _is_gone(helper), 20, what="it to end")


def test_it_is_started_again_when_it_has_died(live: Program, start: Start) -> None:
    worker = start("one")
    (helper,) = wait_until(lambda: helpers(worker), 20, what="it to start")

    os.kill(helper, signal.SIGKILL)

    (again,) = wait_until(lambda: [pid for pid in helpers(worker) if pid != helper], 30, what="it to start again")
    finished(live, live.queue.enqueue(rq_tasks.add, 1))
    worker.terminate()
    assert _is_gone(again)
    assert not live.connection.exists(LOCK)


def test_work_horses_have_none(live: Program, start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    worker = start("one")
    job = live.queue.enqueue(rq_tasks.hold, str(gate))
    wait_until(lambda: live.notes("hold"), 30, what="the job to start")

    horse = live.notes("hold")[0]["pid"]
    (helper,) = helpers(worker)
    assert Path(f"/proc/{helper}/stat").read_text().rsplit(")", 1)[1].split()[1] == str(worker.pid) != str(horse)

    gate.touch()
    finished(live, job)


def test_worker_without_a_ledger_has_none(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="legacy", ledger=False) as program:
        worker = start("one")
        finished(program, program.queue.enqueue(rq_tasks.add, 1))

        assert helpers(worker) == []
        assert not program.connection.exists(LOCK)


def test_worker_in_burst_mode_has_none(live: Program) -> None:
    work_off(Worker([live.queue], connection=live.connection))

    assert not live.connection.exists(LOCK)
