"""A copy that could not be written is made up for while its job has not ended."""

from __future__ import annotations

import pytest

from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.envelope import Envelope
from queuebridge.errors import BackendUnavailable, PublishError, PublishOutcomeUnknown
from queuebridge.ledger import ClaimRequest, Granted, Settlement, State
from queuebridge.ledger.custody import Custody
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.publishing.draft import Draft
from queuebridge.publishing.staged import StagedPublisher
from queuebridge.receipt import Write
from queuebridge.reconcile import Reconciler
from queuebridge.stages import Side, Stage
from queuebridge.storage.memory import MemoryLedger

HEDGE_SECONDS = 10.0
# The hedge with all its jitter.
DUE_SECONDS = 12.1


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Transport(Backend):
    """Takes everything, or fails as it is told."""

    capabilities = Capabilities(delay=True)

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: PublishError | None = None
        self.taken: list[Envelope] = []

    def check(self, publication: Publication) -> None:
        pass

    def publish(self, publication: Publication) -> Write:
        if self.failure is not None:
            raise self.failure
        self.taken.append(publication.envelope)
        return Write(backend=self.name, message_id=f"{self.name}-{len(self.taken)}")

    def ping(self) -> str:
        return "well"


class World:
    """A migration in which nothing delivers by itself."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.legacy, self.push = Transport("celery"), Transport("qstash")
        self.ledger = MemoryLedger(self.clock)
        backends = {Side.LEGACY: self.legacy, Side.PUSH: self.push}
        custody = Custody(())
        settings = LedgerSettings(QUEUEBRIDGE_HEDGE_SECONDS=HEDGE_SECONDS)
        self.publisher = StagedPublisher(backends, self.ledger, settings, custody, clock=self.clock)
        self.reconciler = Reconciler(self.ledger, backends, custody)

    def enqueue(self, stage: Stage) -> None:
        envelope = Envelope(
            job_id="j1",
            dispatch_id="d1",
            task="t",
            queue="default",
            enqueued_at_ms=int(self.clock.now * 1000),
            stage=stage,
        )
        self.publisher.publish(self.publisher.prepare(Draft(envelope=envelope, stage=stage)))

    def claim(self) -> Granted:
        claim = self.ledger.claim(
            ClaimRequest(
                dispatch_id="d1",
                job_id="j1",
                task="t",
                queue="default",
                stage=None,
                backend="celery",
                message_id="m",
                owner="o",
                lease_ms=1000,
                enqueued_at_ms=0,
                max_attempts=3,
                body=b"",
                payload="",
                deadline_in_ms=1000,
            ),
            grace_ms=1000,
        )
        assert isinstance(claim, Granted)
        return claim


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE, Stage.RAMPDOWN], ids=lambda stage: stage.value)
@pytest.mark.parametrize(
    "failure",
    [BackendUnavailable("qstash", "away"), PublishOutcomeUnknown("qstash", "no answer", "j1")],
    ids=["failed", "unknown"],
)
def test_push_copy_that_failed_is_written_when_it_would_have_been_needed(
    world: World, stage: Stage, failure: PublishError
) -> None:
    world.push.failure = failure
    world.enqueue(stage)
    assert len(world.legacy.taken) == 1
    world.push.failure = None

    early = world.reconciler.run_once()
    world.clock.now += DUE_SECONDS
    due = world.reconciler.run_once()

    assert (early.total, due.published, due.total) == (0, 1, 1)
    assert [envelope.dispatch_id for envelope in world.push.taken] == ["d1"]
    assert len(world.legacy.taken) == 1


def test_nothing_is_made_up_for_once_the_job_has_ended(world: World) -> None:
    world.push.failure = BackendUnavailable("qstash", "away")
    world.enqueue(Stage.DUAL)
    world.push.failure = None
    world.ledger.settle("d1", world.claim().token, Settlement(state=State.DONE))

    world.clock.now += DUE_SECONDS

    assert world.reconciler.run_once().total == 0
    assert world.push.taken == []


def test_job_whose_executor_died_is_brought_back_by_both_sides_if_one_copy_is_missing(world: World) -> None:
    world.push.failure = BackendUnavailable("qstash", "away")
    world.enqueue(Stage.DUAL)
    world.claim()

    world.clock.now += DUE_SECONDS
    done = world.reconciler.run_once()

    # The push side is still away: the legacy side must not have to wait for it.
    assert (done.redispatched, done.failed) == (1, 1)
    assert len(world.legacy.taken) == 2


def test_shadow_copy_that_failed_is_not_made_up_for(world: World) -> None:
    world.push.failure = BackendUnavailable("qstash", "away")
    world.enqueue(Stage.SHADOW)
    world.push.failure = None

    world.clock.now += DUE_SECONDS

    assert world.reconciler.run_once().total == 0
