"""What an enqueue does in each stage, for every combination of write results; derived from the table of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
from staging import BOTH, World, failed, rejected, unknown

from queuebridge.errors import AllWritesFailed, InvalidOption, PublishOutcomeUnknown
from queuebridge.ledger import State
from queuebridge.parking import HURRIED_EPOCH
from queuebridge.receipt import Receipt
from queuebridge.stages import STAGES, Role, Side, Stage, StagePlan

RESULTS: dict[str, Callable[[str], Exception | None]] = {
    "ok": lambda name: None,
    "failed": failed,
    "unknown": unknown,
}


def second(plan: StagePlan) -> Side | None:
    """Return the side that may be written to besides the preferred one."""
    return plan.other or plan.fallback


CASES = [
    (stage, preferred, other, policy)
    for stage, plan in STAGES.items()
    for preferred, other, policy in product(RESULTS, RESULTS if second(plan) else ["-"], ["raise", "spool"])
]


class Expected:
    """What must come of one case, by the words of the table and nothing else."""

    def __init__(self, stage: Stage, preferred: str, other: str, policy: str) -> None:
        plan = stage.plan
        side = second(plan)
        self.results = {plan.preferred: preferred}
        role = plan.copies.get(side) if side is not None else None
        self.held = role is Role.SAFETY and side is Side.LEGACY and preferred == "ok"
        asked_when_needed = role is None or (role is Role.SAFETY and side is Side.LEGACY)
        if side is not None and not (asked_when_needed and preferred == "ok"):
            self.results[side] = other
        self.shadow = side if role is Role.SHADOW else None
        runnable = {s: result for s, result in self.results.items() if s is not self.shadow}
        self.accepted = "ok" in runnable.values()
        self.recorded = stage is not Stage.LEGACY or policy == "spool"
        self.spooled = not self.accepted and policy == "spool"
        self.raises_unknown = "unknown" in runnable.values()
        self.causes = {BOTH[s] for s in runnable}

    def named(self, result: str) -> tuple[str, ...]:
        return tuple(BOTH[side] for side, one in self.results.items() if one == result)


def attempt(make_world: Callable[..., World], stage: Stage, preferred: str, other: str, policy: str) -> Any:
    world = make_world(stage, environ={"QUEUEBRIDGE_ON_PUBLISH_ERROR": policy})
    plan = stage.plan
    world.side(plan.preferred).answer = RESULTS[preferred](BOTH[plan.preferred])
    side = second(plan)
    if side is not None:
        world.side(side).answer = RESULTS[other](BOTH[side])
    try:
        return world, world.enqueue()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return world, error


@pytest.mark.parametrize(("stage", "preferred", "other", "policy"), CASES)
def test_answer_to_the_caller_is_true(
    make_world: Callable[..., World], stage: Stage, preferred: str, other: str, policy: str
) -> None:
    expected = Expected(stage, preferred, other, policy)

    _, answer = attempt(make_world, stage, preferred, other, policy)

    if expected.accepted or expected.spooled:
        assert isinstance(answer, Receipt), answer
        has_it = tuple(name for name in expected.named("ok") if name != (expected.shadow and BOTH[expected.shadow]))
        assert tuple(write.backend for write in answer.writes) == has_it
        assert answer.unconfirmed == expected.named("unknown")
        assert answer.failed == expected.named("failed")
        assert answer.held == (BOTH[Side.LEGACY] if expected.held else None)
        assert (answer.spooled, answer.recorded, answer.stage) == (expected.spooled, expected.recorded, stage.value)
    elif expected.raises_unknown:
        assert isinstance(answer, PublishOutcomeUnknown)
    elif len(expected.causes) == 1:
        assert str(answer) == str(failed(*expected.causes))
    else:
        assert isinstance(answer, AllWritesFailed)
        assert set(answer.causes) == expected.causes
        assert all(name in str(answer) for name in expected.causes)


@pytest.mark.parametrize(("stage", "preferred", "other", "policy"), CASES)
def test_ledger_holds_what_is_true(
    make_world: Callable[..., World], stage: Stage, preferred: str, other: str, policy: str
) -> None:
    expected = Expected(stage, preferred, other, policy)

    world, _ = attempt(make_world, stage, preferred, other, policy)

    kept = expected.recorded and (expected.accepted or expected.spooled or expected.raises_unknown)
    if not kept:
        assert world.ledger.executions.get("dispatch-1") is None
        return
    execution = world.known()
    words = {"ok": "written", "failed": "failed", "unknown": "unknown"}
    states = {BOTH[side]: words[result] for side, result in expected.results.items()}
    if expected.held:
        states[BOTH[Side.LEGACY]] = "held"
    assert world.states() == states
    assert execution.state is State.ACCEPTED
    if expected.spooled:
        assert execution.next_check_at_ms == world.clock.ms + 1_000
    elif expected.held or (stage is not Stage.SHADOW and incomplete(states)):
        assert execution.next_check_at_ms == world.clock.ms + 60_000
    else:
        assert execution.next_check_at_ms is None


def incomplete(states: Mapping[str, str]) -> bool:
    """Say whether a copy that could run the job was not written for certain, while another one was."""
    return "written" in states.values() and not {"failed", "unknown"}.isdisjoint(states.values())


@pytest.mark.parametrize(("stage", "side"), [(stage, side) for stage, plan in STAGES.items() for side in plan.copies])
def test_side_that_cannot_honour_a_job_refuses_it_unless_it_is_a_shadow(
    make_world: Callable[..., World], stage: Stage, side: Side
) -> None:
    world = make_world(stage)
    world.side(side).refusal = InvalidOption("label", "no")

    if stage.plan.copies[side] is Role.SHADOW:
        receipt = world.enqueue()

        assert (receipt.failed, receipt.backend) == ((BOTH[side],), BOTH[stage.plan.preferred])
        assert world.states()[BOTH[side]] == "failed"
    else:
        with pytest.raises(InvalidOption):
            world.enqueue()
        assert (world.legacy.sent, world.push.sent, world.ledger.calls) == ([], [], [])


@pytest.mark.parametrize("policy", ["raise", "spool"])
def test_fallback_that_cannot_honour_a_job_is_one_of_the_causes(make_world: Callable[..., World], policy: str) -> None:
    world = make_world(Stage.RAMPDOWN, environ={"QUEUEBRIDGE_ON_PUBLISH_ERROR": policy})
    world.push.answer, world.legacy.refusal = failed("qstash"), InvalidOption("label", "no")

    if policy == "raise":
        with pytest.raises(AllWritesFailed) as caught:
            world.enqueue()
        assert caught.value.causes == {"qstash": world.push.answer, "celery": world.legacy.refusal}
    else:
        assert world.enqueue().spooled
        assert world.states() == {"qstash": "failed", "celery": "failed"}
    assert world.legacy.sent == []


def test_push_without_a_ledger_does_not_fall_back_when_the_outcome_is_unknown(
    make_world: Callable[..., World],
) -> None:
    world = make_world(Stage.RAMPDOWN, with_ledger=False)
    world.push.answer = unknown("qstash")

    with pytest.raises(PublishOutcomeUnknown):
        world.enqueue()

    # Without claims both copies would run.
    assert world.legacy.sent == []


@pytest.mark.parametrize("answer", [failed, rejected])
def test_rampdown_falls_back_without_a_ledger(make_world: Callable[..., World], answer: Any) -> None:
    world = make_world(Stage.RAMPDOWN, with_ledger=False)
    world.push.answer = answer("qstash")

    receipt = world.enqueue()

    assert (receipt.backend, receipt.failed, receipt.recorded) == ("celery", ("qstash",), False)
    assert world.legacy.sent[0].envelope.role is None


@pytest.mark.parametrize("answer", [failed, unknown])
def test_safety_copy_on_its_way_is_hurried_when_the_preferred_write_fails(
    make_world: Callable[..., World], answer: Any
) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.answer = answer("celery")

    world.enqueue()

    slow, quick = world.push.sent
    assert (slow.held_until_ms, quick.held_until_ms) == (world.clock.ms + 60_000, None)
    assert world.push.epochs == [0, HURRIED_EPOCH]
    assert (slow.envelope.role, quick.envelope.role) == (Role.SAFETY, Role.SAFETY)


def test_safety_copy_that_cannot_be_hurried_still_counts(make_world: Callable[..., World]) -> None:
    world = make_world(Stage.DUAL)
    world.legacy.answer = failed("celery")
    world.push.answer = lambda publication: failed("qstash") if publication.envelope.epoch else None

    receipt = world.enqueue()

    assert (receipt.backend, receipt.message_id) == ("qstash", "qstash-1")
    assert world.states() == {"celery": "failed", "qstash": "written"}


@pytest.mark.parametrize("stage", STAGES)
def test_copies_say_on_the_wire_what_they_are_for(make_world: Callable[..., World], stage: Stage) -> None:
    world = make_world(stage)

    world.enqueue()

    for side, role in stage.plan.copies.items():
        sent = world.side(side).sent
        if role is Role.SAFETY and side is Side.LEGACY:
            assert sent == []
            continue
        # Where one copy runs at most, nobody has to know.
        told = role if role is Role.SHADOW or stage.plan.needs_ledger else None
        assert [publication.envelope.role for publication in sent] == [told]
        assert sent[0].envelope.stage is stage
    assert (
        {copy.role for copy in world.known().copies} == set(stage.plan.copies.values())
        if (stage is not Stage.LEGACY)
        else True
    )


def test_job_without_a_migration_is_recorded_and_written_once(make_world: Callable[..., World]) -> None:
    world = make_world(None)

    receipt = world.enqueue()

    assert (receipt.stage, receipt.recorded, receipt.backend) == (None, True, "qstash")
    assert world.states() == {"qstash": "written"}
    assert world.push.sent[0].counted_by_ledger


def test_copy_that_may_run_is_never_taken_for_a_resend_of_a_shadow_copy(make_world: Callable[..., World]) -> None:
    world = make_world(Stage.SHADOW)
    world.enqueue()
    other = make_world(Stage.LIVE)
    other.enqueue()

    shadow, preferred = world.push.sent[0].envelope, other.push.sent[0].envelope

    assert shadow.dispatch_id == preferred.dispatch_id
    assert shadow.deduplication_id != preferred.deduplication_id
