"""A simulated world: jobs, processes, transports, a ledger, and bad weather. One seed, one history."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulation.faults import NO_FAULTS, Faults
from simulation.processes import Executor, Process, Producer, Reconciling
from simulation.routes import Routes
from simulation.scheduler import BEGINNING, Scheduler
from simulation.transports import Answer, Message, Transport
from simulation.witness import RETRIES, Job, Witness

from queuebridge.errors import LedgerUnavailable, PermanentFailure
from queuebridge.ids import job_id_for_key
from queuebridge.ledger import Ledger
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.registry import TaskRegistry
from queuebridge.stages import Side
from queuebridge.storage.memory import MemoryLedger
from queuebridge.task import task

_BODY_SECONDS = (0.05, 0.05, 0.3, 1.0, 5.0, 20.0, 60.0)
_RECONCILE_SECONDS = 8.0

_world: World | None = None


class JobFailed(Exception):
    """The body of a job raised."""


def _body(number: int, padding: str = "") -> int:
    if _world is None:
        raise LookupError
    return _world.body(number)


REGISTRY = TaskRegistry()
for _name, _retries in RETRIES.items():
    task(name=_name, registry=REGISTRY, retries=_retries, backoff=[1.0, 5.0, 30.0])(_body)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a world ended.

    Attributes:
        violations: What was promised and not kept.
        counts: What happened, and how often.
        history: One line per event, if it was asked for.
    """

    violations: Sequence[str]
    counts: Counter[str]
    history: Sequence[str]


class World:
    """A world that lives once.

    Args:
        seed: What everything in it follows from.
        jobs: How many jobs are enqueued.
        make_ledger: Makes the ledger, from its clock in Unix seconds.
        recorded: Whether to keep the history.
        faults: The weather; None for that of the seed.
        slack_ms: As in `Witness`.
        patience: How long the world goes on at most after the faults have stopped, in seconds.
    """

    def __init__(
        self,
        seed: int,
        *,
        jobs: int,
        make_ledger: Callable[[Callable[[], float]], Ledger] = MemoryLedger,
        recorded: bool = False,
        faults: Faults | None = None,
        slack_ms: int = 0,
        patience: float = 6 * 3600.0,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.scheduler = scheduler = Scheduler()
        self.history: list[str] = []
        self._recorded = recorded
        self._patience = patience
        self.witness = Witness(self.note, slack_ms=slack_ms)
        self.registry = REGISTRY
        self.faults = Faults.of_a_world(rng) if faults is None else faults
        self.ledger_back_at = 0.0
        skew = rng.choice((0.0, 1.0, 30.0))
        store_skew = rng.uniform(-skew, skew)
        self.ledger = make_ledger(lambda: scheduler.now + store_skew)
        self.transports = {side: Transport(self, side, self._executor(side)) for side in (Side.LEGACY, Side.PUSH)}
        self.settings = settings = LedgerSettings(
            QUEUEBRIDGE_LEASE_SECONDS=rng.choice((20.0, 60.0)),
            QUEUEBRIDGE_HEDGE_SECONDS=rng.choice((0.0, 10.0, 60.0)),
            QUEUEBRIDGE_ON_PUBLISH_ERROR=rng.choice(("raise", "spool")),
            QUEUEBRIDGE_GRACE_SECONDS=rng.choice((0.0, 10.0)),
        )
        self._lease_seconds = settings.lease_seconds
        self._routes = Routes(rng, self.witness)
        self.stages = self._routes.settings

        def skewed() -> float:
            return rng.uniform(-skew, skew)

        self.callbacks = Process(self, "callbacks", None, 0.0)
        self._producers = [Producer(self, f"producer-{n}", skewed(), settings) for n in range(3)]
        self._executors = {
            side: [Executor(self, f"{side.value}-executor-{n}", skewed(), settings, side) for n in range(2)]
            for side in self.transports
        }
        self._reconcilers = [Reconciling(self, f"reconcile-{n}", skewed()) for n in range(2)]
        self._jobs = self._make_jobs(jobs)
        self._seconds = jobs * rng.choice((0.2, 1.0, 2.0))

    @property
    def now(self) -> float:
        """Return the true time."""
        return self.scheduler.now

    def chance(self, probability: float) -> bool:
        """Return whether something of this probability happens."""
        return probability > 0 and self.rng.random() < probability

    def wait(self) -> None:
        """Take as long as a call over the network takes."""
        self.scheduler.pause(0.001 + 0.02 * self.rng.random())

    def note(self, event: str, *about: Any) -> None:
        """Write a line into the history."""
        if self._recorded:
            self.history.append(f"{self.now - BEGINNING:9.3f} {event}: {' '.join(map(str, about))}")

    def body(self, number: int) -> int:
        """Be the body of a job: take time, fail, die, have the effect."""
        job, run = self._jobs[number], Executor.current()
        executor = self.callbacks
        faults = self.faults
        stall = self._lease_seconds * self.rng.uniform(1, 2.5) if run.stalled else 0.0
        early = self.rng.random() < 0.5
        self.scheduler.pause(job.seconds * self.rng.random() + stall * early)
        if job.poison or self.chance(faults.dies_before_effect):
            executor.die(f"before the effect of {job.dispatch_id}")
        if run.attempt <= job.fails:
            if job.permanent:
                raise PermanentFailure("It never works.")
            raise JobFailed
        self.note("effect", job.dispatch_id, run.attempt)
        self.witness.effect(job.dispatch_id, run)
        if self.chance(faults.dies_after_effect):
            executor.die(f"after the effect of {job.dispatch_id}")
        if stall and not early:
            self.scheduler.pause(stall)
        return number

    def live(self) -> Result:
        """Let the world live until it is quiet, and say what came of it."""
        global _world  # noqa: PLW0603 - bodies are called by the product, which does not know the world
        state, disabled = random.getstate(), logging.root.manager.disable
        # The product draws delays and jitter from the global generator.
        random.seed(self.rng.random())
        logging.disable(logging.CRITICAL)
        _world = self
        try:
            self._schedule()
            self.scheduler.run_until(BEGINNING + self._seconds + 120)
            self._calm_down()
            self.witness.check(self.ledger.executions.get)
        finally:
            _world = None
            logging.disable(disabled)
            random.setstate(state)
        return Result(violations=self.witness.violations, counts=self.witness.counts, history=self.history)

    def _calm_down(self) -> None:
        self.note("the faults stop")
        self.faults = NO_FAULTS
        self.ledger_back_at = 0.0
        for transport in self.transports.values():
            transport.back_at = 0.0
        end = self.now + self._patience
        while self.now < end and not self._is_quiet():
            self.scheduler.run_until(self.now + 60)

    def _is_quiet(self) -> bool:
        return (
            not self.scheduler.alive
            and not any(transport.pending for transport in self.transports.values())
            and not self.witness.open()
        )

    def _executor(self, side: Side) -> Callable[[Message], Answer]:
        return lambda message: self.rng.choice(self._executors[side]).execute(message)

    def _make_jobs(self, number_of_jobs: int) -> list[Job]:
        rng = self.rng
        # Ids from the seed: a seed has to make the same history every time.
        jobs: list[Job] = []
        for number in range(number_of_jobs):
            name = rng.choice(tuple(RETRIES))
            key = f"key-{rng.randrange(number_of_jobs // 8 + 1)}" if rng.random() < 0.15 else None
            job_id = job_id_for_key(name, key) if key is not None else f"job-{number}"
            twin = next((job for job in jobs if job.job_id == job_id), None) if key is not None else None
            if twin is not None:
                jobs.append(replace(twin, number=number))
                continue
            fate = rng.random()
            jobs.append(
                Job(
                    number=number,
                    task=name,
                    user=f"user-{rng.randrange(20)}",
                    job_id=job_id,
                    dispatch_id=job_id if key is not None else f"dispatch-{number}",
                    seconds=rng.choice(_BODY_SECONDS),
                    fails=rng.choice((1, 1, 2, 9)) if fate < 0.1 else 0,
                    permanent=fate < 0.02,
                    poison=0.1 <= fate < 0.12,
                    padding=2_000 if rng.random() < 0.03 else 0,
                    key=key,
                    delay=rng.choice((5.0, 60.0, 500.0)) if rng.random() < 0.1 else None,
                    expires=rng.choice((20.0, 100.0, 600.0)) if rng.random() < 0.1 else None,
                )
            )
        return jobs

    def _schedule(self) -> None:
        rng, spawn = self.rng, self.scheduler.spawn
        number = 0
        while number < len(self._jobs):
            batch = self._jobs[number : number + rng.choice((1, 1, 1, 1, 3))]
            number += len(batch)
            # A batch has one entry per dispatch, as enqueue_many of different jobs has.
            unique = list({job.dispatch_id: job for job in batch}.values())
            producer = rng.choice(self._producers)
            spawn(lambda p=producer, b=unique: p.enqueue(b), after=rng.uniform(0, self._seconds))
        for _ in range(rng.choice((0, 1, len(self._jobs) // 10))):
            spawn(self._cancel, after=rng.uniform(0, self._seconds + 60))
        for _ in range(rng.choice((0, 2, 10, 40))):
            spawn(self._change_stages, after=rng.uniform(0, self._seconds))
        for _ in range(rng.choice((0, 0, 1, 3))):
            spawn(self._take_ledger_away, after=rng.uniform(0, self._seconds))
        for transport in self.transports.values():
            for _ in range(rng.choice((0, 0, 1, 2))):
                spawn(lambda t=transport: self._take_away(t), after=rng.uniform(0, self._seconds))
        for process in self._reconcilers:
            self._reconcile_after(process, rng.uniform(0, _RECONCILE_SECONDS))

    def _reconcile_after(self, process: Reconciling, seconds: float) -> None:
        def tick() -> None:
            self.scheduler.spawn(process.run)
            # Less often once nothing goes wrong any more: hours may have to pass.
            seconds = _RECONCILE_SECONDS if self.faults is not NO_FAULTS else 4 * _RECONCILE_SECONDS
            self._reconcile_after(process, seconds * self.rng.uniform(0.8, 1.2))

        self.scheduler.call_at(self.now + seconds, tick)

    def _cancel(self) -> None:
        job = self.rng.choice(self._jobs)
        self.witness.stories[job.dispatch_id].cancels = True
        try:
            self.callbacks.ledger.cancel(job.job_id)
        except LedgerUnavailable:
            return

    def _change_stages(self) -> None:
        self.stages = self._routes.change()
        self.note("stages", self._routes)
        settings = self.stages
        for producer in self._producers:
            lag = self.rng.uniform(0, 5)
            self.scheduler.call_at(self.now + lag, lambda p=producer: setattr(p, "stages", settings))
        if self.rng.random() < 0.1:
            try:
                self.callbacks.ledger.release_held()
            except LedgerUnavailable:
                return

    def _take_ledger_away(self) -> None:
        if self.faults is not NO_FAULTS:
            self.ledger_back_at = self.now + self.rng.choice((1, 10, 60, 200))
            self.note("ledger away", f"for {self.ledger_back_at - self.now:.0f} s")

    def _take_away(self, transport: Transport) -> None:
        transport.back_at = self.now + self.rng.choice((1, 10, 60))
        self.note("transport away", f"for {transport.back_at - self.now:.0f} s")
