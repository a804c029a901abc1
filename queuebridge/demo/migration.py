"""Take jobs through all stages of a migration, and back and forth again, with real processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from queuebridge.bridge import Bridge
from queuebridge.demo.broker import find_broker
from queuebridge.demo.chaos import Chaos
from queuebridge.demo.draining import Drain, Outstanding, messages_in
from queuebridge.demo.effects import read_effects
from queuebridge.demo.evidence import evidence
from queuebridge.demo.ledgers import provide_ledger
from queuebridge.demo.leftovers import forget
from queuebridge.demo.outcomes import Migration, by_backend, by_step, judge_jobs
from queuebridge.demo.producer import Producer
from queuebridge.demo.progress import Progress
from queuebridge.demo.services import Service, services_of
from queuebridge.demo.stage_change import StageChange
from queuebridge.demo.steps import SERVER, STEPS, WORKER, divide
from queuebridge.demo.world import PushPorts, World, cleaned
from queuebridge.errors import QueueBridgeError
from queuebridge.ledger import Ledger
from queuebridge.processes import Processes

LEGACIES = ("celery", "rq")
_POLL_SECONDS = 0.05
_DRAIN_POLL_SECONDS = 0.5
# Longer than a worker takes for what was brought forward the last time.
_BRING_FORWARD_SECONDS = 10.0
# As long as there is news a slow machine is not a lost job. With kills, a Redis broker of Celery brings again what a
# worker had after its visibility timeout, for which it looks every 10 s.
_STALLED_SECONDS = 30.0
_STALLED_BY_CHAOS_SECONDS = 60.0
# How long enqueueing takes in each step with chaos, so that there is something to hit, and around a rollback.
_CHAOS_SECONDS = 5.0
_IN_FLIGHT_SECONDS = 4.0
_LINGER_SECONDS = 0.03
# Short, so that what an outage leaves behind is made good within seconds.
_SETTINGS = {
    "QUEUEBRIDGE_STAGE": "ledger",
    "QUEUEBRIDGE_HEDGE_SECONDS": "3",
    "QUEUEBRIDGE_LEASE_SECONDS": "3",
    "QUEUEBRIDGE_GRACE_SECONDS": "1",
    "QUEUEBRIDGE_RECONCILE_SECONDS": "0.5",
    "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": "3",
    "QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS": "10",
    "QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS": "0",
}


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """What to do.

    Attributes:
        files: The files to read, divided over the steps.
        legacy: The old backend.
        ledger: The kind of ledger, None for the default.
        seed: Decides the kills; None for no chaos.
        folder: An empty folder for effects and for the processes to run in.
        environ: The user's environment.
    """

    files: Sequence[Path]
    legacy: str
    ledger: str | None
    seed: int | None
    folder: Path
    environ: Mapping[str, str]


def migrate(plan: MigrationPlan, *, progress: Progress, on_line: Callable[[str, str], None]) -> Migration:
    """Take one job for each file through the migration.

    Args:
        plan: What to do.
        progress: Is told how far it is.
        on_line: Gets the name and each line of the child processes.

    Raises:
        ProcessFailed: A process could not be started.
        QueueBridgeError: A job was not accepted, or a stage not changed.
    """
    base = cleaned(plan.environ)
    with Processes(on_line) as processes, find_broker(processes, plan.environ, base, plan.folder) as broker:
        world = World(processes=processes, folder=plan.folder, broker=broker, base=base)
        with provide_ledger(world, plan.ledger, plan.environ) as (kind, url):
            ports = PushPorts()
            environment = world.environment(
                **_SETTINGS,
                **ports.variables(),
                QUEUEBRIDGE_LEGACY=plan.legacy,
                QUEUEBRIDGE_LEDGER=url,
                **{"CELERY_BROKER_URL" if plan.legacy == "celery" else "REDIS_URL": broker.url},
            )
            services = services_of(world, ports, environment, plan.legacy)
            effects = plan.folder / "effects.jsonl"
            linger = _LINGER_SECONDS if plan.seed is not None else 0.0
            with (
                _running(world, services) as job_ids,
                Bridge(environ=environment) as bridge,
                Producer(bridge, effects, linger_seconds=linger) as producer,
            ):
                ledger = bridge.ledger
                if ledger is None:
                    raise QueueBridgeError("The demo has no ledger.")
                run = _Run(
                    world=world,
                    environment=environment,
                    services=services,
                    producer=producer,
                    ledger=ledger,
                    effects=effects,
                    chaos=Chaos(services, plan.seed or 0, note=progress.note),
                    with_chaos=plan.seed is not None,
                    progress=progress,
                    on_line=on_line,
                )
                drain = Drain(
                    ledger=ledger,
                    redis_url=broker.url,
                    queue=world.queue,
                    legacy=plan.legacy,
                )
                job_ids.append(producer.accepted)
                run.steps(divide(plan.files))
                left = run.drain(drain)
                # Gently, and before the effects are read: what is still being done then has its effect.
                for service in reversed(list(services.values())):
                    service.stop()
                return _verdict(plan, run, kind=kind, broker=broker.description, left=left)


@contextmanager
def _running(world: World, services: Mapping[str, Service]) -> Iterator[list[Mapping[str, object]]]:
    """Start the services, and leave nothing of the jobs that the block put into the list."""
    jobs: list[Mapping[str, object]] = []
    try:
        for service in services.values():
            service.start()
        for service in services.values():
            service.wait_until_ready()
        yield jobs
    finally:
        for service in reversed(list(services.values())):
            service.stop()
        forget(world.redis_url, world.queue, [job_id for some in jobs for job_id in some])


@dataclass(kw_only=True)
class _Run:
    world: World
    environment: Mapping[str, str]
    services: Mapping[str, Service]
    producer: Producer
    ledger: Ledger
    effects: Path
    chaos: Chaos
    with_chaos: bool
    progress: Progress
    on_line: Callable[[str, str], None]
    _seen: int = field(default=0, init=False)

    @property
    def stalled_seconds(self) -> float:
        return _STALLED_BY_CHAOS_SECONDS if self.with_chaos else _STALLED_SECONDS

    def steps(self, files: Sequence[Sequence[Path]]) -> None:
        """Go the whole way."""
        for position, step in enumerate(STEPS):
            self.progress.start(step.name, len(files[position]))
            following = STEPS[position + 1] if position + 1 < len(STEPS) else None
            if step.in_flight:
                self._roll_back(position, files[position])
            else:
                if position:
                    self._change(StageChange.to(step.stage))
                self._plan_chaos(position)
                own = files[position]
                # Of a step that is left in flight, the second half is sent around the change.
                first = own[: len(own) // 2] if following is not None and following.in_flight else own
                self.producer.send(position, first, seconds=_CHAOS_SECONDS if self.with_chaos else 0.0)
                self._until(lambda: self.producer.idle)
                if following is not None and following.in_flight:
                    self.producer.send(position, own[len(own) // 2 :], seconds=_IN_FLIGHT_SECONDS / 2)
            if following is None or not following.in_flight:
                self._until(self._all_took_effect)
                self.chaos.calm()

    def drain(self, drain: Drain) -> Outstanding:
        """Wait until nothing can arrive any more, and return what still can if that takes too long.

        The embedded server does not run afterwards.
        """
        jobs = list(self.producer.accepted.values())
        server = self.services[SERVER]
        deadline = time.monotonic() + self.stalled_seconds
        forward_at = time.monotonic() if self.with_chaos else deadline
        while True:
            left = drain.outstanding(jobs)
            late = time.monotonic() > deadline
            if time.monotonic() >= forward_at and not late and not left.unsettled and not left.pushed:
                drain.bring_forward(list(self.producer.accepted))
                forward_at = time.monotonic() + _BRING_FORWARD_SECONDS
            elif not left or late:
                # Nobody can tell what the server has while it runs: its file is its own.
                server.stop()
                pushed = messages_in(self.world.database)
                if late or not pushed:
                    return dataclasses.replace(left, pushed=max(pushed, left.pushed))
                server.wait_until_ready()
            self._until(lambda: True)
            time.sleep(_DRAIN_POLL_SECONDS)

    def _roll_back(self, position: int, files: Sequence[Path]) -> None:
        """Go back while the producer goes on."""
        # What only the old backend has must not be hit by a kill of its worker.
        self.chaos.calm(WORKER)
        held_back = max(1, len(files) // 2)
        self.producer.send(position, files[held_back:], seconds=_IN_FLIGHT_SECONDS / 2)
        self._change(StageChange.back_to(STEPS[position].stage))
        self._plan_chaos(position)
        # Sent when the change is in force, so that there are some of this stage on a slow machine too.
        self.producer.send(position, files[:held_back], seconds=_CHAOS_SECONDS if self.with_chaos else 0.0)
        self._until(lambda: self.producer.idle)

    def _plan_chaos(self, position: int) -> None:
        if self.with_chaos:
            self.chaos.plan(STEPS[position].chaos, _CHAOS_SECONDS)

    def _change(self, change: StageChange) -> None:
        """Change the stage with the command that a user would take, and wait until the producer goes by it."""
        child = self.world.start("stage", self.environment, *change.arguments)
        self._until(lambda: child.wait(0))
        change.check(child)
        self.world.processes.stop(child)
        self._until(lambda: change.is_in_force(self.ledger))

    def _all_took_effect(self) -> bool:
        return self._seen >= len(self.producer.accepted)

    def _until(self, reached: Callable[[], bool]) -> None:
        """Wait, and see to everything else meanwhile. Returns too if nothing new happens for long."""
        last_news = time.monotonic()
        news = (-1, -1)
        while True:
            # Raises what ended the producer.
            _ = self.producer.idle
            self.chaos.act()
            self._show()
            if reached():
                return
            if news != (self._seen, len(self.producer.accepted)):
                news, last_news = (self._seen, len(self.producer.accepted)), time.monotonic()
            if time.monotonic() - last_news > self.stalled_seconds:
                return
            time.sleep(_POLL_SECONDS)

    def _show(self) -> None:
        accepted = dict(self.producer.accepted)
        done = {effect["job_id"] for effect in read_effects(self.effects)}
        self._seen = len(done.intersection(accepted))
        for position, step in enumerate(STEPS):
            sent = self.producer.count(position)
            if sent:
                self.progress.sent(step.name, sent)
                self.progress.done(
                    step.name, sum(job_id in done for job_id, job in accepted.items() if job.step == position)
                )


def _verdict(plan: MigrationPlan, run: _Run, *, kind: str, broker: str, left: Outstanding) -> Migration:
    accepted = run.producer.accepted
    effects = read_effects(run.effects)
    executions = {job_id: run.ledger.executions.of_job(job_id) for job_id in accepted}
    found = run.ledger.executions.deliveries([one.dispatch_id for known in executions.values() for one in known])
    deliveries = {
        job_id: [delivery for one in known for delivery in found[one.dispatch_id]]
        for job_id, known in executions.items()
    }
    verdicts = judge_jobs(
        accepted,
        effects,
        killed=[process for service in run.services.values() for process in service.killed],
        executions=executions,
        deliveries=deliveries,
        legacy=plan.legacy,
    )
    for line in evidence(verdicts, effects, executions, deliveries):
        run.on_line("ledger", line)
    return Migration(
        legacy=plan.legacy,
        ledger=kind,
        broker=broker,
        seed=plan.seed,
        kills={name: service.kills for name, service in run.services.items()},
        stages=by_step(verdicts.values(), plan.legacy),
        backends=by_backend(verdicts.values(), plan.legacy),
        strangers=sum(effect["job_id"] not in accepted for effect in effects),
        left=left,
    )
