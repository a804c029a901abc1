"""What an enqueue owes to the ledger: records, hold-backs, keys, long arguments, batches, transactions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
from staging import SideBackend, SqlLikeLedger, Transaction, World, failed, unknown

from queuebridge.backend import Capabilities
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    AllWritesFailed,
    BackendUnavailable,
    InvalidOption,
    LedgerRequired,
    LedgerUnavailable,
    OptionNotSupported,
    PayloadTooLarge,
    PublishOutcomeUnknown,
)
from queuebridge.ledger import State
from queuebridge.publishing.draft import Draft, SinglePublisher
from queuebridge.receipt import Receipt, Write
from queuebridge.stages import Side, Stage

MakeWorld = Callable[..., World]
SPOOL = {"QUEUEBRIDGE_ON_PUBLISH_ERROR": "spool"}


# The ledger is away


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.LEGACY])
def test_job_is_published_without_a_record_while_the_ledger_is_away(
    make_world: MakeWorld, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(stage)
    world.ledger.away = {"*"}

    receipt = world.enqueue()

    assert (receipt.recorded, receipt.held) == (False, None)
    assert receipt.backend == world.side(stage.plan.preferred).name
    assert "mark" not in world.ledger.calls
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["ledger_down"]


def test_held_copy_is_written_at_once_if_the_ledger_cannot_hold_it_and_the_job_needs_it(make_world: MakeWorld) -> None:
    world = make_world(Stage.LIVE)
    world.ledger.away, world.push.answer = {"*"}, failed("qstash")

    assert world.enqueue().backend == "celery"


def test_nothing_is_spooled_while_the_ledger_is_away(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=SPOOL)
    world.ledger.away, world.push.answer = {"*"}, failed("qstash")

    # The answer of the ledger may have been lost only, and then reconcile publishes the job.
    with pytest.raises(PublishOutcomeUnknown):
        world.enqueue()


def test_mark_that_does_not_arrive_leaves_the_job_to_reconcile(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.ledger.away = {"mark"}

    receipt = world.enqueue()

    assert (receipt.backend, receipt.recorded) == ("qstash", True)
    assert (world.states(), world.known().next_check_at_ms) == ({"qstash": "planned"}, world.clock.ms + 30_000)


def test_job_that_the_ledger_cannot_be_told_to_forget_is_not_called_refused(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.answer, world.push.answer = failed("celery"), failed("qstash")
    world.ledger.away = {"withdraw"}

    with pytest.raises(PublishOutcomeUnknown, match="may be published later"):
        world.enqueue()


def test_job_is_recorded_before_it_is_published(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    seen: list[dict[str, str]] = []
    world.push.answer = lambda publication: seen.append(world.states()) or None  # type: ignore[func-returns-value]

    world.enqueue()

    assert seen == [{"celery": "planned", "qstash": "planned"}]


def test_stage_that_needs_a_ledger_is_refused_without_one(make_world: MakeWorld) -> None:
    for stage in (Stage.DUAL, Stage.LIVE):
        with pytest.raises(LedgerRequired, match=stage.value):
            make_world(stage, with_ledger=False).enqueue()


# Hold-back


@pytest.mark.parametrize(("spread", "seconds"), [(0.0, 60), (0.5, 66), (1.0, 72)])
@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE])
def test_safety_copy_is_held_back_with_jitter(make_world: MakeWorld, stage: Stage, spread: float, seconds: int) -> None:
    world = make_world(stage, spread=spread)

    world.enqueue()

    assert held_until(world) == world.clock.ms + seconds * 1000


@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE])
def test_hold_back_comes_on_top_of_the_delay(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage, environ={"QUEUEBRIDGE_HEDGE_SECONDS": "10"})

    world.enqueue(not_before_ms=world.clock.ms + 100_000)

    assert held_until(world) == world.clock.ms + 110_000


@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE])
def test_hold_back_is_never_past_half_of_the_time_to_expiry(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage, spread=1.0)

    world.enqueue(not_before_ms=world.clock.ms + 100_000, expires_at_ms=world.clock.ms + 130_000)

    assert held_until(world) == world.clock.ms + 115_000


def held_until(world: World) -> int | None:
    copy = world.known().copy(Side.LEGACY)
    assert copy is not None
    return copy.due_at_ms if world.stage is Stage.LIVE else world.push.sent[0].held_until_ms


# Shadow copies


@pytest.mark.parametrize(("percent", "least", "most"), [("0", 0, 0), ("25", 180, 320), ("100", 1000, 1000)])
def test_share_of_the_jobs_is_shadowed(make_world: MakeWorld, percent: str, least: int, most: int) -> None:
    world = make_world(Stage.SHADOW, environ={"QUEUEBRIDGE_SHADOW_PERCENT": percent})

    world.enqueue_many(*[world.draft() for _ in range(1000)])

    assert len(world.legacy.sent) == 1000
    assert least <= len(world.push.sent) <= most


def test_same_job_is_always_shadowed_or_never(make_world: MakeWorld) -> None:
    small, large = (
        make_world(Stage.SHADOW, environ={"QUEUEBRIDGE_SHADOW_PERCENT": percent}) for percent in ("20", "60")
    )
    for world in (small, large):
        world.enqueue_many(*[world.draft() for _ in range(200)])

    few, many = ({p.envelope.job_id for p in world.push.sent} for world in (small, large))
    assert few < many


@pytest.mark.parametrize("problem", ["too large", "not supported"])
def test_shadow_copy_that_cannot_be_made_does_not_concern_the_caller(make_world: MakeWorld, problem: str) -> None:
    world = make_world(Stage.SHADOW, with_ledger=False)
    if problem == "too large":
        world.push.max_bytes = 10
    else:
        world.push.capabilities = Capabilities()

    receipt = world.enqueue(not_before_ms=world.clock.ms + 5000)

    assert (receipt.backend, receipt.failed, world.push.sent) == ("celery", ("qstash",), [])


# Idempotency keys


def keyed(world: World, **fields: Any) -> Receipt:
    return world.enqueue(job_id="key-1", dispatch_id="key-1", idempotency_key="order 17", **fields)


@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.LIVE, Stage.PUSH])
def test_second_enqueue_under_a_key_writes_nothing_and_says_who_has_it(make_world: MakeWorld, stage: Stage) -> None:
    world = make_world(stage)

    first, second = keyed(world), keyed(world)

    assert len(world.side(stage.plan.preferred).sent) == 1
    assert second.deduplicated
    assert [(write.backend, write.message_id) for write in second.writes] == [
        (write.backend, write.message_id) for write in first.writes
    ]
    assert (second.held, first.deduplicated) == (first.held, False)


def test_receipt_of_a_known_job_names_no_backend_that_does_not_have_it(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.answer = failed("celery")
    keyed(world)

    assert [write.backend for write in keyed(world).writes] == ["qstash"]


def test_key_of_a_finished_job_starts_no_other(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    keyed(world)
    world.deliver(world.push.sent[0])

    assert keyed(world).deduplicated
    assert len(world.push.sent) == 1


@pytest.mark.parametrize("answer", [failed, unknown])
def test_key_of_a_job_that_nobody_has_for_certain_is_tried_again(make_world: MakeWorld, answer: Any) -> None:
    world = make_world(Stage.PUSH)
    world.push.answer = answer("qstash")
    with pytest.raises((BackendUnavailable, PublishOutcomeUnknown)):
        keyed(world)
    world.push.answer = None

    receipt = keyed(world)

    assert (receipt.backend, receipt.deduplicated, world.states("key-1")) == ("qstash", False, {"qstash": "written"})
    # Under the epoch of the first try: if that one did arrive, this is a resend.
    assert world.push.epochs == [0, 0]


def test_failed_enqueue_does_not_withdraw_what_an_earlier_one_recorded(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=SPOOL)
    world.push.answer = failed("qstash")
    assert keyed(world).spooled
    hasty = make_world(Stage.PUSH)
    hasty.publisher._ledger = world.ledger
    hasty.push.answer = failed("qstash")

    with pytest.raises(PublishOutcomeUnknown, match="the ledger keeps the job"):
        keyed(hasty)

    assert world.known("key-1").next_check_at_ms is not None


def test_ledger_stands_in_for_a_backend_without_deduplication(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.capabilities = Capabilities(delay=True)
    keyed(world)
    poor = make_world(Stage.SHADOW, with_ledger=False)
    poor.legacy.capabilities = Capabilities(delay=True)

    assert len(world.legacy.sent) == 1
    with pytest.raises(OptionNotSupported, match="idempotency_key"):
        keyed(poor)


# Long arguments


LONG = "x" * 2000


@pytest.fixture
def large(make_world: MakeWorld) -> World:
    """A dual stage whose push backend takes a thousand bytes."""
    world = make_world(Stage.DUAL)
    world.push.max_bytes = 1000
    return world


def test_long_arguments_are_put_aside_and_pushed_by_reference(large: World) -> None:
    large.enqueue(LONG)

    legacy, push = large.legacy.sent[0].envelope, large.push.sent[0].envelope
    assert push.payload_ref is not None
    body = large.ledger.get_payload(push.payload_ref.key)
    assert body is not None
    assert Envelope.decode(body).args == legacy.args == [LONG]
    assert (push.args, legacy.payload_ref) == ([], None)
    assert (push.payload_ref.sha256, push.payload_ref.size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert large.push.sent[0].held_until_ms == large.clock.ms + 60_000


def test_long_arguments_are_kept_until_after_the_delay(large: World) -> None:
    large.enqueue(LONG, not_before_ms=large.clock.ms + 1_000_000)
    large.clock.move(30 * 86_400 + 999)

    large.ledger.purge(settled_before_ms=0, limit=10)

    reference = large.push.sent[0].envelope.payload_ref
    assert reference is not None
    assert large.ledger.get_payload(reference.key) is not None


def test_long_arguments_are_not_stored_a_second_time_with_the_record(large: World) -> None:
    large.enqueue(LONG)
    large.ledger.check_in("dispatch-1", 0)

    (due,) = large.ledger.take_due(1, lease_ms=1)

    assert len(due.body) < 1000


def test_job_is_refused_if_its_arguments_cannot_be_put_aside(large: World) -> None:
    large.ledger.away = {"put_payload"}

    with pytest.raises(LedgerUnavailable):
        large.enqueue(LONG)

    assert (large.legacy.sent, large.push.sent) == ([], [])


def test_long_arguments_are_refused_without_a_ledger(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, with_ledger=False)
    world.push.max_bytes = 1000

    with pytest.raises(PayloadTooLarge):
        world.enqueue(LONG)


# Batches


def test_batch_of_mixed_stages_takes_one_record_one_mark_and_the_batch_interface(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)

    receipts = world.enqueue_many(*[world.draft(stage=stage) for stage in Stage])

    assert (world.ledger.calls, world.legacy.calls, world.push.calls) == (
        ["record", "mark"],
        ["publish_many"],
        ["publish_many"],
    )
    assert [receipt.stage for receipt in receipts if isinstance(receipt, Receipt)] == [stage.value for stage in Stage]
    assert [p.envelope.job_id for p in world.legacy.sent] == ["job-1", "job-2", "job-3"]
    assert [p.envelope.job_id for p in world.push.sent] == ["job-2", "job-3", "job-4", "job-5", "job-6"]


def test_each_job_of_a_batch_gets_its_own_answer(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.answer = lambda p: failed("celery") if p.envelope.job_id in ("job-1", "job-2") else None
    world.push.answer = lambda p: failed("qstash") if p.envelope.job_id in ("job-2", "job-3") else None

    one, two, three = world.enqueue_many(*[world.draft() for _ in range(3)])

    assert isinstance(one, Receipt)
    assert isinstance(three, Receipt)
    assert (one.backend, three.backend) == ("qstash", "celery")
    assert isinstance(two, AllWritesFailed)
    assert world.ledger.executions.get("dispatch-2") is None


# The caller's own transaction


@pytest.fixture
def sql(make_world: MakeWorld) -> World:
    """A push stage over a ledger in the caller's database."""
    return make_world(Stage.PUSH, ledger_kind=SqlLikeLedger)


def test_job_exists_and_is_published_when_the_transaction_is_committed(sql: World) -> None:
    transaction = Transaction()

    receipt = sql.enqueue(transaction=transaction)

    assert (receipt.pending_commit, receipt.recorded, receipt.writes) == (True, True, ())
    assert (sql.push.sent, sql.ledger.executions.get("dispatch-1")) == ([], None)
    transaction.commit(sql.ledger)
    assert (len(sql.push.sent), sql.states()) == (1, {"qstash": "written"})


def test_job_of_a_transaction_that_was_rolled_back_never_existed(sql: World) -> None:
    transaction = Transaction()
    sql.enqueue(transaction=transaction)

    transaction.rollback()
    transaction.commit(sql.ledger)

    assert (sql.push.sent, sql.ledger.executions.get("dispatch-1")) == ([], None)


@pytest.mark.parametrize("answer", [failed, unknown])
def test_committed_job_whose_write_fails_is_published_by_reconcile(sql: World, answer: Any) -> None:
    transaction = Transaction()
    sql.enqueue(transaction=transaction)
    sql.push.answer = answer("qstash")

    transaction.commit(sql.ledger)
    sql.push.answer = None
    sql.clock.move(1)

    assert sql.reconciler.run_once().published == 1
    assert (sql.states(), sql.push.epochs) == ({"qstash": "written"}, [0, 0])


def test_known_key_in_a_transaction_publishes_nothing(sql: World) -> None:
    keyed(sql)
    transaction = Transaction()

    receipt = keyed(sql, transaction=transaction)
    transaction.commit(sql.ledger)

    assert (receipt.deduplicated, receipt.pending_commit, len(sql.push.sent)) == (True, False, 1)


def test_transaction_whose_commit_nobody_hears_of_is_found_by_reconcile(sql: World) -> None:
    assert isinstance(sql.ledger, SqlLikeLedger)
    sql.ledger.hears = False
    transaction = Transaction()
    sql.enqueue(transaction=transaction)
    transaction.commit(sql.ledger)
    sql.clock.move(1)

    assert sql.reconciler.run_once().published == 1


def test_ledger_that_is_away_after_the_commit_is_no_error_of_the_commit(
    sql: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(dispatch_id: str) -> None:
        raise LedgerUnavailable("the ledger is away.")

    transaction = Transaction()
    sql.enqueue(transaction=transaction)
    with monkeypatch.context() as outage:
        outage.setattr(sql.ledger.executions, "get", away)
        transaction.commit(sql.ledger)
    sql.clock.move(30)

    assert sql.push.sent == []
    assert sql.reconciler.run_once().published == 1


def test_savepoint_that_ends_does_not_publish_what_is_not_committed(sql: World) -> None:
    transaction = Transaction()
    sql.enqueue(transaction=transaction)
    (act,) = transaction.afterwards

    assert (act(), sql.push.sent) == (False, [])
    transaction.commit(sql.ledger)
    assert len(sql.push.sent) == 1


def test_transaction_of_a_stage_that_records_nothing_is_recorded_all_the_same(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY, ledger_kind=SqlLikeLedger)
    transaction = Transaction()

    world.enqueue(transaction=transaction)
    transaction.commit(world.ledger)

    assert (world.states(), len(world.legacy.sent)) == ({"celery": "written"}, 1)


def test_transaction_is_refused_by_a_ledger_that_is_no_sql_database(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)

    with pytest.raises(InvalidOption, match="session/connection"):
        world.enqueue(transaction=Transaction())
    assert world.push.sent == []


def test_transaction_is_refused_without_a_ledger(make_world: MakeWorld) -> None:
    backend = SideBackend("qstash")
    draft: Draft = make_world(None).draft(transaction=Transaction())

    with pytest.raises(LedgerRequired, match="transaction"):
        SinglePublisher(backend).prepare(draft)


def test_spooled_job_is_logged_with_its_reasons(make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(Stage.DUAL, environ=SPOOL)
    world.legacy.answer, world.push.answer = failed("celery"), failed("qstash")

    receipt = world.enqueue()

    assert (receipt.spooled, receipt.backend, world.known().state) == (True, None, State.ACCEPTED)
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "spooled"]
    assert (record.levelno, "celery" in record.getMessage(), "qstash" in record.getMessage()) == (
        logging.WARNING,
        True,
        True,
    )


def test_write_has_the_form_that_a_known_receipt_repeats(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    keyed(world)

    assert keyed(world).writes == (Write(backend="qstash", message_id="qstash-1", deduplicated=True),)
