"""Executors with a ledger, as real processes, to which a test can bring the same dispatch several times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from contracts import Effects, contract_registry, wait_for_worker, worker_command, worker_environ
from processes import ChildProcess, Spawner, free_port, wait_until

from queuebridge import Bridge
from queuebridge.backend import Publication
from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.envelope import Envelope
from queuebridge.ids import new_dispatch_id, new_job_id
from queuebridge.ledger import DeliveryOutcome, Execution, Ledger

# Each runs two jobs at a time: in one process per job, in threads, or in two workers that run one at a time.
CELERY_POOLS = {"prefork": 1, "threads": 1, "solo": 2}
EXECUTORS = (*(f"celery-{pool}" for pool in CELERY_POOLS), "rq", "receiver")
# Those that live on when a task kills the process that runs it.
SUPERVISED = ("celery-prefork", "rq", "receiver")
LEASE_SECONDS = 2


class Executor:
    """One executor in use.

    Args:
        name: One of EXECUTORS.
        bridge: Publishes to its backend, and has the same ledger.
        effects: What its tasks do.
        processes: Its processes.
    """

    def __init__(self, name: str, bridge: Bridge, effects: Effects, processes: list[ChildProcess]) -> None:
        self.name = name
        self.bridge = bridge
        self.effects = effects
        self.processes = processes
        self._copies = 0

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        assert self.bridge.ledger is not None
        return self.bridge.ledger

    def dispatch(self, task: str, *args: Any) -> Envelope:
        """Return a dispatch; nothing is published yet."""
        return Envelope(
            job_id=new_job_id(),
            dispatch_id=new_dispatch_id(),
            task=f"contract.{task}",
            args=list(args),
            queue="default",
            enqueued_at_ms=int(time.time() * 1000),
            retry=self.bridge.registry.get(f"contract.{task}").retry,
        )

    def deliver(self, envelope: Envelope) -> None:
        """Publish a copy of a dispatch which no transport takes for one that it had before."""
        self._copies += 1
        again = envelope.model_copy(update={"epoch": self._copies})
        self.bridge.backend.publish(Publication(envelope=again, counted_by_ledger=True))

    def outcomes(self, envelope: Envelope) -> list[DeliveryOutcome]:
        """Return how the ledger answered the deliveries of a dispatch, in their order."""
        arrivals = self.ledger.executions.deliveries([envelope.dispatch_id])[envelope.dispatch_id]
        return [arrival.outcome for arrival in arrivals]

    def wait_for(self, outcome: DeliveryOutcome, envelope: Envelope, timeout: float = 30) -> None:
        """Wait until a delivery was answered so."""
        wait_until(lambda: outcome in self.outcomes(envelope), timeout, what=f"a delivery to be {outcome.value}")

    def execution(self, envelope: Envelope) -> Execution:
        """Return what the ledger knows of a dispatch."""
        execution = self.ledger.executions.get(envelope.dispatch_id)
        assert execution is not None
        return execution

    def wait_until(
        self, envelope: Envelope, predicate: Callable[[Execution], bool], timeout: float = 30, *, what: str
    ) -> None:
        """Wait until the ledger knows this of a dispatch."""
        wait_until(lambda: predicate(self.execution(envelope)), timeout, what=what)

    def kill(self, pid: int) -> None:
        """Kill the process that runs a job; where it is a worker's main process, with the whole worker."""
        whole = next((process for process in self.processes if process.pid == pid), None)
        if whole is not None:
            whole.kill()
        else:
            os.kill(pid, signal.SIGKILL)


@contextmanager
def running(
    name: str, redis_url: str, effects: Effects, spawn: Spawner, *, ledger_url: str | None = None, **more: str
) -> Iterator[Executor]:
    """Run an executor whose broker, results and ledger are in one Redis.

    Args:
        name: One of EXECUTORS.
        redis_url: The Redis.
        effects: Where its tasks note what they do.
        spawn: Starts its processes.
        ledger_url: The address of the ledger for the executor, if it has another one.
        more: Further variables of its environment.
    """
    times = {"QUEUEBRIDGE_LEASE_SECONDS": str(LEASE_SECONDS), "QUEUEBRIDGE_GRACE_SECONDS": "1"}
    common = {"QUEUEBRIDGE_LEDGER": redis_url, **times}
    own = {**more, "QUEUEBRIDGE_LEDGER": ledger_url or redis_url}
    kind, _, pool = name.partition("-")
    if kind == "receiver":
        with running_server(ServerSettings(port=0, engine=EngineSettings(time_scale=4))) as api:
            port = free_port()
            environ = {
                **common,
                "QUEUEBRIDGE_BACKEND": "qstash",
                "QSTASH_URL": api,
                "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
                "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
                "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
                "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{port}",
            }
            command = worker_command()[:-1]
            arguments = ["receiver", "--port", str(port), "--workers", "2", "--threads", "2"]
            receiver = spawn([*command, *arguments], env=worker_environ({**environ, **own}, effects), name="receiver")
            receiver.wait_for_port(port)
            yield from _used(name, environ, effects, [receiver])
            receiver.kill()
        return
    if kind == "celery":
        environ = {
            **common,
            "QUEUEBRIDGE_BACKEND": "celery",
            "CELERY_BROKER_URL": redis_url,
            "CELERY_RESULT_BACKEND": redis_url,
        }
        count, command = CELERY_POOLS[pool], worker_command("-c", "2", "--", "--pool", pool)
    else:
        environ = {**common, "QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": redis_url}
        count, command = 2, worker_command()
    hosts = [[f"--hostname=worker{number}@%h"] if kind == "celery" else [] for number in range(count)]
    workers = [
        spawn([*command, *host], env=worker_environ({**environ, **own}, effects), name=f"worker{number}")
        for number, host in enumerate(hosts)
    ]
    for worker in workers:
        wait_for_worker(worker)
    yield from _used(name, environ, effects, workers)


def _used(name: str, environ: Mapping[str, str], effects: Effects, processes: list[ChildProcess]) -> Iterator[Executor]:
    with Bridge(registry=contract_registry(), environ=environ) as bridge:
        yield Executor(name, bridge, effects, processes)
