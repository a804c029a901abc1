"""A migration in one process: two backends that do as they are told, a ledger, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from queuebridge import TaskRegistry, task
from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.breaker import Breaker
from queuebridge.claims import Claims
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    BackendUnavailable,
    LedgerUnavailable,
    PayloadTooLarge,
    PublishOutcomeUnknown,
    PublishRejected,
)
from queuebridge.ledger import Execution, NewDispatch, Recorded, State
from queuebridge.ledger.custody import Custody
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.outcome import Outcome
from queuebridge.publishing.copies import CopyPlanner
from queuebridge.publishing.draft import Draft
from queuebridge.publishing.staged import StagedPublisher
from queuebridge.publishing.writing import Writer
from queuebridge.receipt import Receipt, Write
from queuebridge.reconcile import Reconciler
from queuebridge.runner import Runner
from queuebridge.settings import read_settings
from queuebridge.stages import Side, Stage
from queuebridge.storage.memory import MemoryLedger

# Half a second past a whole one, so that roundings show.
START = 1_900_000_000.5
BOTH: Mapping[Side, str] = {Side.LEGACY: "celery", Side.PUSH: "qstash"}


class Clock:
    """The time in seconds, which moves when a test says so."""

    def __init__(self) -> None:
        self.seconds = START

    def __call__(self) -> float:
        return self.seconds

    @property
    def ms(self) -> int:
        """The time in milliseconds."""
        return int(self.seconds * 1000)

    def move(self, seconds: float) -> None:
        """Let time pass; also stands for sleeping."""
        self.seconds += seconds


class SideBackend(Backend):
    """Carries nothing.

    Attributes:
        answer: What each write ends with: None accepts it.
        refusal: What `check` raises.
        max_bytes: The longest envelope that `check` lets through.
        sent: The publications that were to be written, accepted or not.
        calls: How: `publish` or `publish_many`.
    """

    def __init__(self, name: str, capabilities: Capabilities | None = None) -> None:
        self.name = name
        self.capabilities = capabilities or Capabilities(delay=True, deduplication=True)
        self.answer: Callable[[Publication], Exception | None] | Exception | None = None
        self.refusal: Exception | None = None
        self.max_bytes: int | None = None
        self.sent: list[Publication] = []
        self.calls: list[str] = []

    def check(self, publication: Publication) -> None:
        """Refuse what the test wants refused."""
        if self.refusal is not None:
            raise self.refusal
        if self.max_bytes is not None and len(publication.body) > self.max_bytes:
            raise PayloadTooLarge(self.name, len(publication.body), self.max_bytes)

    def publish(self, publication: Publication) -> Write:
        """Take it, or answer with the error that the test wants."""
        self.calls.append("publish")
        return self._take(publication)

    def publish_many(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        """Take them, each or not as `publish` would."""
        self.calls.append("publish_many")
        results: list[Write | Exception] = []
        for publication in publications:
            try:
                results.append(self._take(publication))
            except Exception as error:  # noqa: BLE001 - as real backends do
                results.append(error)
        return results

    def ping(self) -> str:
        """Answer."""
        return "here"

    def _take(self, publication: Publication) -> Write:
        self.sent.append(publication)
        error = self.answer(publication) if callable(self.answer) else self.answer
        if error is not None:
            raise error
        return Write(backend=self.name, message_id=f"{self.name}-{len(self.sent)}")

    @property
    def epochs(self) -> list[int]:
        """The epochs of what was sent."""
        return [publication.envelope.epoch for publication in self.sent]


class WatchedLedger(MemoryLedger):
    """A memory ledger that can go away.

    Attributes:
        calls: The operations that were asked for.
        away: Those that cannot be reached; `*` is all.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.calls: list[str] = []
        self.away: set[str] = set()

    def everything(self) -> str:
        """Return all that it keeps as text, to be searched for secrets."""
        rows = [(row, row.deliveries) for row in self._tables.rows.values()]
        return f"{rows!r} {self._payloads!r}"


def _watched(name: str) -> Callable[..., Any]:
    original = getattr(MemoryLedger, name)

    def operation(self: WatchedLedger, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        if self.away & {name, "*"}:
            raise LedgerUnavailable("the ledger is away.")
        return original(self, *args, **kwargs)

    return operation


for _name in (
    "record",
    "mark",
    "claim",
    "renew",
    "settle",
    "release",
    "note_shadow",
    "withdraw",
    "take_due",
    "check_in",
    "put_payload",
    "get_payload",
):
    setattr(WatchedLedger, _name, _watched(_name))


class Transaction:
    """What a caller's SQL session is to the ledger below."""

    def __init__(self) -> None:
        self.records: list[NewDispatch] = []
        self.afterwards: list[Callable[[], bool]] = []

    def commit(self, ledger: MemoryLedger) -> None:
        """Make it so, then do what waits for that until it has found it so."""
        ledger.record(self.records)
        self.records = []
        self.afterwards = [act for act in self.afterwards if not act()]

    def rollback(self) -> None:
        """Forget it."""
        self.records, self.afterwards = [], []


class SqlLikeLedger(WatchedLedger):
    """A ledger that can record in a transaction of the caller's."""

    # Whether it hears of commits.
    hears = True

    def record_on(self, transaction: Transaction, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        """Record when the transaction is committed."""
        known = [self.executions.get(dispatch.dispatch_id) for dispatch in dispatches]
        transaction.records += dispatches
        return [
            Recorded(new=True, state=State.ACCEPTED, copies=dispatch.copies)
            if execution is None
            else Recorded(new=False, state=execution.state, copies=execution.copies)
            for execution, dispatch in zip(known, dispatches, strict=True)
        ]

    def on_commit(self, transaction: Transaction, act: Callable[[], bool]) -> bool:
        """Call `act` after the commit, if this hears of it."""
        if self.hears:
            transaction.afterwards.append(act)
        return self.hears


@dataclass
class World:
    """A producer, both backends, the ledger, an executor and a reconciler.

    Attributes:
        stage: The stage of all jobs; None is no migration, with the push backend alone.
        environ: Settings of the ledger.
        with_ledger: Whether there is one.
        spread: What is drawn for the jitter of hold-backs, from 0 to 1.
        names: The positional parameters of the task.
    """

    stage: Stage | None
    environ: Mapping[str, str] = field(default_factory=dict)
    with_ledger: bool = True
    spread: float = 0.0
    names: Sequence[str] = ("to",)
    ledger_kind: type[WatchedLedger] = WatchedLedger

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.settings = read_settings(LedgerSettings, self.environ)
        self.legacy, self.push = SideBackend(BOTH[Side.LEGACY]), SideBackend(BOTH[Side.PUSH])
        self.backends: dict[Side, Backend] = {Side.LEGACY: self.legacy, Side.PUSH: self.push}
        if self.stage is None:
            del self.backends[Side.LEGACY]
        self.ledger = self.ledger_kind(self.clock)
        key = self.settings.key.get_secret_value() if self.settings.key is not None else None
        self.custody = Custody(self.settings.redact, key)
        self.writer = Writer(self.backends, make_breaker=lambda name: Breaker(name, clock=self.clock))
        self.publisher = StagedPublisher(
            self.backends,
            self.ledger if self.with_ledger else None,
            self.settings,
            self.custody if self.with_ledger else None,
            clock=self.clock,
            planner=CopyPlanner(
                self.backends,
                self.settings,
                has_ledger=self.with_ledger,
                clock=self.clock,
                spread=lambda: self.spread,
            ),
            writer=self.writer,
        )
        self.registry = TaskRegistry()
        self.ran: list[Any] = []
        self.body: Callable[[str], Any] = self.ran.append

        def send(to: str = "", password: str = "") -> Any:
            return self.body(to)

        self.task = task(name="mail.send", registry=self.registry)(send)
        self.claims = Claims(self.ledger, self.settings, self.custody, sleep=self.clock.move, clock=self.clock)
        self.runner = Runner(self.registry, clock=self.clock, claims=self.claims)
        self.reconciler = Reconciler(self.ledger, self.backends, self.custody)
        self._made = 0

    def side(self, side: Side) -> SideBackend:
        """Return the backend of a side."""
        return self.legacy if side is Side.LEGACY else self.push

    def draft(self, *args: Any, transaction: Any = None, **fields: Any) -> Draft:
        """Return a job."""
        self._made += 1
        values = {
            "job_id": f"job-{self._made}",
            "dispatch_id": f"dispatch-{self._made}",
            "task": "mail.send",
            "args": list(args or ("ann",)),
            "queue": "default",
            "enqueued_at_ms": self.clock.ms,
            "stage": self.stage,
            **fields,
        }
        return Draft(
            envelope=Envelope(**values),
            stage=values["stage"],
            parameter_names=self.names,
            transaction=transaction,
        )

    def enqueue(self, *args: Any, **fields: Any) -> Receipt:
        """Enqueue a job."""
        return self.publisher.publish(self.publisher.prepare(self.draft(*args, **fields)))

    def enqueue_many(self, *drafts: Draft) -> list[Receipt | Exception]:
        """Enqueue several jobs at once."""
        return self.publisher.publish_many([self.publisher.prepare(draft) for draft in drafts])

    def deliver(self, publication: Publication | Envelope, backend: str = "qstash") -> Outcome:
        """Have the executor take a delivery."""
        envelope = publication.envelope if isinstance(publication, Publication) else publication
        return self.runner.run(Envelope.decode(envelope.encode()), Delivery(backend=backend, message_id="m", attempt=1))

    def known(self, dispatch_id: str = "dispatch-1") -> Execution:
        """Return what the ledger knows of a dispatch, which it must."""
        execution = self.ledger.executions.get(dispatch_id)
        assert execution is not None
        return execution

    def states(self, dispatch_id: str = "dispatch-1") -> dict[str, str]:
        """Return what the ledger knows of the copies of a dispatch, by backend."""
        return {copy.backend: copy.state.value for copy in self.known(dispatch_id).copies}

    def close(self) -> None:
        """End the threads."""
        self.publisher.close()


def failed(name: str) -> BackendUnavailable:
    """Return a definite failure."""
    return BackendUnavailable(name, "it cannot be reached.")


def rejected(name: str) -> PublishRejected:
    """Return a failure for good."""
    return PublishRejected(name, "it does not want us.")


def unknown(name: str) -> PublishOutcomeUnknown:
    """Return an outcome that nobody knows."""
    return PublishOutcomeUnknown(name, "no answer came.", "job-1")
