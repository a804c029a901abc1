"""A bridge put together from the environment, with a migration, a ledger, or both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from staging import Clock, SideBackend, SqlLikeLedger, Transaction, WatchedLedger

from queuebridge import Bridge, Call, ConfigurationError, EnqueueOptions, InvalidOption, Receipt, TaskRegistry, task
from queuebridge.backend import Backend, Capabilities
from queuebridge.errors import LedgerRequired, OptionNotSupported
from queuebridge.ledger import State
from queuebridge.publishing.draft import SinglePublisher
from queuebridge.reconcile import Reconciled
from queuebridge.stages import Role, Side, Stage
from queuebridge.storage.memory import MemoryLedger

registry = TaskRegistry()


@task(name="mail.send", registry=registry)
def send(to: str, password: str | None = None) -> None:
    """Do nothing."""


@task(name="reports.build", registry=registry)
def build(number: int = 0) -> None:
    """Do nothing."""


class Parts:
    """Two backends in the place of those that the environment names, a ledger and a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = WatchedLedger(self.clock)
        self.made = {name: SideBackend(name, ALL) for name in ("celery", "rq", "qstash", "inline")}
        self.bridges: list[Bridge] = []

    def load(self, name: str, **_: Any) -> Backend:
        return self.made[name]

    def bridge(self, environ: Mapping[str, str], **more: Any) -> Bridge:
        values: dict[str, Any] = {"ledger": self.ledger, "clock": self.clock, "registry": registry, **more}
        self.bridges.append(Bridge(environ=environ, **values))
        return self.bridges[-1]


ALL = Capabilities(delay=True, priority=True, deduplication=True, publish_retry=True)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What bridges are made of."""
    made = Parts()
    monkeypatch.setattr("queuebridge.assembly.load_backend", made.load)
    yield made
    for bridge in made.bridges:
        bridge.close()


def migrating(stage: str, **more: str) -> dict[str, str]:
    return {"QUEUEBRIDGE_LEGACY": "celery", "QUEUEBRIDGE_STAGE": stage, **more}


@pytest.mark.parametrize("legacy", ["celery", "rq"])
def test_migration_has_both_backends(parts: Parts, legacy: str) -> None:
    bridge = parts.bridge({"QUEUEBRIDGE_LEGACY": legacy})

    assert (bridge.backend, bridge.legacy) == (parts.made["qstash"], parts.made[legacy])
    assert bridge.worker_backend is parts.made[legacy]
    assert bridge.parking is not None


@pytest.mark.parametrize("stage", Stage)
def test_job_goes_by_its_stage(parts: Parts, stage: Stage) -> None:
    receipt = parts.bridge(migrating(stage.value)).enqueue(send, "ann")

    assert receipt.stage == stage.value
    sides = [Side.LEGACY if write.backend == "celery" else Side.PUSH for write in receipt.writes]
    expected = [side for side, role in stage.plan.copies.items() if role is not Role.SHADOW]
    assert sides == (expected[:1] if stage is Stage.LIVE else expected)
    assert receipt.held == ("celery" if stage is Stage.LIVE else None)


def test_rules_give_tasks_their_own_stages(parts: Parts) -> None:
    bridge = parts.bridge(migrating("dual", QUEUEBRIDGE_STAGE_RULES="reports.*=push"))

    receipts = bridge.enqueue_many([Call(send, ["ann"]), (build, [1])])

    assert [receipt.stage for receipt in receipts] == ["dual", "push"]
    assert (parts.ledger.calls, parts.made["celery"].calls, parts.made["qstash"].calls) == (
        ["record", "mark"],
        ["publish"],
        ["publish_many"],
    )


@pytest.mark.parametrize("stage", ["dual", "live", "ledger"])
def test_stage_that_needs_a_ledger_is_refused_at_the_start_without_one(parts: Parts, stage: str) -> None:
    with pytest.raises(LedgerRequired):
        parts.bridge(migrating(stage), ledger=None)


def test_migration_without_a_ledger_may_do_the_rest(parts: Parts) -> None:
    bridge = parts.bridge(migrating("shadow"), ledger=None)

    receipt = bridge.enqueue(send, "ann")

    assert (receipt.recorded, receipt.backend, len(parts.made["qstash"].sent)) == (False, "celery", 1)
    assert (bridge.ledger, bridge.runner.claims) == (None, None)


def test_named_backend_is_used_alone_whatever_the_migration(parts: Parts) -> None:
    bridge = parts.bridge(migrating("dual"), backend="celery")

    assert (bridge.legacy, bridge.worker_backend, bridge.parking) == (None, parts.made["celery"], None)
    assert bridge.enqueue(send, "ann").stage is None


def test_single_backend_with_a_ledger_is_recorded_and_claimed(parts: Parts) -> None:
    bridge = parts.bridge({"QUEUEBRIDGE_BACKEND": "rq"})

    receipt = bridge.enqueue(send, "ann")

    assert (receipt.recorded, receipt.backend) == (True, "rq")
    assert bridge.runner.claims is not None
    assert bridge.runner.claims.ledger is parts.ledger


def test_single_backend_without_a_ledger_opens_no_store(parts: Parts) -> None:
    bridge = parts.bridge({"QUEUEBRIDGE_BACKEND": "rq"}, ledger=None)

    assert isinstance(bridge.publisher, SinglePublisher)
    assert (bridge.ledger, bridge.runner.claims, bridge.enqueue(send, "ann").recorded) == (None, None, False)


def test_inline_backend_does_without_the_ledger_and_says_so(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    bridge = parts.bridge({"QUEUEBRIDGE_BACKEND": "inline"})

    assert (bridge.ledger, bridge.runner.claims) == (None, None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_making_a_bridge_asks_the_ledger_nothing(parts: Parts) -> None:
    parts.bridge(migrating("live"))

    assert parts.ledger.calls == []


def test_wrong_setting_of_the_ledger_is_named_at_the_start(parts: Parts) -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_LEASE_SECONDS"):
        parts.bridge(migrating("dual", QUEUEBRIDGE_LEASE_SECONDS="soon"))
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_LEDGER_KEY is not a key"):
        parts.bridge(migrating("dual", QUEUEBRIDGE_LEDGER_KEY="no-key"))


def test_closing_closes_everything_and_the_bridge_can_be_used_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = parts.bridge(migrating("dual"))
    bridge.enqueue(send, "ann")
    closed: list[str] = []
    monkeypatch.setattr(parts.ledger, "close", lambda: closed.append("ledger"))
    for name in ("celery", "qstash"):
        monkeypatch.setattr(parts.made[name], "close", lambda name=name: closed.append(name))

    bridge.close()

    assert closed == ["celery", "qstash", "ledger"]
    assert bridge.publisher._staged.writer._pool is None  # type: ignore[attr-defined]
    assert len(bridge.enqueue(send, "ann").writes) == 2


def test_bad_member_of_a_batch_records_and_sends_nothing(parts: Parts) -> None:
    bridge = parts.bridge(migrating("dual"))
    parts.made["celery"].capabilities = Capabilities()

    with pytest.raises(OptionNotSupported, match="countdown"):
        bridge.enqueue_many([Call(send, ["ann"]), Call(send, ["bob"], options=EnqueueOptions(countdown=5))])

    assert (parts.ledger.calls, parts.made["celery"].calls, parts.made["qstash"].calls) == ([], [], [])


def test_secret_of_a_positional_parameter_is_known_by_its_name(parts: Parts) -> None:
    bridge = parts.bridge(migrating("push"))

    with pytest.raises(InvalidOption, match="QUEUEBRIDGE_REDACT"):
        bridge.enqueue(send, "ann", "hunter2-planted")
    bridge.enqueue(send, "ann")

    assert "ann" in parts.ledger.everything()


def test_same_key_is_one_job_in_every_stage_that_records(parts: Parts) -> None:
    bridge = parts.bridge(migrating("live"))
    options = EnqueueOptions(idempotency_key="order 17")

    first, second = (bridge.apply_async(send, ["ann"], options=options) for _ in range(2))

    assert (first.dispatch_id, second.deduplicated, first.deduplicated) == (second.dispatch_id, True, False)
    assert len(parts.made["qstash"].sent) == 1


@pytest.mark.parametrize("option", ["session", "connection"])
def test_job_is_recorded_in_the_callers_transaction(parts: Parts, option: str) -> None:
    ledger, transaction = SqlLikeLedger(parts.clock), Transaction()
    bridge = parts.bridge(migrating("dual"), ledger=ledger)

    receipt = bridge.apply_async(send, ["ann"], options=EnqueueOptions(**{option: transaction}))

    assert receipt.pending_commit
    assert parts.made["celery"].sent == []
    transaction.commit(ledger)
    assert len(parts.made["celery"].sent) == 1


def test_session_and_connection_exclude_each_other() -> None:
    with pytest.raises(InvalidOption, match="session"):
        EnqueueOptions(session=object(), connection=object())


def test_session_without_a_ledger_is_refused(parts: Parts) -> None:
    bridge = parts.bridge({"QUEUEBRIDGE_BACKEND": "rq"}, ledger=None)

    with pytest.raises(LedgerRequired):
        bridge.apply_async(send, ["ann"], options=EnqueueOptions(session=Transaction()))
    assert parts.made["rq"].calls == []


def test_life_of_a_job_from_enqueue_to_reconcile(parts: Parts) -> None:
    bridge = parts.bridge(migrating("live"))
    receipt = bridge.enqueue(send, "ann")
    parts.clock.move(72)

    assert bridge.reconciler().run_once() == Reconciled(released=1)
    assert bridge.cancel(receipt.job_id) == (1, 0)
    execution = parts.ledger.executions.get(receipt.dispatch_id)
    assert execution is not None
    assert execution.state is State.CANCELLED


def test_receipt_without_a_write_has_neither_backend_nor_message() -> None:
    receipt = Receipt(job_id="j", dispatch_id="d", task="t", queue="q", writes=(), spooled=True)

    assert (receipt.id, receipt.backend, receipt.message_id, receipt.deduplicated) == ("j", None, None, False)


def test_stages_of_the_ledger_are_in_force(parts: Parts) -> None:
    ledger: MemoryLedger = parts.ledger
    ledger.stages.add('{"version":1,"default":{"stage":"push"}}', after=0, author="ann", reason="test")

    bridge = parts.bridge(migrating("ledger"))

    assert bridge.enqueue(send, "ann").stage == "push"


# Stages that do no more than the library alone


def test_stage_legacy_touches_no_ledger(parts: Parts) -> None:
    bridge = parts.bridge(migrating("legacy"))

    receipt = bridge.enqueue(send, "a")

    assert (receipt.backend, receipt.stage, receipt.recorded) == ("celery", "legacy", False)
    assert parts.ledger.calls == []
    assert parts.made["celery"].sent[0].counted_by_ledger


@pytest.mark.parametrize(
    ("options", "more"),
    [(EnqueueOptions(idempotency_key="k"), {}), (EnqueueOptions(), {"QUEUEBRIDGE_ON_PUBLISH_ERROR": "spool"})],
    ids=["key", "spool"],
)
def test_stage_legacy_is_recorded_where_something_is_asked_of_the_ledger(
    parts: Parts, options: EnqueueOptions, more: dict[str, str]
) -> None:
    bridge = parts.bridge(migrating("legacy", **more))

    receipt = bridge.apply_async(send, ["a"], options=options)

    assert (receipt.backend, receipt.recorded) == ("celery", True)
    assert bridge.apply_async(send, ["a"], options=options).deduplicated is (options.idempotency_key is not None)


@pytest.mark.parametrize("stage", ["legacy", "push"])
def test_stage_with_one_copy_needs_no_ledger(parts: Parts, stage: str) -> None:
    bridge = parts.bridge(migrating(stage), ledger=None)

    receipt = bridge.enqueue(send, "a")

    assert (receipt.backend, receipt.stage) == ("celery" if stage == "legacy" else "qstash", stage)


def test_batch_over_several_stages_answers_in_the_order_of_the_calls(parts: Parts) -> None:
    rules = {"QUEUEBRIDGE_STAGE_RULES": "mail.*=legacy, reports.*=live"}
    bridge = parts.bridge(migrating("legacy", **rules))

    receipts = bridge.enqueue_many([(build, [1]), (send, ["a"]), (build, [2]), (send, ["b"])])

    assert [receipt.task for receipt in receipts] == ["reports.build", "mail.send", "reports.build", "mail.send"]
    assert [receipt.recorded for receipt in receipts] == [True, False, True, False]
    assert parts.ledger.calls == ["record", "mark"]
    assert [parts.made[name].calls for name in ("celery", "qstash")] == [["publish_many"], ["publish_many"]]
