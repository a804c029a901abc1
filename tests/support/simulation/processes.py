"""The processes of a simulated world: producers, executors, reconcilers. Each has a clock that goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import greenlet
from simulation.ledger import SimulatedLedger
from simulation.scheduler import Actor, Killed
from simulation.transports import CUSTODY, Answer, Message, SimulatedBackend
from simulation.witness import Job, Run

from bridge_app.replies import NON_RETRYABLE, STATUS_CODES
from queuebridge.backend import Publication
from queuebridge.breaker import Breaker
from queuebridge.claims import Claims, Ticket
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import LedgerUnavailable, PublishError, PublishOutcomeUnknown, QueueBridgeError
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.outcome import Status
from queuebridge.parking import Parking
from queuebridge.publishing.copies import CopyPlanner
from queuebridge.publishing.draft import Draft
from queuebridge.publishing.staged import StagedPublisher
from queuebridge.publishing.writing import Results, Writer
from queuebridge.receipt import Receipt
from queuebridge.reconcile import Reconciler
from queuebridge.runner import Runner
from queuebridge.stages import Side

if TYPE_CHECKING:
    from simulation.world import World

NAMES = {Side.LEGACY: "celery", Side.PUSH: "qstash"}
# A message is delivered several times, and looks the same each time.
_decode = lru_cache(maxsize=1_000)(Envelope.decode)
_PUT_OFF = (Status.RETRY, Status.BUSY, Status.DEFERRED)


class Process:
    """A process.

    Args:
        world: Its world.
        name: Its name, for the history.
        dies: The fault that says how likely it dies at each of its steps; None for never.
        skew: How far its clock is from the true time, in seconds.
    """

    def __init__(self, world: World, name: str, dies: str | None, skew: float) -> None:
        self.world = world
        self.name = name
        self.skew = skew
        self._dies = dies
        self.ledger = SimulatedLedger(self)
        self.backends = {
            side: SimulatedBackend(self, transport, NAMES[side]) for side, transport in world.transports.items()
        }

    def clock(self) -> float:
        """Return the time as this process has it."""
        return self.world.scheduler.now + self.skew

    def step(self) -> None:
        """Die here, perhaps."""
        if self._dies is not None and self.world.chance(getattr(self.world.faults, self._dies)):
            self.die("at a step")

    def die(self, where: str) -> None:
        """Die here."""
        self.world.note("dies", self.name, where)
        actor = greenlet.getcurrent()
        if isinstance(actor, Actor) and actor.run_ is not None:
            actor.run_.died = True
        raise Killed


class OneAfterAnother(Writer):
    """Writes to both sides without threads, in any order."""

    def __init__(self, process: Process) -> None:
        clock = process.clock
        super().__init__(process.backends, make_breaker=lambda name: Breaker(name, clock=clock))
        self._rng = process.world.rng

    def write(
        self, batches: Mapping[Side, Sequence[Publication]], *, guarded: Mapping[Side, bool]
    ) -> dict[Side, Results]:
        sides = [side for side, batch in batches.items() if batch]
        self._rng.shuffle(sides)
        return {side: self.write_side(side, batches[side], guarded[side]) for side in sides}


class Producer(Process):
    """A process that enqueues. It sees changes of the stages a little late."""

    def __init__(self, world: World, name: str, skew: float, settings: LedgerSettings) -> None:
        super().__init__(world, name, "producer_dies", skew)
        self.stages = world.stages
        planner = CopyPlanner(self.backends, settings, has_ledger=True, clock=self.clock, spread=world.rng.random)
        self._publisher = StagedPublisher(
            self.backends,
            self.ledger,
            settings,
            CUSTODY,
            clock=self.clock,
            planner=planner,
            writer=OneAfterAnother(self),
        )

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Enqueue jobs, several as one batch."""
        stories = [self.world.witness.stories[job.dispatch_id] for job in jobs]
        prepared = []
        try:
            for job, story in zip(jobs, stories, strict=True):
                story.jobs.append(job)
                prepared.append(self._publisher.prepare(self._draft(job)))
            answers = self._publisher.publish_many(prepared)
        except BaseException:
            for job, story in zip(jobs, stories, strict=True):
                story.unsure = True
                self.world.note("enqueue died", job.dispatch_id)
            raise
        for job, answer in zip(jobs, answers, strict=True):
            self._heard(job, answer)

    def _draft(self, job: Job) -> Draft:
        now_ms = int(self.clock() * 1000)
        decision = self.stages.stage_for(job.task, "default", job.job_id, {"user_id": job.user})
        self.world.witness.stories[job.dispatch_id].stages.add(decision.stage)
        self.world.note("enqueue", job.dispatch_id, self.name, job, decision.stage.value)
        fields: dict[str, object] = {
            "job_id": job.job_id,
            "dispatch_id": job.dispatch_id,
            "task": job.task,
            "args": [job.number],
            "queue": "default",
            "enqueued_at_ms": now_ms,
            "retry": self.world.registry.get(job.task).retry,
            "metadata": {"user_id": job.user},
            "stage": decision.stage,
        }
        if job.padding:
            fields["kwargs"] = {"padding": "x" * job.padding}
        if job.delay is not None:
            fields["not_before_ms"] = now_ms + int(job.delay * 1000)
        if job.expires is not None:
            fields["expires_at_ms"] = now_ms + int((job.expires + (job.delay or 0)) * 1000)
        if job.key is not None:
            fields["idempotency_key"] = job.key
        return Draft(envelope=Envelope(**fields), stage=decision.stage, parameter_names=("number",))

    def _heard(self, job: Job, answer: Receipt | Exception) -> None:
        story = self.world.witness.stories[job.dispatch_id]
        self.world.note("enqueued", job.dispatch_id, answer)
        if isinstance(answer, Receipt):
            self.world.witness.counts["accepted"] += 1
            story.accepted = True
            story.spooled |= answer.spooled
            for what in ("spooled", "held", "deduplicated", "unconfirmed", "recorded"):
                self.world.witness.counts[what] += bool(getattr(answer, what))
            self._check(job, answer)
        elif isinstance(answer, PublishOutcomeUnknown):
            self.world.witness.counts["unsure"] += 1
            story.unsure = True
        elif isinstance(answer, QueueBridgeError):
            self.world.witness.counts["refused"] += 1
            story.refused = True
        else:
            raise answer

    def _check(self, job: Job, receipt: Receipt) -> None:
        """See whether a receipt is true."""
        witness, story = self.world.witness, self.world.witness.stories[job.dispatch_id]
        for write in receipt.writes:
            if not story.taken[write.backend]:
                witness.blame("P6", job.dispatch_id, f"{write.backend} does not have what the receipt says it has")
        execution = self.world.ledger.executions.get(job.dispatch_id)
        if execution is None and (receipt.recorded or receipt.spooled or receipt.held):
            witness.blame("P6", job.dispatch_id, "the ledger does not have what the receipt says it has")
        if receipt.held is not None and execution is not None and not execution.state.settled:
            copy = next((copy for copy in execution.copies if copy.backend == receipt.held), None)
            if copy is None or copy.state.value not in ("held", "written", "failed", "unknown"):
                witness.blame("P6", job.dispatch_id, "the ledger does not hold what the receipt says it holds")
        if not (receipt.writes or receipt.spooled or receipt.held) and (
            execution is None or not execution.state.settled
        ):
            witness.blame("P6", job.dispatch_id, "the receipt names nobody who has the job")


class SimulatedClaims(Claims):
    """Claims that are renewed in virtual time; too late, if their executor stands still."""

    def __init__(self, process: Executor, settings: LedgerSettings) -> None:
        world = process.world
        super().__init__(
            process.ledger, settings, CUSTODY, sleep=world.scheduler.pause, clock=lambda: world.scheduler.now
        )
        self._process = process
        self._lease_seconds = settings.lease_seconds

    @contextmanager
    def holding(self, ticket: Ticket) -> Iterator[None]:
        lease, run = ticket.lease, self._process.current()
        over = False
        pause = self._lease_seconds / 3

        def renew() -> None:
            actor = greenlet.getcurrent()
            actor.run_ = run  # type: ignore[attr-defined]
            while not over:
                wait = pause
                try:
                    if not self._renew(lease):  # type: ignore[arg-type]
                        return
                except LedgerUnavailable:
                    wait /= 3
                scheduler.pause(wait)

        def start() -> None:
            if not over:
                scheduler.spawn(renew)

        scheduler = self._process.world.scheduler
        # One that stands still finds out late.
        scheduler.call_at(scheduler.now + (1.3 * self._lease_seconds if run.stalled else pause), start)
        try:
            yield
        finally:
            over = True


class Executor(Process):
    """A receiver, or a worker."""

    def __init__(self, world: World, name: str, skew: float, settings: LedgerSettings, side: Side) -> None:
        super().__init__(world, name, "executor_dies", skew)
        self._side = side
        self._runner = Runner(world.registry, clock=self.clock, claims=SimulatedClaims(self, settings))
        self._parking = Parking(self.backends[Side.PUSH], counted_by_ledger=True, clock=self.clock)

    @staticmethod
    def current() -> Run:
        """Return the execution that is under way."""
        run: Run = greenlet.getcurrent().run_  # type: ignore[attr-defined]
        return run

    def execute(self, message: Message) -> Answer:
        """Take a delivery, and say what the transport is to do with it."""
        envelope = _decode(message.body)
        self.step()
        answer = self._receive(envelope, message) if self._side is Side.PUSH else self._work(envelope, message)
        actor = greenlet.getcurrent()
        if answer.ok and isinstance(actor, Actor) and actor.busy:
            self.world.witness.blame("P1", envelope.dispatch_id, "acknowledged while somebody else runs it")
        return answer

    @staticmethod
    def _comes_again() -> None:
        actor = greenlet.getcurrent()
        if isinstance(actor, Actor):
            actor.busy = False

    def _run(self, envelope: Envelope, message: Message) -> tuple[Status, float | None, int | None]:
        outcome = self._runner.run(
            envelope, Delivery(backend=NAMES[self._side], message_id=message.id, attempt=message.retried + 1)
        )
        actor = greenlet.getcurrent()
        if isinstance(actor, Actor) and actor.run_ is not None:
            if outcome.status is Status.DEFERRED:
                actor.run_.gave_up = True
            actor.run_ = None
        self.world.note("outcome", envelope.dispatch_id, self.name, message.id, outcome.status.value)
        self.step()
        return outcome.status, outcome.retry_delay_seconds, outcome.epoch

    def _receive(self, envelope: Envelope, message: Message) -> Answer:
        # As the receiver does.
        try:
            if self._parking.is_early(envelope):
                self._parking.hop(envelope)
                self.world.witness.counts["hopped"] += 1
                return Answer(ok=True)
            status, delay, epoch = self._run(envelope, message)
            if status is not Status.BUSY or epoch is None:
                code = STATUS_CODES[status]
                return Answer(ok=code == 200, final=code == NON_RETRYABLE, again_in=delay)
            self._parking.park(envelope, delay_seconds=delay or 0.0, number=epoch)
            self._comes_again()
            self.world.witness.counts["parked"] += 1
            self.step()
            return Answer(ok=True)
        except PublishError:
            return Answer(ok=False, again_in=10.0)

    def _work(self, envelope: Envelope, message: Message) -> Answer:
        # As Celery's workers do: what is put off is a new message, and the old one is acknowledged.
        status, delay, _ = self._run(envelope, message)
        if status not in _PUT_OFF:
            return Answer(ok=True)
        if self.world.chance(self.world.faults.refused_retry):
            return Answer(ok=False, again_in=0.5)
        self.world.transports[Side.LEGACY].put_off(message, delay or 0.0)
        self._comes_again()
        self.step()
        return Answer(ok=True)


class Reconciling(Process):
    """A process that reconciles now and then."""

    def __init__(self, world: World, name: str, skew: float) -> None:
        super().__init__(world, name, "reconciler_dies", skew)
        self._reconciler = Reconciler(self.ledger, self.backends, CUSTODY)
        self._busy = False

    def run(self) -> None:
        """Reconcile once, unless the last time has not ended yet."""
        if self._busy:
            return
        self._busy = True
        try:
            done = self._reconciler.run_once()
            for name in ("released", "published", "redispatched", "failed", "skipped"):
                self.world.witness.counts[name] += getattr(done, name)
        except LedgerUnavailable:
            self.world.note("reconcile failed", self.name)
        finally:
            self._busy = False
