"""An existing Celery application, with no edit but an import, on real workers, a receiver and the embedded server."""

from __future__ import annotations

import json
import re
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import celery
import pytest
from processes import ChildProcess, Spawner, free_port, wait_until

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.ledger import DeliveryOutcome, Execution, ExecutionFilter, State
from queuebridge.loading import load_ledger

APPLICATIONS = Path(__file__).parents[1] / "support" / "applications"
QUEUEBRIDGE = [sys.executable, "-m", "queuebridge"]
PYTHON = sys.executable


class Shop:
    """The application and its surroundings, as processes."""

    def __init__(self, spawn: Spawner, folder: Path, broker: str, results: str) -> None:
        self._spawn = spawn
        self.folder = folder
        self.port, self.receiver_port = free_port(), free_port()
        self.effects = folder / "effects.jsonl"
        self.stop = folder / "stop"
        self.queue = f"shop-{uuid.uuid4().hex[:8]}"
        self.environ = {
            "PYTHONPATH": str(APPLICATIONS),
            "SHOP_BROKER": broker,
            "SHOP_RESULTS": results,
            "SHOP_EFFECTS": str(self.effects),
            "SHOP_STOP": str(self.stop),
            "QUEUEBRIDGE_LEGACY": "celery",
            "QUEUEBRIDGE_STAGE": "ledger",
            "QUEUEBRIDGE_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
            "QUEUEBRIDGE_HEDGE_SECONDS": "6",
            "QUEUEBRIDGE_CELERY_APP": "shop_celery:app",
            "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{self.receiver_port}",
            "QSTASH_URL": f"http://127.0.0.1:{self.port}",
            "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
            "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
        }

    def run(self, *arguments: str, name: str | None = None, **variables: str) -> ChildProcess:
        """Start a command of queuebridge."""
        return self._spawn([*QUEUEBRIDGE, *arguments], env={**self.environ, **variables}, name=name or arguments[0])

    def command(self, *arguments: str, status: int = 0) -> str:
        """Run a command to its end, and return what it said."""
        child = self.run(*arguments)
        assert child.wait(30) == status, child.report()
        return child.output

    def worker(self, *arguments: str, module: str = "shop_celery", **variables: str) -> ChildProcess:
        """Start a worker of the application, as its team always has."""
        name = f"worker-{uuid.uuid4().hex[:6]}@here"
        command = [PYTHON, "-m", "celery", "-A", module, "worker", "-c", "2", "-l", "INFO", "-n", name, *arguments]
        child = self._spawn(command, env={**self.environ, **variables}, name="celery")
        child.wait_for_line(r"ready\.", 40)
        return child

    def start(self) -> None:
        """Start everything but producers."""
        self.command("ledger", "upgrade")
        self.run("devserver", "--port", str(self.port)).wait_for_port(self.port)
        receiver = self.run("receiver", "--port", str(self.receiver_port), "--workers", "2", "--threads", "2")
        self.worker()
        receiver.wait_for_port(self.receiver_port)

    def produce(self, name: str, per_second: float) -> ChildProcess:
        """Start a producer."""
        command = [PYTHON, str(APPLICATIONS / "shop_orders.py"), name, str(per_second)]
        return self._spawn(command, env=self.environ, name=f"producer {name}")

    def call(self, *arguments: str) -> ChildProcess:
        """Do something with jobs that do not come to their end at once."""
        return self._spawn([PYTHON, str(APPLICATIONS / "shop_endings.py"), *arguments], env=self.environ, name="call")

    def seen(self) -> Counter[str]:
        """Return the effects, and how often each happened."""
        if not self.effects.exists():
            return Counter()
        lines = self.effects.read_bytes().decode().split("\n")[:-1]
        return Counter(json.loads(line)["effect"] for line in lines)

    def stages(self) -> Counter[tuple[str | None, str | None]]:
        """Return how many dispatches of each stage ran on which backend."""
        with closing(load_ledger(self.environ["QUEUEBRIDGE_LEDGER"])) as ledger:
            return Counter((one.stage, one.executed_by) for one in ledger.executions.scan(ExecutionFilter()))

    def ran(self) -> set[tuple[str | None, str | None, str]]:
        """Return stage, backend and queue of all that ran."""
        with closing(load_ledger(self.environ["QUEUEBRIDGE_LEDGER"])) as ledger:
            found = ledger.executions.scan(ExecutionFilter())
            return {(one.stage, one.executed_by, one.queue) for one in found}

    def open(self) -> int:
        """Return how many dispatches have no end yet."""
        with closing(load_ledger(self.environ["QUEUEBRIDGE_LEDGER"])) as ledger:
            return sum(not one.state.settled for one in ledger.executions.scan(ExecutionFilter()))


@pytest.fixture
def results(redis_url: str) -> str:
    """Where results are stored."""
    return redis_url


@pytest.fixture(params=["redis", "rabbitmq"])
def shop(request: pytest.FixtureRequest, spawn: Spawner, tmp_path: Path, results: str) -> Iterator[Shop]:
    """The application with either broker."""
    broker: str = results if request.param == "redis" else request.getfixturevalue("rabbitmq_url")
    yield Shop(spawn, tmp_path, broker, results)
    spawn.close()


def accepted(producer: ChildProcess) -> list[str]:
    """Return the effects that a producer expects."""
    return [effect for line in producer.stdout.splitlines() for effect in json.loads(line)]


@pytest.mark.timeout(240)
def test_application_moves_to_push_and_back_under_load(shop: Shop) -> None:
    shop.start()
    producer = shop.produce("a", per_second=8)
    for stage in ("shadow", "dual", "live", "rampdown", "push", "rampdown", "live", "dual", "shadow", "legacy"):
        shop.command("stage", "set", stage, "--yes", "--reason", "the next step")
        so_far = len(accepted(producer))
        wait_until(lambda so_far=so_far: len(accepted(producer)) > so_far + 40, 60, what=f"orders in {stage}")
    shop.stop.touch()
    assert producer.wait(20) == 0, producer.report()

    expected = accepted(producer)
    wait_until(lambda: set(expected) <= set(shop.seen()), 60, what="all effects")
    wait_until(lambda: not shop.open(), 60, what="all dispatches to end")

    assert shop.seen() == Counter(expected)
    ran = shop.stages()
    assert ran["push", "qstash"] > 10
    assert ran["dual", "celery"] > 10
    assert ran["legacy", "celery"] > 10


@pytest.mark.timeout(120)
def test_stage_with_two_copies_is_refused_while_a_worker_does_not_claim(
    spawn: Spawner, tmp_path: Path, redis_url: str
) -> None:
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    shop.command("ledger", "upgrade")
    shop.worker()
    stranger = shop.worker(SHOP_PLAIN="yes")

    said = shop.command("stage", "set", "dual", "--yes", "--reason", "too soon", status=1)
    assert "1 workers take jobs without claiming them" in said
    # Before two copies exist there is nothing to fear.
    shop.command("stage", "set", "shadow", "--yes", "--reason", "well")
    stranger.terminate()
    shop.command("stage", "set", "dual", "--yes", "--reason", "now")


@pytest.mark.timeout(120)
def test_stage_that_the_environment_sets_is_told_of_workers_that_do_not_claim(
    spawn: Spawner, tmp_path: Path, redis_url: str
) -> None:
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    shop.environ.update(QUEUEBRIDGE_STAGE="dual")
    shop.run("devserver", "--port", str(shop.port)).wait_for_port(shop.port)
    shop.command("ledger", "upgrade")
    stranger = shop.worker(SHOP_PLAIN="yes")
    problem = r"1 workers take jobs without claiming them, .*worker-\w+@here\. Restart them"

    shop.worker().wait_for_line(rf"ERROR queuebridge.reconciling: In stage dual, {problem}", 40)
    assert re.search(rf"FAIL workers: {problem}", shop.command("check", status=3))

    stranger.terminate()
    assert "ok   workers: none takes jobs without claiming them" in shop.command("check", status=3)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_safety_copy_runs_in_workers_that_claim_only(
    spawn: Spawner, tmp_path: Path, redis_url: str, pool: str
) -> None:
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    # Nothing is pushed: no server listens, so that the safety copy is needed at once.
    shop.environ["QUEUEBRIDGE_STAGE"] = "live"
    shop.command("ledger", "upgrade")
    shop.worker(SHOP_PLAIN="yes")
    producer = shop.produce("a", per_second=20)
    wait_until(lambda: len(accepted(producer)) > 20, 30, what="orders")
    shop.stop.touch()
    assert producer.wait(20) == 0
    assert shop.seen() == Counter()

    command = [PYTHON, "-m", "celery", "-A", "shop_celery", "worker", "-P", pool, "-c", "2", "-l", "INFO"]
    spawn([*command, "-n", "ours@here"], env=shop.environ, name="ours").wait_for_line(r"ready\.", 40)
    wait_until(lambda: set(accepted(producer)) <= set(shop.seen()), 60, what="all effects")

    assert shop.seen() == Counter(accepted(producer))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("broker", "way"),
    [(broker, way) for broker in ("memory://", "redis_url") for way in ("testing", "bare", "program")]
    + [("rabbitmq_url", "testing")],
)
def test_worker_inside_a_program_announces_that_it_claims_and_takes_safety_copies(
    request: pytest.FixtureRequest, spawn: Spawner, tmp_path: Path, broker: str, way: str
) -> None:
    memory = broker == "memory://"
    url = broker if memory else request.getfixturevalue(broker)
    shop = Shop(spawn, tmp_path, url, "cache+memory://")
    # Nothing can be pushed, so that each job runs from its safety copy.
    shop.environ.update(QUEUEBRIDGE_STAGE="live", QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS="1")
    shop.command("ledger", "upgrade")

    child = spawn([PYTHON, str(APPLICATIONS / "shop_embedded.py"), way], env=shop.environ, name=way)

    assert child.wait(60) == 0, child.report()
    said = json.loads(child.stdout.splitlines()[-1])
    orders = [f"embedded-{number}" for number in range(2)]
    assert said == {"strangers": [], "queues": ["shop", "shop.queuebridge"], "results": orders}
    assert shop.seen() == Counter(f"ship {order}" for order in orders)
    assert shop.stages() == {("live", "celery"): 2}


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery before 5.5 does not leave delays to the broker")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("stage", ["legacy", "shadow", "dual", "live", "push"])
def test_delays_of_quorum_queues_are_the_brokers_in_every_stage(
    spawn: Spawner, tmp_path: Path, rabbitmq_url: str, redis_url: str, stage: str
) -> None:
    shop = Shop(spawn, tmp_path, rabbitmq_url, redis_url)
    shop.environ.update(QUEUEBRIDGE_STAGE=stage, SHOP_QUORUM="yes", QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS="1")
    shop.command("ledger", "upgrade")
    if stage != "live":
        # In that stage nothing can be pushed, so that safety copies run.
        shop.run("devserver", "--port", str(shop.port)).wait_for_port(shop.port)
        receiver = shop.run("receiver", "--port", str(shop.receiver_port), "--workers", "1", "--threads", "2")
        receiver.wait_for_port(shop.receiver_port)
    else:
        shop.run("reconcile", "--loop", "--every", "0.2")
    shop.worker()

    producer = spawn([PYTHON, str(APPLICATIONS / "shop_delayed.py")], env=shop.environ, name="producer")
    assert producer.wait(40) == 0, producer.report()
    expected = json.loads(producer.stdout.splitlines()[-1])
    wait_until(lambda: set(expected) <= set(shop.seen()), 40, what="all effects")
    wait_until(lambda: not shop.open(), 40, what="all dispatches to end")

    assert shop.seen() == Counter(list(expected))
    effects = [json.loads(line) for line in shop.effects.read_text().splitlines()]
    # A broker counts whole seconds, and a worker waits for the rest.
    assert all(one["at"] >= expected[one["effect"]] - 0.1 for one in effects)
    assert {queue for _, _, queue in shop.ran()} == {"shop"}
    assert {(now, by) for now, by, _ in shop.ran()} == {(stage, "qstash" if stage == "push" else "celery")}


def companions(worker: ChildProcess) -> list[int]:
    """Return the processes beside a worker that reconcile."""
    found = []
    for pid in worker.family():
        with suppress(OSError):
            if b"queuebridge.reconciling" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_worker_brings_held_copies_when_they_are_due(
    spawn: Spawner, tmp_path: Path, redis_url: str, pool: str, end: signal.Signals
) -> None:
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    shop.environ.update(QUEUEBRIDGE_STAGE="live", QUEUEBRIDGE_HEDGE_SECONDS="1")
    # It finds the app by itself.
    shop.environ.pop("QUEUEBRIDGE_CELERY_APP")
    shop.command("ledger", "upgrade")
    # QStash takes the jobs, and no receiver is there: they run from the copies that the ledger holds.
    shop.run("devserver", "--port", str(shop.port)).wait_for_port(shop.port)
    # Whatever the pool starts anew later must not reconcile, too.
    worker = shop.worker("-P", pool, *(["--max-tasks-per-child", "1"] if pool == "prefork" else []))
    producer = shop.produce("a", per_second=20)
    wait_until(lambda: len(accepted(producer)) > 5, 30, what="orders")
    shop.stop.touch()
    assert producer.wait(20) == 0

    wait_until(lambda: set(accepted(producer)) <= set(shop.seen()), 60, what="all effects")
    assert shop.seen() == Counter(accepted(producer))
    (companion,) = companions(worker)

    worker.send(end)
    worker.wait(30)
    wait_until(lambda: not Path(f"/proc/{companion}").exists(), 20, what="the end of what reconciles")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variable", ["SHOP_PLAIN", "QUEUEBRIDGE_LEDGER"])
def test_worker_without_bridge_or_ledger_does_not_reconcile(
    spawn: Spawner, tmp_path: Path, redis_url: str, variable: str
) -> None:
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    shop.environ.update(QUEUEBRIDGE_STAGE="legacy")
    shop.command("ledger", "upgrade")

    worker = shop.worker(**{variable: "yes" if variable == "SHOP_PLAIN" else ""})

    assert companions(worker) == []
    worker.terminate()
    assert "econcil" not in worker.output


def test_nothing_of_ours_is_needed_in_stage_legacy(spawn: Spawner, tmp_path: Path, redis_url: str) -> None:
    """P3: a worker without queuebridge runs what the bridged application sends in stage legacy."""
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    shop.environ["QUEUEBRIDGE_STAGE"] = "legacy"
    shop.environ.pop("QUEUEBRIDGE_LEDGER")
    shop.worker(SHOP_PLAIN="yes")
    producer = shop.produce("a", per_second=20)
    wait_until(lambda: len(accepted(producer)) > 20, 30, what="orders")
    shop.stop.touch()
    assert producer.wait(20) == 0

    wait_until(lambda: set(accepted(producer)) <= set(shop.seen()), 40, what="all effects")
    found: dict[str, Any] = dict(shop.seen())
    assert set(found.values()) == {1}


class Endings:
    """Jobs that do not come to their end at once, in one stage.

    Args:
        shop: The application.
        stage: The stage.
        worker: Arguments of the worker.
    """

    def __init__(self, shop: Shop, stage: str, *worker: str) -> None:
        self.shop = shop
        self.gate = shop.folder / "gate"
        shop.environ.update(
            QUEUEBRIDGE_STAGE=stage,
            QUEUEBRIDGE_LEASE_SECONDS="3",
            QUEUEBRIDGE_GRACE_SECONDS="1",
            QUEUEBRIDGE_HEDGE_SECONDS="4",
            QUEUEBRIDGE_CELERY_APP="shop_endings:app",
        )
        shop.command("ledger", "upgrade")
        shop.run("devserver", "--port", str(shop.port)).wait_for_port(shop.port)
        receiver = shop.run("receiver", "--port", str(shop.receiver_port))
        shop.run("reconcile", "--loop")
        shop.worker(*worker, module="shop_endings")
        receiver.wait_for_port(shop.receiver_port)

    def call(self, *arguments: str) -> str:
        """Do something as a producer."""
        child = self.shop.call(*arguments)
        assert child.wait(30) == 0, child.report()
        return child.stdout.strip()

    def send(self, task: str, *args: Any) -> str:
        """Send a job, and return its id."""
        return self.call("send", task, json.dumps(args))

    def executions(self, job_id: str) -> list[Execution]:
        """Return what the ledger knows of a job."""
        with closing(load_ledger(self.shop.environ["QUEUEBRIDGE_LEDGER"])) as ledger:
            return ledger.executions.of_job(job_id)

    def wait_for_state(self, job_id: str, state: State) -> None:
        """Wait until the last dispatch of a job is in a state."""
        wait_until(lambda: self.executions(job_id)[-1].state is state, 40, what=f"{job_id} to be {state.value}")

    def wait_for_other_copy(self, job_id: str) -> None:
        """Wait until the other copy of a job has come, and was not run."""
        with closing(load_ledger(self.shop.environ["QUEUEBRIDGE_LEDGER"])) as ledger:
            dispatch_id = ledger.executions.of_job(job_id)[-1].dispatch_id
            wait_until(
                lambda: any(
                    (delivery.backend, delivery.outcome) == ("qstash", DeliveryOutcome.SUPPRESSED)
                    for delivery in ledger.executions.deliveries([dispatch_id])[dispatch_id]
                ),
                40,
                what="the other copy",
            )


@pytest.mark.timeout(120)
def test_job_that_is_terminated_does_not_run_again(spawn: Spawner, tmp_path: Path, redis_url: str) -> None:
    endings = Endings(Shop(spawn, tmp_path, redis_url, redis_url), "dual")
    job_id = endings.send("shop.hold", "a", str(endings.gate))
    wait_until(lambda: endings.shop.seen()["hold a"], 20, what="the job to start")

    endings.call("terminate", job_id)

    endings.wait_for_state(job_id, State.CANCELLED)
    endings.wait_for_other_copy(job_id)
    assert endings.call("state", job_id) == "REVOKED"
    assert endings.shop.seen() == {"hold a": 1}


@pytest.mark.timeout(120)
def test_job_that_is_killed_by_its_time_limit_has_failed(spawn: Spawner, tmp_path: Path, redis_url: str) -> None:
    endings = Endings(Shop(spawn, tmp_path, redis_url, redis_url), "dual")
    job_id = endings.send("shop.limited", "a", str(endings.gate))

    endings.wait_for_state(job_id, State.FAILED)
    endings.wait_for_other_copy(job_id)
    assert endings.call("state", job_id) == "FAILURE"
    assert "TimeLimitExceeded" in (endings.executions(job_id)[-1].error or "")
    assert endings.shop.seen() == {"hold a": 1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("acknowledged", ["late", "early"])
def test_job_whose_process_dies_runs_again(
    spawn: Spawner, tmp_path: Path, redis_url: str, acknowledged: str
) -> None:
    """P1: nobody knows what it did, so that it is not given up, whatever its `acks_late`."""
    shop = Shop(spawn, tmp_path, redis_url, redis_url)
    if acknowledged == "early":
        shop.environ["SHOP_ACKS_EARLY"] = "yes"
    # Nothing but the dispatch itself: the job is not saved by another copy of it.
    endings = Endings(shop, "legacy")
    job_id = endings.send("shop.dies", "a")

    endings.wait_for_state(job_id, State.DONE)
    assert endings.call("state", job_id) == "SUCCESS"
    assert endings.shop.seen() == {"dies a": 2}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stage", ["legacy", "push"])
def test_rejected_job_comes_again_more_often_than_it_may_be_attempted(
    spawn: Spawner, tmp_path: Path, redis_url: str, stage: str
) -> None:
    endings = Endings(Shop(spawn, tmp_path, redis_url, redis_url), stage)
    job_id = endings.send("shop.patient", "a", 6)

    endings.wait_for_state(job_id, State.DONE)
    assert endings.call("state", job_id) == "SUCCESS"
    assert [one.state for one in endings.executions(job_id)] == [State.RETRIED] * 6 + [State.DONE]
    lines = [json.loads(line) for line in endings.shop.effects.read_text().splitlines()]
    assert [line["redelivered"] for line in lines] == [False] + [True] * 6
