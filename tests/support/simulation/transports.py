"""The two transports of a simulated world, and the adapters through which processes publish to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.envelope import Envelope
from queuebridge.errors import BackendUnavailable, LedgerUnavailable, PayloadTooLarge, PublishOutcomeUnknown
from queuebridge.ledger.custody import Custody
from queuebridge.parking import ledger_epoch
from queuebridge.publishing.recording import take_back
from queuebridge.receipt import Write
from queuebridge.stages import Role, Side

if TYPE_CHECKING:
    from simulation.world import Process, World

CUSTODY = Custody(())
PUSH_BYTES = 1_500
LONGEST_DELAY = 400.0
REACH_RETRIES = 5
_DEDUPLICATION_SECONDS = 600.0
# How long each waits for an executor, before it takes it for dead.
_PATIENCE = {Side.PUSH: 90.0, Side.LEGACY: 150.0}


@dataclass(kw_only=True, slots=True)
class Message:
    """A message that a transport has.

    Attributes:
        id: Its id.
        side: Whose it is.
        body: The encoded envelope.
        dispatch_id: The dispatch in it.
        retries: How often it is tried again; None for ever.
        retried: How often it was.
        ended: It is acknowledged, or was given up.
    """

    id: str
    side: Side
    body: bytes
    dispatch_id: str
    retries: int | None = None
    retried: int = 0
    ended: bool = False


@dataclass(kw_only=True, slots=True)
class Answer:
    """What a transport hears of a delivery.

    Attributes:
        ok: It is done with.
        final: It must not be tried again.
        again_in: When to try it again, in seconds; None as the transport likes.
    """

    ok: bool
    final: bool = False
    again_in: float | None = None


class Transport:
    """Delivers each message until it is acknowledged; one that pushes, a limited number of times."""

    def __init__(self, world: World, side: Side, execute: Callable[[Message], Answer]) -> None:
        self.pending = 0
        self.back_at = 0.0
        self._world = world
        self._side = side
        self._execute = execute
        self._seen: dict[str, tuple[float, str]] = {}
        self._count = 0

    def take(self, publication: Publication, name: str) -> tuple[str, bool]:
        """Take a message; return its id, and whether it was taken for one that is here already."""
        envelope, world = publication.envelope, self._world
        if envelope.role is not Role.SHADOW:
            world.witness.stories[envelope.dispatch_id].taken[name] += 1
        if self._side is Side.PUSH:
            until, message_id = self._seen.get(envelope.deduplication_id, (0.0, ""))
            if world.now < until:
                if envelope.epoch >= ledger_epoch(1):
                    world.witness.blame("P1", envelope.dispatch_id, f"epoch {envelope.epoch} was used twice")
                return message_id, True
        self._count += 1
        message = Message(
            id=f"{self._side.value}-{self._count}",
            side=self._side,
            body=publication.body,
            dispatch_id=envelope.dispatch_id,
            retries=max(envelope.retry.retries, REACH_RETRIES) if self._side is Side.PUSH else None,
        )
        self._seen[envelope.deduplication_id] = (world.now + _DEDUPLICATION_SECONDS, message.id)
        wait = publication.delay_seconds
        if wait is None:
            wait = (publication.deliver_at_ms or 0) / 1000 - world.now
        self.enqueue(message, min(wait, LONGEST_DELAY) if self._side is Side.PUSH else wait)
        return message.id, False

    def put_off(self, message: Message, wait: float) -> None:
        """Take what a message says anew, to deliver it later."""
        self._count += 1
        again = Message(
            id=f"{self._side.value}-{self._count}", side=self._side, body=message.body, dispatch_id=message.dispatch_id
        )
        self.enqueue(again, wait)

    def enqueue(self, message: Message, wait: float) -> None:
        """Deliver a new message after a while."""
        world, faults = self._world, self._world.faults
        self.pending += 1
        wait = max(wait, 0.0) + world.rng.uniform(0.01, 0.2)
        if world.chance(faults.delayed):
            wait += world.rng.uniform(1, 120)
        self._deliver_in(message, wait)
        if world.chance(faults.duplicated):
            world.note("duplicated", message.dispatch_id, message.id)
            world.scheduler.spawn(lambda: self._execute(message), after=wait + world.rng.expovariate(0.1))

    def _deliver_in(self, message: Message, wait: float) -> None:
        self._world.scheduler.spawn(lambda: self._deliver(message), after=wait)

    def _deliver(self, message: Message) -> None:
        world, faults = self._world, self._world.faults
        if message.ended:
            return
        if world.chance(faults.dropped):
            world.note("dropped", message.dispatch_id, message.id)
            self._again(message, None)
            return
        answered = False

        def hear(answer: Answer | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._heard(message, answer)

        world.scheduler.call_at(world.now + _PATIENCE[self._side], lambda: hear(None))
        answer = None
        try:
            answer = self._execute(message)
        finally:
            # An executor that died is noticed, at once or by its silence.
            if answer is not None and world.chance(faults.answer_lost):
                world.note("answer lost", message.dispatch_id, message.id)
            elif answer is not None or world.chance(0.5):
                hear(answer)

    def _heard(self, message: Message, answer: Answer | None) -> None:
        if message.ended:
            return
        if answer is not None and answer.ok:
            self._end(message)
        elif answer is not None and answer.final:
            self._give_up(message)
        else:
            self._again(message, answer.again_in if answer is not None else None)

    def _again(self, message: Message, wait: float | None) -> None:
        if message.retries is not None and message.retried >= message.retries:
            self._give_up(message)
            return
        message.retried += 1
        if wait is None:
            wait = self._world.rng.uniform(1, 60) if self._side is Side.LEGACY else 10.0 * 2 ** (message.retried - 1)
        self._deliver_in(message, wait)

    def _give_up(self, message: Message) -> None:
        if message.retries is None:
            self._end(message)
            return
        world = self._world
        world.note("given up", message.dispatch_id, message.id)
        world.witness.counts["given up by the transport"] += 1
        message.ended = True
        envelope = Envelope.decode(message.body)

        def call_back() -> None:
            try:
                # As Bridge.redeliver does.
                if envelope.role is not Role.SHADOW:
                    take_back(
                        envelope, "qstash", ledger=world.callbacks.ledger, custody=CUSTODY, settings=world.settings
                    )
            except LedgerUnavailable:
                world.scheduler.spawn(call_back, after=30.0)
            else:
                self.pending -= 1

        world.scheduler.spawn(call_back)

    def _end(self, message: Message) -> None:
        message.ended = True
        self.pending -= 1


class SimulatedBackend(Backend):
    """How one process publishes to one transport.

    Args:
        process: The process.
        transport: The transport.
        name: The name of the backend.
    """

    capabilities = Capabilities(delay=True, deduplication=True, publish_retry=True)

    def __init__(self, process: Process, transport: Transport, name: str) -> None:
        self.name = name
        self._process = process
        self._transport = transport

    def check(self, publication: Publication) -> None:
        if self.name == "qstash" and len(publication.body) > PUSH_BYTES:
            raise PayloadTooLarge(self.name, len(publication.body), PUSH_BYTES)

    def publish(self, publication: Publication) -> Write:
        world, faults = self._process.world, self._process.world.faults
        envelope = publication.envelope
        self._process.step()
        world.wait()
        world.note("publish", envelope.dispatch_id, self._process.name, self.name, envelope.epoch, envelope.role)
        if world.now < self._transport.back_at or world.chance(faults.write_fails):
            raise BackendUnavailable(self.name, "It is away.")
        if world.chance(faults.write_unknown_lost):
            raise PublishOutcomeUnknown(self.name, "No answer.", envelope.job_id)
        message_id, known = self._transport.take(publication, self.name)
        self._process.step()
        if world.chance(faults.write_unknown_taken):
            raise PublishOutcomeUnknown(self.name, "No answer.", envelope.job_id)
        if world.chance(faults.write_lies):
            world.witness.stories[envelope.dispatch_id].lied = True
            raise BackendUnavailable(self.name, "It says so, and has it.")
        return Write(backend=self.name, message_id=message_id, deduplicated=known)

    def ping(self) -> str:
        return ""
