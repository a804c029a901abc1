"""What reconcile publishes, under which epoch, and when it looks again; parking and hops beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from staging import SideBackend, World, failed, unknown

from queuebridge import Bridge, TaskRegistry
from queuebridge.errors import BackendUnavailable, InvalidOption, LedgerRequired, LedgerUnavailable
from queuebridge.ledger import Settlement, State
from queuebridge.ledger.custody import Custody, new_key
from queuebridge.outcome import Status
from queuebridge.parking import HOP_TOLERANCE_SECONDS, Parking, ledger_epoch
from queuebridge.reconcile import Reconciled, Reconciler
from queuebridge.stages import Role, Side, Stage

MakeWorld = Callable[..., World]
SPOOL = {"QUEUEBRIDGE_ON_PUBLISH_ERROR": "spool"}
LEASE, GRACE, QUARTER_HOUR = 60, 10, 15 * 60


def after(world: World, seconds: float) -> Reconciled:
    """Let time pass and reconcile once."""
    world.clock.move(seconds)
    return world.reconciler.run_once()


def die(world: World, publication: Any, backend: str = "qstash") -> None:
    """Have an executor take a delivery and end before it settles."""

    def body(to: str) -> None:
        raise SystemExit(1)

    before, world.body = world.body, body
    with pytest.raises(SystemExit):
        world.deliver(publication, backend)
    world.body = before


# Held copies


def test_held_copy_is_released_when_it_is_due_and_not_before(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()

    assert after(world, 59.9) == Reconciled()
    assert after(world, 0.1) == Reconciled(released=1)
    (released,) = world.legacy.sent
    assert (released.envelope.role, released.envelope.epoch) == (Role.SAFETY, ledger_epoch(1))
    assert world.states() == {"qstash": "written", "celery": "written"}
    assert after(world, 3600) == Reconciled()


def test_held_copy_of_a_finished_job_is_never_released(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()
    world.deliver(world.push.sent[0])

    assert after(world, 3600) == Reconciled()
    assert world.legacy.sent == []


def test_held_copy_of_a_running_job_is_left_alone_while_it_runs(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE, environ={"QUEUEBRIDGE_HEDGE_SECONDS": "5"})
    world.enqueue()
    seen: list[Reconciled] = []
    world.body = lambda to: seen.append(after(world, 30))

    world.deliver(world.push.sent[0])

    assert (seen, world.legacy.sent) == ([Reconciled()], [])


def test_release_at_once_is_found_at_once(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue_many(world.draft(), world.draft())

    assert world.ledger.release_held() == 2
    assert after(world, 0) == Reconciled(released=2)


@pytest.mark.parametrize("answer", [failed, unknown])
def test_release_that_fails_is_tried_again_until_it_succeeds(make_world: MakeWorld, answer: Any) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()
    world.legacy.answer = answer("celery")

    assert after(world, 60) == Reconciled(failed=1)
    assert (world.states()["celery"], after(world, 14.9)) == ("held", Reconciled())
    world.legacy.answer = None
    assert after(world, 0.1) == Reconciled(released=1)
    # The preferred copy was not published a second time meanwhile.
    assert len(world.push.sent) == 1


def test_job_that_its_transport_gave_up_gets_its_held_copy_at_once(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()
    world.ledger.check_in("dispatch-1", 0)

    assert after(world, 0) == Reconciled(released=1)
    assert len(world.push.sent) == 1


# Recorded and not published


@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.DUAL, Stage.LIVE, Stage.RAMPDOWN, Stage.PUSH])
def test_job_whose_producer_died_before_publishing_is_published(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)
    prepared = world.publisher.prepare(world.draft())
    world.ledger.record([world.publisher._new_dispatch(prepared)])

    done = after(world, 30)

    runnable = [side for side, role in stage.plan.copies.items() if role is not Role.SHADOW]
    now = [side for side in runnable if prepared.copies[side].held_until_ms is None]
    assert done == Reconciled(published=len(now))
    for side in now:
        (publication,) = world.side(side).sent
        assert publication.envelope.deduplication_id == prepared.copies[side].publication.envelope.deduplication_id
    if stage is Stage.SHADOW:
        assert world.push.sent == []


def test_write_of_unknown_outcome_is_repeated_under_its_own_epoch(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=SPOOL)
    world.push.answer = unknown("qstash")
    assert world.enqueue().spooled
    world.push.answer = None

    assert after(world, 1) == Reconciled(published=1)
    assert world.push.epochs == [0, 0]


def test_job_is_published_later_with_the_options_of_its_backend(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL, environ=SPOOL)
    world.legacy.answer, world.push.answer = failed("celery"), failed("qstash")
    world.enqueue(version=2, options={"qstash": {"label": "mail"}})
    world.legacy.answer = world.push.answer = None

    after(world, 1)

    assert [publication.options for publication in (world.push.sent[-1], world.legacy.sent[-1])] == [
        {"label": "mail"},
        {},
    ]


def test_spooled_job_is_tried_again_until_a_backend_takes_it(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL, environ=SPOOL)
    world.legacy.answer, world.push.answer = failed("celery"), failed("qstash")
    world.enqueue()

    assert after(world, 1) == Reconciled(failed=2)
    assert after(world, 14.9) == Reconciled()
    world.push.answer = None
    assert after(world, 0.1) == Reconciled(published=1, failed=1)
    # One of them has it: nothing more to do.
    assert (world.states(), after(world, 3600)) == ({"celery": "failed", "qstash": "written"}, Reconciled())


def test_job_that_nobody_took_has_a_check_at_every_moment(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=SPOOL)
    world.push.answer = failed("qstash")
    world.enqueue()
    # A reconciler that dies right after it noted what became of its writes.
    world.ledger.away = {"check_in"}

    assert after(world, 1) == Reconciled(failed=1)

    assert world.known().next_check_at_ms == world.clock.ms + 15_000


def test_many_jobs_are_published_in_batches(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=SPOOL)
    world.push.answer = failed("qstash")
    world.enqueue_many(*[world.draft() for _ in range(250)])
    world.push.answer = None
    world.push.calls.clear()

    assert after(world, 1) == Reconciled(published=250)
    assert world.push.calls == ["publish_many"] * 3


# Abandoned


def test_abandoned_job_is_published_with_a_fresh_epoch_and_not_again_and_again(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue()
    die(world, world.push.sent[0])

    assert after(world, LEASE + GRACE - 1) == Reconciled()
    assert after(world, 1) == Reconciled(redispatched=1)
    assert after(world, QUARTER_HOUR - 1) == Reconciled()
    assert after(world, 1) == Reconciled(redispatched=1)
    assert world.push.epochs == [0, ledger_epoch(1), ledger_epoch(2)]
    assert world.deliver(world.push.sent[-1]).status is Status.DONE
    assert after(world, QUARTER_HOUR) == Reconciled()


def test_abandoned_job_with_a_held_copy_gets_that_one(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE, environ={"QUEUEBRIDGE_HEDGE_SECONDS": "3600"})
    world.enqueue()
    die(world, world.push.sent[0])

    assert after(world, LEASE + GRACE) == Reconciled(released=1)
    assert after(world, QUARTER_HOUR - 1) == Reconciled()
    assert world.deliver(world.legacy.sent[0], "celery").status is Status.DONE


def test_retry_that_nobody_brought_again_is_published(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue(retry={"retries": 1, "delays": [30]})

    def fail(to: str) -> None:
        raise ValueError("no luck")

    world.body = fail
    world.deliver(world.push.sent[0])

    assert after(world, 30 + GRACE - 1) == Reconciled()
    assert after(world, 1) == Reconciled(redispatched=1)


def test_redispatch_that_fails_is_tried_again_soon(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue()
    die(world, world.push.sent[0])
    world.push.answer = failed("qstash")

    assert after(world, LEASE + GRACE) == Reconciled(failed=1)
    world.push.answer = None
    assert (after(world, 14.9), after(world, 0.1)) == (Reconciled(), Reconciled(redispatched=1))


def test_job_that_the_ledger_knows_only_from_its_delivery_is_published_too(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    world.enqueue("ann")
    die(world, world.legacy.sent[0], "celery")

    assert after(world, LEASE + GRACE) == Reconciled(redispatched=1)
    assert (world.legacy.sent[1].envelope.args, world.legacy.sent[1].envelope.role) == (["ann"], None)


# What cannot be published from here


def test_job_sealed_with_another_key_is_skipped_with_an_error(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(Stage.PUSH, environ={**SPOOL, "QUEUEBRIDGE_LEDGER_KEY": new_key()})
    world.push.answer = failed("qstash")
    world.enqueue(kwargs={"password": "planted-secret"})
    world.enqueue("plain")
    world.push.answer = None
    world.clock.move(1)

    done = Reconciler(world.ledger, world.backends, Custody(world.settings.redact, new_key())).run_once()

    assert done == Reconciled(published=1, skipped=1)
    assert "QUEUEBRIDGE_LEDGER_KEY" in caplog.text
    assert "planted" not in caplog.text
    # Left for a process with the right key.
    assert after(world, QUARTER_HOUR) == Reconciled(published=1)
    assert world.push.sent[-1].envelope.kwargs == {"password": "planted-secret"}


def test_side_that_is_not_configured_here_is_skipped(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()
    world.clock.move(60)

    assert Reconciler(world.ledger, {Side.PUSH: world.push}, world.custody).run_once() == Reconciled(skipped=1)


def test_what_a_backend_refuses_is_skipped_and_does_not_stop_the_rest(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL, environ=SPOOL)
    world.legacy.answer, world.push.answer = failed("celery"), failed("qstash")
    world.enqueue()
    world.push.answer = world.legacy.answer = None
    world.push.refusal = InvalidOption("url", "there is none here")

    assert after(world, 1) == Reconciled(published=1, skipped=1)


def test_held_copy_of_a_job_by_reference_carries_its_arguments(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000)

    assert after(world, 60) == Reconciled(released=1)
    assert (world.legacy.sent[0].envelope.args, world.legacy.sent[0].envelope.payload_ref) == (["x" * 2000], None)


def test_ledger_that_goes_away_ends_the_run_with_an_error(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000)
    world.ledger.away = {"get_payload"}

    with pytest.raises(LedgerUnavailable):
        after(world, 60)


def test_two_reconcilers_publish_a_job_once(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.enqueue()
    other = Reconciler(world.ledger, world.backends, world.custody)
    inner: list[Reconciled] = []
    world.legacy.answer = lambda publication: inner.append(other.run_once())  # type: ignore[func-returns-value]

    assert after(world, 60) == Reconciled(released=1)
    assert inner == [Reconciled()]


def test_totals_add_up() -> None:
    one = Reconciled(released=1, published=2, redispatched=3, failed=4, skipped=5)

    assert (one.total, one + one) == (
        15,
        Reconciled(released=2, published=4, redispatched=6, failed=8, skipped=10),
    )


# Cancelling, redelivering, and asking without a ledger


def test_bridge_without_a_ledger_cannot_cancel_or_reconcile() -> None:
    bridge = Bridge(SideBackend("celery"), registry=TaskRegistry(), environ={})

    with pytest.raises(LedgerRequired):
        bridge.cancel("job-1")
    with pytest.raises(LedgerRequired):
        bridge.reconciler()


def test_bridge_has_a_given_up_job_published_anew_but_no_shadow_copy(make_world: MakeWorld) -> None:
    world = make_world(Stage.SHADOW)
    world.enqueue()
    bridge = Bridge(world.push, registry=world.registry, environ={}, ledger=world.ledger)

    bridge.redeliver(world.push.sent[0].envelope)
    assert world.known().next_check_at_ms is None
    bridge.redeliver(world.legacy.sent[0].envelope)
    assert world.known().next_check_at_ms == world.clock.ms


def test_bridge_cancels_what_does_not_run(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.enqueue()
    bridge = Bridge(world.push, registry=world.registry, environ={}, ledger=world.ledger)

    assert bridge.cancel("job-1") == (1, 0)
    assert world.known().state is State.CANCELLED


# Parking and hops


@pytest.fixture
def parking(make_world: MakeWorld) -> tuple[World, Parking]:
    """A push stage with one job, and its parking."""
    world = make_world(Stage.PUSH)
    world.enqueue(not_before_ms=world.clock.ms + 1_000_000)
    return world, Parking(world.push, counted_by_ledger=True, clock=world.clock)


def test_parked_delivery_comes_again_after_the_delay(parking: tuple[World, Parking]) -> None:
    world, lot = parking

    lot.park(world.push.sent[0].envelope, delay_seconds=42.5, number=3)

    again = world.push.sent[1]
    assert again.delay_seconds == 42.5
    assert (again.envelope.epoch, again.counted_by_ledger) == (ledger_epoch(3), True)


@pytest.mark.parametrize(("early", "hops"), [(HOP_TOLERANCE_SECONDS, False), (HOP_TOLERANCE_SECONDS + 0.5, True)])
def test_delivery_hops_if_it_is_earlier_than_clocks_differ(
    parking: tuple[World, Parking], early: float, hops: bool
) -> None:
    world, lot = parking
    world.clock.move(1000 - early)

    assert lot.is_early(world.push.sent[0].envelope) is hops


def test_job_without_a_delay_is_never_early(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)

    assert not Parking(world.push, clock=world.clock).is_early(world.draft().envelope)


def test_hop_is_published_for_the_time_of_the_job(parking: tuple[World, Parking]) -> None:
    world, lot = parking

    lot.hop(world.push.sent[0].envelope)

    assert world.push.sent[1].deliver_at_ms == world.push.sent[0].envelope.not_before_ms
    assert world.push.epochs == [0, 1]


def test_no_two_wanted_publications_of_a_dispatch_have_the_same_epoch(parking: tuple[World, Parking]) -> None:
    world, lot = parking
    # A job far in the future: its producer's message hops, reconcile publishes it again and that hops too, and so on.
    for number in range(1, 5):
        for _ in range(100):
            lot.hop(world.push.sent[-1].envelope)
        lot.park(world.push.sent[-1].envelope, delay_seconds=1, number=number)

    assert len(set(world.push.epochs)) == len(world.push.epochs)


def test_parking_that_fails_says_so(parking: tuple[World, Parking]) -> None:
    world, lot = parking
    world.push.answer = failed("qstash")

    with pytest.raises(BackendUnavailable):
        lot.park(world.push.sent[0].envelope, delay_seconds=1, number=1)


def test_settled_job_is_not_looked_at_any_more(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue()
    die(world, world.push.sent[0])
    world.ledger.settle("dispatch-1", world.known().token, Settlement(state=State.DONE))

    assert after(world, 3600) == Reconciled()
