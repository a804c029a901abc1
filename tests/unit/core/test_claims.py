"""What an executor does with the ledger's answers before and after a body."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from staging import World

from bridge_app.replies import STATUS_CODES
from queuebridge import PermanentFailure, RetryLater, current_job
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, LeaseLost, LedgerRequired, MalformedEnvelope, UnknownTask
from queuebridge.ledger import DeliveryOutcome, State
from queuebridge.outcome import Outcome, Status
from queuebridge.runner import Runner
from queuebridge.stages import Role, Side, Stage

MakeWorld = Callable[..., World]
LEASE = 60.0


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A dual stage with one job enqueued."""
    made = make_world(Stage.DUAL)
    made.enqueue("ann", retry={"retries": 1, "delays": [30]})
    return made


def both(world: World) -> tuple[Any, Any]:
    """Return the job as it left on each side."""
    return world.legacy.sent[0], world.push.sent[0]


def deliver(world: World, side: Side = Side.LEGACY) -> Outcome:
    legacy, push = both(world)
    return world.deliver(legacy, "celery") if side is Side.LEGACY else world.deliver(push)


def fail(world: World, error: Exception) -> None:
    def body(to: str) -> None:
        raise error

    world.body = body


# Granted, busy, settled


def test_of_two_copies_the_first_one_takes_effect_and_the_second_is_suppressed(world: World) -> None:
    first, second = deliver(world), deliver(world, Side.PUSH)

    assert (first.status, second.status, world.ran) == (Status.DONE, Status.DUPLICATE, ["ann"])
    assert "done" in second.reason
    outcomes = [record.outcome for record in world.ledger.executions.deliveries(["dispatch-1"])["dispatch-1"]]
    assert outcomes == [DeliveryOutcome.GRANTED, DeliveryOutcome.SUPPRESSED]


def test_ledger_knows_who_ran_the_job(world: World) -> None:
    deliver(world, Side.PUSH)

    execution = world.known()
    assert (execution.state, execution.executed_by, execution.executed_role) == (State.DONE, "qstash", Role.SAFETY)
    assert (execution.attempts, execution.stage, execution.token > 0) == (1, "dual", True)


def test_copy_that_arrives_during_the_run_is_busy_until_the_lease_ends(world: World) -> None:
    seen: list[Outcome] = []

    def body(to: str) -> None:
        world.clock.move(15)
        seen.append(deliver(world, Side.PUSH))

    world.body = body
    deliver(world)

    assert [(o.status, o.retry_delay_seconds, o.epoch) for o in seen] == [(Status.BUSY, LEASE - 15, 1)]


def test_each_busy_answer_has_an_epoch_of_its_own(world: World) -> None:
    seen: list[int | None] = []
    world.body = lambda to: [seen.append(deliver(world, Side.PUSH).epoch) for _ in range(3)] and None

    deliver(world)

    assert seen == [1, 2, 3]


def test_body_sees_the_token_and_the_attempt_of_its_claim(world: World) -> None:
    seen: list[tuple[int, int | None]] = []
    world.body = lambda to: seen.append((current_job().attempt, current_job().fence))

    deliver(world)

    assert seen == [(1, world.known().token)]


def test_attempts_are_counted_by_the_ledger_whatever_the_transport_says(world: World) -> None:
    fail(world, ValueError("no luck"))
    first = deliver(world)
    world.clock.move(30)
    last = world.runner.run(both(world)[1].envelope, Delivery(backend="qstash", message_id="m", attempt=1))

    assert (first.status, first.retry_delay_seconds, last.status) == (Status.RETRY, 30.0, Status.FAILED)
    assert (world.known().state, world.known().attempts) == (State.FAILED, 2)


def test_failed_attempt_is_busy_until_its_retry_time(world: World) -> None:
    fail(world, RetryLater("not yet", delay_seconds=100))
    deliver(world)
    world.clock.move(40)

    answer = deliver(world, Side.PUSH)

    assert (answer.status, answer.retry_delay_seconds) == (Status.BUSY, 60.0)
    assert (world.known().state, world.known().error) == (State.WAITING, "RetryLater: not yet")
    assert "RetryLater" in (world.known().traceback or "")


def test_permanent_failure_is_settled_for_both_copies(world: World) -> None:
    fail(world, PermanentFailure("never"))

    assert (deliver(world).status, deliver(world, Side.PUSH).status) == (Status.FAILED, Status.DUPLICATE)
    assert (world.known().state, world.known().error) == (State.FAILED, "PermanentFailure: never")


def test_dispatch_that_was_published_anew_by_its_library_is_settled_as_retried(world: World) -> None:
    legacy, push = both(world)

    class Republished:
        name, positional = "send", ("to",)

        def check(self, envelope: Envelope) -> None:
            """Accept everything."""

        def execute(self, envelope: Envelope, delivery: Delivery, lease: object) -> Outcome:
            """Fail as Celery and RQ do when they publish a retry."""
            return Outcome(status=Status.RETRIED, error=ValueError("the mail server is away"))

    runner = Runner(world.registry, claims=world.claims)
    outcome = runner.run_as(Republished(), legacy.envelope, Delivery(backend="celery", message_id="m", attempt=1))

    assert outcome.status is Status.RETRIED
    assert (world.known().state, world.known().error) == (State.RETRIED, "ValueError: the mail server is away")
    assert world.deliver(push).status is Status.DUPLICATE
    assert STATUS_CODES[Status.RETRIED] == 200


def test_job_whose_process_dies_again_and_again_is_quarantined_once(world: World) -> None:
    def die(to: str) -> None:
        raise SystemExit(1)

    world.body = die
    for _ in range(2):
        with pytest.raises(SystemExit):
            deliver(world)
        world.clock.move(LEASE)

    last, later = deliver(world), deliver(world, Side.PUSH)

    assert (last.status, later.status, world.known().state) == (Status.FAILED, Status.DUPLICATE, State.QUARANTINED)
    assert "2 attempts" in last.reason
    assert "quarantined" in last.reason


def test_expired_job_is_settled_as_that_by_the_first_delivery(make_world: MakeWorld) -> None:
    world = make_world(Stage.DUAL)
    world.enqueue(expires_at_ms=world.clock.ms + 1000)
    world.clock.move(2)

    assert (deliver(world).status, deliver(world, Side.PUSH).status) == (Status.EXPIRED, Status.DUPLICATE)
    assert (world.known().state, world.ran) == (State.EXPIRED, [])


def test_cancelled_job_does_not_run(world: World) -> None:
    world.ledger.cancel("job-1")

    assert (deliver(world).status, world.ran) == (Status.DUPLICATE, [])


def test_delivery_that_the_ledger_never_saw_runs_and_is_known_from_then_on(make_world: MakeWorld) -> None:
    world = make_world(Stage.LEGACY)
    world.enqueue("ann", metadata={"user_id": 5, "organization_id": "o"})

    assert world.deliver(world.legacy.sent[0], "celery").status is Status.DONE
    execution = world.known()
    assert (execution.state, execution.user_id, execution.organization_id) == (State.DONE, "5", "o")
    assert execution.deadline_ms == world.clock.ms + 3_600_000


def test_invalid_arguments_are_settled_as_a_failure(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue({"no": "text"})

    assert world.deliver(world.push.sent[0]).status is Status.INVALID_ARGUMENTS
    assert world.known().state is State.FAILED


def test_unknown_task_is_not_claimed(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue(task="mail.later")

    outcome = world.deliver(world.push.sent[0])

    assert (outcome.status, type(outcome.error)) == (Status.UNKNOWN_TASK, UnknownTask)
    assert world.known().attempts == 0


def test_result_is_stored_as_json_text(world: World) -> None:
    world.body = lambda to: {"to": to, "at": 1.5}

    deliver(world)

    assert world.known().result == '{"to":"ann","at":1.5}'


# Overtaken


def test_execution_that_was_overtaken_records_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Outcome] = []

    def slow(to: str) -> str:
        world.clock.move(LEASE)
        world.body = lambda to: "second"
        answers.append(deliver(world, Side.PUSH))
        return "first"

    world.body = slow
    answers.append(deliver(world))

    assert [answer.status for answer in answers] == [Status.DONE, Status.DUPLICATE]
    assert (world.known().result, world.known().stale_settles) == ('"second"', 1)
    assert "stale_settle" in [getattr(record, "event", "") for record in caplog.records]


def test_failure_of_an_overtaken_execution_is_not_retried(world: World) -> None:
    def slow(to: str) -> None:
        world.clock.move(LEASE)
        world.body = lambda to: None
        deliver(world, Side.PUSH)
        raise ValueError("too late")

    world.body = slow

    assert deliver(world).status is Status.DUPLICATE
    assert world.known().state is State.DONE


def test_body_that_checks_its_lost_lease_stops(world: World) -> None:
    def slow(to: str) -> None:
        lease = current_job().lease
        assert lease is not None
        lease.mark_lost()
        current_job().check_lease()
        raise AssertionError("went on")

    world.body = slow

    assert isinstance(deliver(world).error, LeaseLost)


# The ledger is away


def test_delivery_is_put_off_while_the_ledger_is_away(world: World) -> None:
    world.ledger.away = {"claim"}

    outcome = deliver(world)

    assert (outcome.status, world.ran) == (Status.DEFERRED, [])
    assert outcome.retry_delay_seconds is not None
    assert 7.5 <= outcome.retry_delay_seconds <= 22.5


def test_put_off_deliveries_do_not_come_back_together(world: World) -> None:
    world.ledger.away = {"claim"}

    assert len({deliver(world).retry_delay_seconds for _ in range(20)}) > 5


def test_delivery_is_executed_without_a_claim_if_that_was_chosen(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(Stage.DUAL, environ={"QUEUEBRIDGE_LEDGER_DOWN": "execute"})
    world.enqueue("ann")
    fences: list[int | None] = []
    world.body = lambda to: fences.append(current_job().fence)
    world.ledger.away = {"*"}

    outcome = deliver(world)

    assert (outcome.status, fences) == (Status.DONE, [None])
    assert "WITHOUT a claim" in caplog.text


def test_shadow_copy_is_never_executed_even_then(make_world: MakeWorld) -> None:
    world = make_world(Stage.SHADOW, environ={"QUEUEBRIDGE_LEDGER_DOWN": "execute"})
    world.enqueue()
    world.ledger.away = {"*"}

    assert (world.deliver(world.push.sent[0]).status, world.ran) == (Status.DEFERRED, [])


@pytest.mark.parametrize("operation", ["settle", "release"])
def test_ledger_that_comes_back_in_time_is_told_how_it_ended(world: World, operation: str) -> None:
    if operation == "release":
        fail(world, ValueError("no luck"))
    world.ledger.away = {operation}
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        world.clock.move(seconds)
        if len(asked) == 4:
            world.ledger.away = set()

    world.claims._sleep = sleep

    outcome = deliver(world)

    assert asked == [0.05, 0.1, 0.2, 0.4]
    assert outcome.status is (Status.DONE if operation == "settle" else Status.RETRY)
    assert world.known().state is (State.DONE if operation == "settle" else State.WAITING)


def test_ledger_that_stays_away_puts_the_delivery_off_before_the_lease_is_over(world: World) -> None:
    world.ledger.away = {"settle"}
    began = world.clock()

    outcome = deliver(world)

    assert (outcome.status, outcome.retry_delay_seconds) == (Status.DEFERRED, LEASE)
    assert LEASE - 3 < world.clock() - began <= LEASE
    assert world.known().state is State.RUNNING


def test_process_that_is_set_up_wrongly_leaves_the_job_to_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def old_schema(*args: object, **more: object) -> None:
        raise ConfigurationError("The schema is old.")

    with monkeypatch.context() as other:
        other.setattr(world.ledger, "claim", old_schema)
        outcome = deliver(world)

    assert (outcome.status, type(outcome.error)) == (Status.DEFERRED, ConfigurationError)
    assert (deliver(world).status, world.ran) == (Status.DONE, ["ann"])


# Shadow copies


@pytest.fixture
def shadow(make_world: MakeWorld) -> World:
    """A shadow stage with one job enqueued."""
    world = make_world(Stage.SHADOW)
    world.enqueue("ann")
    return world


def test_shadow_copy_is_noted_and_changes_nothing(shadow: World) -> None:
    outcome = deliver(shadow, Side.PUSH)

    (note,) = shadow.ledger.executions.deliveries(["dispatch-1"])["dispatch-1"]
    assert (outcome.status, shadow.ran, shadow.known().state) == (Status.SHADOWED, [], State.ACCEPTED)
    assert (note.outcome, note.problem) == (DeliveryOutcome.SHADOWED, None)


def test_shadow_copy_has_the_digest_of_what_legacy_ran(shadow: World) -> None:
    deliver(shadow, Side.PUSH)
    deliver(shadow)

    (note, _) = shadow.ledger.executions.deliveries(["dispatch-1"])["dispatch-1"]
    assert note.digest == shadow.known().digest
    assert note.digest is not None


def test_shadow_copy_that_could_not_have_run_is_noted_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world(Stage.SHADOW)
    world.enqueue({"planted": "value"})

    assert deliver(world, Side.PUSH).status is Status.SHADOWED
    (note,) = world.ledger.executions.deliveries(["dispatch-1"])["dispatch-1"]
    assert "Invalid arguments" in (note.problem or "")
    assert "planted" not in (note.problem or "")


def test_shadow_copy_is_not_run_without_a_ledger_either(shadow: World, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(shadow.registry, clock=shadow.clock)
    broken = both(shadow)[1].envelope.model_copy(update={"args": [1, 2, 3]})
    delivery = Delivery(backend="qstash", message_id="m", attempt=1)

    assert runner.run(both(shadow)[1].envelope, delivery).status is Status.SHADOWED
    assert runner.run(broken, delivery).status is Status.SHADOWED
    assert [record.event for record in caplog.records if record.levelno == logging.ERROR] == ["shadow_invalid"]
    assert shadow.ran == []


@pytest.mark.parametrize("copy", [0, 1], ids=["preferred", "safety"])
def test_neither_of_two_copies_is_run_without_a_ledger(world: World, copy: int) -> None:
    delivery = Delivery(backend="qstash", message_id="m", attempt=1)

    outcome = Runner(world.registry).run(both(world)[copy].envelope, delivery)

    assert (outcome.status, type(outcome.error), world.ran) == (Status.DEFERRED, LedgerRequired, [])
    assert outcome.retry_delay_seconds == 60


# Arguments by reference


@pytest.fixture
def large(make_world: MakeWorld) -> World:
    """A push stage whose backend takes short envelopes only, with a long job enqueued."""
    world = make_world(Stage.PUSH)
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000)
    return world


def test_arguments_are_fetched_from_the_ledger(large: World) -> None:
    assert large.deliver(large.push.sent[0]).status is Status.DONE
    assert large.ran == ["x" * 2000]


def test_reference_has_the_digest_of_the_whole_job(large: World) -> None:
    whole = large.draft("x" * 2000).envelope
    large.deliver(large.push.sent[0])
    other = large.known().digest
    large.deliver(whole)

    assert large.known("dispatch-2").digest == other


@pytest.mark.parametrize("trouble", ["gone", "changed"])
def test_job_whose_arguments_cannot_be_had_fails_once_for_all(large: World, trouble: str) -> None:
    if trouble == "gone":
        large.ledger._payloads.clear()
    else:
        reference = large.push.sent[0].envelope.payload_ref
        assert reference is not None
        large.ledger.put_payload(reference.key, large.draft("y" * 2000).envelope.encode(), keep_ms=1)

    outcome = large.deliver(large.push.sent[0])

    assert (outcome.status, type(outcome.error), large.ran) == (Status.FAILED, MalformedEnvelope, [])
    assert (large.known().state, large.known().next_check_at_ms) == (State.FAILED, None)
    assert large.deliver(large.push.sent[0]).status is Status.DUPLICATE


def test_reference_is_put_off_while_the_ledger_is_away_even_if_execution_was_chosen(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ={"QUEUEBRIDGE_LEDGER_DOWN": "execute"})
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000)
    world.ledger.away = {"*"}

    assert world.deliver(world.push.sent[0]).status is Status.DEFERRED


def test_reference_is_a_failure_without_a_ledger(large: World) -> None:
    outcome = Runner(large.registry).run(
        large.push.sent[0].envelope, Delivery(backend="qstash", message_id="m", attempt=1)
    )

    assert (outcome.status, type(outcome.error)) == (Status.FAILED, LedgerRequired)
