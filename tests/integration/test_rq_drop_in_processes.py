"""The RQ drop-ins as processes: RQ's own command with our worker, the embedded server, the receiver, and SIGKILL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import rq
import rq_tasks
from contracts import Effects, wait_for_worker, worker_command, worker_environ
from processes import ChildProcess, Spawner, free_port, wait_until
from rq import Callback, Retry
from rq.job import Job
from rq.results import Result
from rq_program import NAME, Program, running_program

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.backends.rq.identity import dispatch_of
from queuebridge.ledger import DeliveryOutcome, Execution, State
from queuebridge.loading import upgrade_ledger
from queuebridge.outcome import Status

TIMES = {"QUEUEBRIDGE_LEASE_SECONDS": "2", "QUEUEBRIDGE_GRACE_SECONDS": "1", "QUEUEBRIDGE_HEDGE_SECONDS": "0"}

RQ_2 = rq.VERSION.startswith("2.")

World = Callable[..., AbstractContextManager[Program]]


@pytest.fixture
def world(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawner) -> World:
    """Run a program with a receiver, to which the embedded server delivers: `with world("live") as program`."""

    @contextmanager
    def run(stage: str) -> Iterator[Program]:
        port = free_port()
        with running_server(ServerSettings(port=0, engine=EngineSettings(time_scale=4))) as api:
            environ = {
                "QSTASH_URL": api,
                "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
                "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
                "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
                "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{port}",
                **TIMES,
            }
            with running_program(redis_url, tmp_path / "notes", monkeypatch, stage=stage, **environ) as program:
                arguments = ["receiver", "--port", str(port), "--workers", "2", "--threads", "2"]
                receiver = spawn([sys.executable, "-m", "queuebridge", *arguments], name="receiver")
                receiver.wait_for_port(port)
                yield program
                receiver.kill()

    return run


@pytest.fixture
def legacy(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The program in stage `legacy`, with a ledger."""
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="legacy", **TIMES) as program:
        yield program


@pytest.fixture
def work(spawn: Spawner, redis_url: str) -> Callable[[], ChildProcess]:
    """Start `rq worker` with our worker class."""

    def start(worker_class: str = "queuebridge.backends.rq.Worker") -> ChildProcess:
        command = [Path(sys.executable).with_name("rq"), "worker", "--url", redis_url, "-w", worker_class, NAME]
        worker = spawn(command, name="worker")
        worker.wait_for_line("[Ll]istening on|started with")
        return worker

    return start


def finished(program: Program, *jobs: Job, timeout: float = 30) -> None:
    """Wait until RQ says that jobs have finished."""
    wait_until(lambda: all(program.fetch(each).is_finished for each in jobs), timeout, what="the jobs to finish")


def execution_of(program: Program, job: Job) -> Execution:
    """Return what the ledger knows of the dispatch that a job stands for."""
    field, enqueued_at = program.connection.hmget(job.key, "queuebridge", "enqueued_at")
    return program.known(dispatch_of(job.id, field.decode() if field else None, enqueued_at.decode()))


def outcomes(program: Program, dispatch_id: str) -> list[DeliveryOutcome]:
    """Return how the ledger answered the deliveries of a dispatch."""
    assert program.bridge.ledger is not None
    arrivals = program.bridge.ledger.executions.deliveries([dispatch_id])[dispatch_id]
    return [arrival.outcome for arrival in arrivals]


@pytest.mark.parametrize("stage", ["legacy", "dual", "live", "rampdown", "push"])
def test_p2_each_job_takes_effect_once_whoever_has_a_copy(
    stage: str, world: World, work: Callable[[], ChildProcess]
) -> None:
    with world(stage) as program:
        work()
        jobs = [program.queue.enqueue(rq_tasks.add, n, b=1, on_success=Callback(rq_tasks.succeeded)) for n in range(10)]
        last = program.queue.enqueue(rq_tasks.add, 100, depends_on=jobs)
        retried = program.queue.enqueue(rq_tasks.fail_times, 2, retry=Retry(max=2))

        finished(program, *jobs, last, retried)

        assert [program.fetch(job).return_value() for job in jobs] == list(range(1, 11))
        assert program.fetch(retried).return_value() == 3
        # Copies may still be on their way.
        wait_until(lambda: not program.on_queue(), 30, what="the queue to be empty")
        assert sorted(note["a"] for note in program.notes("add")) == [*range(10), 100]
        assert len(program.notes("fail_times")) == 3
        assert len(program.notes("succeeded")) == 10


@pytest.mark.parametrize(
    "worker_class",
    [
        "queuebridge.backends.rq.Worker",
        pytest.param("rq_workers.Spawning", marks=pytest.mark.skipif(RQ_2, reason="RQ 2 spawns workers of its own")),
    ],
)
def test_p1_killed_work_horse_comes_again(
    legacy: Program, work: Callable[..., ChildProcess], tmp_path: Path, worker_class: str
) -> None:
    work(worker_class)
    job = legacy.queue.enqueue(rq_tasks.die_once, str(tmp_path / "marker"))

    finished(legacy, job)

    first, second = legacy.notes("die")
    assert (legacy.fetch(job).return_value(), first["pid"] != second["pid"]) == ("survived", True)
    assert (first["dispatch"], first["fence"] < second["fence"]) == (second["dispatch"], True)
    assert (execution_of(legacy, job).state, execution_of(legacy, job).attempts) == (State.DONE, 2)
    assert legacy.queue.started_job_registry.get_job_ids() == []


def test_work_horses_share_no_connection_to_a_ledger_in_a_database(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], ChildProcess]
) -> None:
    database = {"QUEUEBRIDGE_LEDGER": f"sqlite:///{tmp_path / 'ledger.db'}"}
    upgrade_ledger(database["QUEUEBRIDGE_LEDGER"])
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="legacy", **TIMES, **database) as program:
        work()
        jobs = [program.queue.enqueue(rq_tasks.add, n) for n in range(5)]
        killed = program.queue.enqueue(rq_tasks.die_once, str(tmp_path / "marker"))

        finished(program, *jobs, killed)

        assert [execution_of(program, job).state for job in (*jobs, killed)] == [State.DONE] * 6
        assert execution_of(program, killed).attempts == 2


@pytest.mark.timeout(90)
def test_job_that_kills_its_work_horse_again_and_again_is_given_up(
    legacy: Program, work: Callable[[], ChildProcess]
) -> None:
    work()
    job = legacy.queue.enqueue(rq_tasks.die, on_failure=Callback(rq_tasks.failed))

    wait_until(lambda: legacy.fetch(job).is_failed, 60, what="the job to be given up")

    assert len(legacy.notes("die")) == 4
    assert execution_of(legacy, job).state is State.QUARANTINED
    result = legacy.fetch(job).latest_result()
    assert result is not None
    assert (result.type, "quarantined" in (result.exc_string or "")) == (Result.Type.FAILED, True)
    assert legacy.queue.failed_job_registry.get_job_ids() == [job.id]


def test_p1_pushed_job_that_kills_the_receiver_comes_again(world: World, tmp_path: Path) -> None:
    with world("push") as program:
        job = program.queue.enqueue(rq_tasks.die_once, str(tmp_path / "marker"))

        finished(program, job, timeout=40)

        assert program.fetch(job).return_value() == "survived"
        assert len(program.notes("die")) == 2
        assert execution_of(program, job).attempts == 2
        assert program.queue.started_job_registry.get_job_ids() == []


@pytest.mark.timeout(120)
def test_pushed_job_that_kills_the_receiver_again_and_again_is_failed_for_rq(world: World) -> None:
    with world("push") as program:
        job = program.queue.enqueue(rq_tasks.die)

        def is_given_up() -> bool:
            # QStash would take hours for the last one.
            program.bridge.reconciler().run_once()
            return program.fetch(job).is_failed

        wait_until(is_given_up, 100, what="the job to be given up")

        assert len(program.notes("die")) == 4
        assert execution_of(program, job).state is State.QUARANTINED
        result = program.fetch(job).latest_result()
        assert result is not None
        assert "quarantined" in (result.exc_string or "")
        assert program.queue.failed_job_registry.get_job_ids() == [job.id]
        assert program.queue.started_job_registry.get_job_ids() == []


def test_workers_that_would_not_claim_are_found(
    legacy: Program, work: Callable[..., ChildProcess], spawn: Spawner, tmp_path: Path
) -> None:
    work()
    work("rq.Worker")
    tasks = spawn([*worker_command(), "-q", NAME], env=worker_environ({}, Effects(tmp_path / "effects")), name="tasks")
    wait_for_worker(tasks)

    backend = legacy.bridge.legacy
    assert backend is not None
    (queues,) = backend.strangers().values()
    assert list(queues) == [NAME]
    # Neither one that has ended nor one that has vanished counts.
    for worker in rq.Worker.all(connection=legacy.connection):
        legacy.connection.delete(worker.key)
    assert backend.strangers() == {}


def test_busy_job_is_put_off_and_the_records_of_its_execution_stay(
    legacy: Program, work: Callable[[], ChildProcess], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    work()
    work()
    job = legacy.queue.enqueue(rq_tasks.hold, str(gate))
    wait_until(lambda: legacy.notes("hold"), 20, what="the job to start")
    dispatch = execution_of(legacy, job).dispatch_id

    legacy.queue.push_job_id(job.id)
    wait_until(lambda: DeliveryOutcome.BUSY in outcomes(legacy, dispatch), 20, what="the copy to be put off")
    assert legacy.fetch(job).get_status() == "started"
    gate.touch()
    wait_until(lambda: DeliveryOutcome.SUPPRESSED in outcomes(legacy, dispatch), 30, what="the copy to come again")

    assert (legacy.fetch(job).get_status(), legacy.fetch(job).return_value()) == ("finished", "held")
    assert (len(legacy.notes("hold")), len(legacy.notes("held"))) == (1, 1)
    wait_until(lambda: not legacy.queue.started_job_registry.get_job_ids(), 10, what="its execution to be cleaned up")


def test_push_copy_of_a_job_that_a_worker_is_busy_with_does_not_run(
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[], ChildProcess],
) -> None:
    with running_program(redis_url, tmp_path / "notes", monkeypatch, stage="dual", **TIMES) as program:
        gate = tmp_path / "gate"
        work()
        job = program.queue.enqueue(rq_tasks.hold, str(gate))
        (envelope,) = program.pushed()
        wait_until(lambda: program.notes("hold"), 20, what="the job to start")

        assert program.deliver(envelope).status is Status.BUSY
        gate.touch()
        finished(program, job)
        wait_until(lambda: program.known(envelope.dispatch_id).state is State.DONE, 20, what="the job to be settled")

        assert program.deliver(envelope).status is Status.DUPLICATE
        assert len(program.notes("held")) == 1
