"""How stage settings change: a rule's place, the next stage, the way back, and how far a revision has got."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.errors import StageRefused
from queuebridge.routing.changes import advanced, governing, rolled_back, skipped_by_some, untouched, with_rule
from queuebridge.routing.codec import to_json
from queuebridge.routing.reach import reach_of, stage_since
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import ORDER, Stage
from queuebridge.storage.memory import MemoryLedger


def rule(task: str, stage: Stage, **more: Any) -> StageRule:
    return StageRule(task=task, stage=stage, **more)


def settings(default: Stage, *rules: StageRule) -> StageSettings:
    return StageSettings(default=StageRule(stage=default), rules=rules)


def stages(of: StageSettings) -> dict[str, Stage]:
    return {one.label: one.stage for one in of.all_rules}


def test_new_rule_comes_before_the_one_that_would_hide_it() -> None:
    before = settings(Stage.LEGACY, rule("a.*", Stage.DUAL), rule("mail.*", Stage.DUAL), rule("m*", Stage.SHADOW))

    assert [r.task for r in with_rule(before, rule("mail.urgent", Stage.LIVE)).rules] == [
        *("a.*", "mail.urgent", "mail.*", "m*")
    ]
    assert [r.task for r in with_rule(before, rule("z", Stage.LIVE)).rules] == ["a.*", "mail.*", "m*", "z"]


def test_rule_with_the_same_patterns_is_replaced_in_place() -> None:
    before = settings(Stage.LEGACY, rule("a", Stage.DUAL), rule("b", Stage.DUAL))

    assert with_rule(before, rule("a", Stage.LIVE)) == settings(
        Stage.LEGACY, rule("a", Stage.LIVE), rule("b", Stage.DUAL)
    )
    assert with_rule(before, StageRule(stage=Stage.PUSH)).default.stage is Stage.PUSH


def test_tasks_without_a_rule_of_their_own_go_by_the_one_that_covers_them() -> None:
    before = settings(Stage.SHADOW, rule("mail.*", Stage.LIVE, percent=25, key="user_id"))

    assert governing(before, "mail.send", "*") == rule("mail.send", Stage.LIVE, percent=25, key="user_id")
    assert governing(before, "report", "bulk") == rule("report", Stage.SHADOW, queue="bulk")
    assert governing(before, "*", "*") == before.default


def test_next_stage_takes_in_everybody_and_keeps_the_key() -> None:
    now = rule("a", Stage.DUAL, percent=25, key="user_id", include=frozenset("x"), exclude=frozenset("y"))

    assert advanced(now) == rule("a", Stage.LIVE, key="user_id")
    with pytest.raises(StageRefused, match="push is the last one"):
        advanced(rule("a", Stage.PUSH))


def test_keys_that_would_skip_a_stage_are_noticed() -> None:
    assert skipped_by_some(rule("a", Stage.DUAL)) is None
    assert "Only 25 % of the keys are in stage dual" in str(skipped_by_some(rule("a", Stage.DUAL, percent=25)))
    assert "Some keys are excluded" in str(skipped_by_some(rule("a", Stage.DUAL, exclude=frozenset("y"))))


def test_rollback_of_everything_takes_in_every_rule() -> None:
    before = settings(Stage.DUAL, rule("a", Stage.LIVE), rule("b", Stage.LEGACY), rule("c", Stage.SHADOW))

    assert stages(rolled_back(before, "*", None)) == {
        "default": Stage.SHADOW,
        "a": Stage.DUAL,
        "b": Stage.LEGACY,
        "c": Stage.LEGACY,
    }
    assert stages(rolled_back(before, "*", Stage.SHADOW)) == {
        "default": Stage.SHADOW,
        "a": Stage.SHADOW,
        "b": Stage.LEGACY,
        "c": Stage.SHADOW,
    }


def test_rollback_of_some_tasks_takes_in_their_rules_and_makes_one_for_the_others() -> None:
    before = settings(Stage.DUAL, rule("mail.urgent", Stage.LIVE), rule("report", Stage.LIVE))

    after = rolled_back(before, "mail.*", None)
    assert stages(after) == {
        "mail.urgent": Stage.DUAL,
        "report": Stage.LIVE,
        "mail.*": Stage.SHADOW,
        "default": Stage.DUAL,
    }


def test_rollback_of_a_rule_with_a_queue_is_taken_in_too() -> None:
    before = settings(Stage.LEGACY, rule("mail.*", Stage.LIVE, queue="bulk"))

    assert stages(rolled_back(before, "mail.*", Stage.LEGACY)) == {
        "mail.* on queue bulk": Stage.LEGACY,
        "default": Stage.LEGACY,
    }


@pytest.mark.parametrize(
    ("percent", "target"), [(100, Stage.DUAL), (25, Stage.DUAL), (0, Stage.SHADOW)], ids=["all", "some", "none"]
)
def test_rollback_of_a_share_leads_to_the_row_above_of_those_who_are_furthest(percent: float, target: Stage) -> None:
    before = StageSettings(default=StageRule(stage=Stage.LIVE, percent=percent, include=frozenset()))

    assert rolled_back(before, "*", None).default == StageRule(stage=target)


def test_rollback_takes_in_keys_that_were_always_in() -> None:
    before = StageSettings(default=StageRule(stage=Stage.LIVE, percent=0, include=frozenset({"acme"})))

    assert rolled_back(before, "*", None).default == StageRule(stage=Stage.DUAL)


@pytest.mark.parametrize("to", [None, Stage.SHADOW, Stage.DUAL])
def test_rollback_that_would_change_nothing_is_refused(to: Stage | None) -> None:
    before = settings(Stage.LEGACY if to is None else Stage.SHADOW, rule("a", Stage.LEGACY))

    with pytest.raises(StageRefused, match="None of these tasks is beyond stage"):
        rolled_back(before, "*", to)


TASKS = ["mail.send", "mail.urgent.send", "report", "a"]
RULES = st.lists(
    st.builds(
        StageRule,
        stage=st.sampled_from(ORDER[1:]),
        task=st.sampled_from(["mail.*", "mail.urgent.*", "report", "*.send", "a"]),
        percent=st.sampled_from([0.0, 25.0, 100.0]),
    ),
    max_size=3,
    unique_by=lambda one: one.task,
).filter(lambda rules: not any(a.covers(b) for i, a in enumerate(rules) for b in rules[i + 1 :]))


@given(
    rules=RULES,
    default=st.sampled_from(ORDER),
    to=st.sampled_from([None, *ORDER[:-1]]),
    pattern=st.sampled_from(["*", "mail.*", "report", "new"]),
    job=st.sampled_from([f"job-{number}" for number in range(20)]),
)
def test_p4_rollback_never_brings_a_job_further(
    rules: list[StageRule], default: Stage, to: Stage | None, pattern: str, job: str
) -> None:
    before = settings(default, *rules)
    try:
        after = rolled_back(before, pattern, to)
    except StageRefused:
        return

    for task in TASKS:
        old, new = before.stage_for(task, "q", job, {}).stage, after.stage_for(task, "q", job, {}).stage
        assert ORDER.index(new) <= ORDER.index(old)
        if pattern == "*" and to is not None:
            assert ORDER.index(new) <= ORDER.index(to)


def test_rules_that_go_before_a_changed_one_are_named() -> None:
    before = settings(Stage.LEGACY, rule("mail.urgent", Stage.LIVE), rule("*.bulk", Stage.DUAL), rule("x", Stage.DUAL))
    changed = rule("mail.*", Stage.SHADOW)

    assert [r.task for r in untouched(before, with_rule(before, changed), changed)] == ["mail.urgent", "*.bulk"]


def test_process_is_behind_until_it_reports_the_latest_revision() -> None:
    now = [1000.0]
    store = MemoryLedger(lambda: now[0]).stages
    assert reach_of(store).behind == ()
    store.report_process("p-1", "worker", 0)
    store.report_process("p-2", "receiver", 0)
    assert reach_of(store).behind == ()

    store.add("{}", after=0, author="a", reason="r")
    store.report_process("p-2", "receiver", 1)
    assert [process.process_id for process in reach_of(store).behind] == ["p-1"]
    store.report_process("p-1", "worker", 1)
    assert reach_of(store).behind == ()


def test_process_that_has_not_reported_for_30_s_is_taken_for_dead() -> None:
    now = [1000.0]
    store = MemoryLedger(lambda: now[0]).stages
    store.report_process("p-1", "worker", 0)
    store.add("{}", after=0, author="a", reason="r")

    now[0] += 29
    assert len(reach_of(store).behind) == 1
    now[0] += 2
    assert reach_of(store).processes == ()


def test_stage_began_when_its_revisions_in_a_row_did() -> None:
    now = [0.0]
    store = MemoryLedger(lambda: now[0]).stages
    history = [
        settings(Stage.DUAL),
        settings(Stage.SHADOW),
        settings(Stage.SHADOW, rule("mail.*", Stage.DUAL, percent=10)),
        settings(Stage.SHADOW, rule("mail.*", Stage.DUAL)),
        settings(Stage.SHADOW, rule("mail.*", Stage.DUAL), rule("a", Stage.LIVE)),
    ]
    for number, one in enumerate(history):
        now[0] = float(number)
        store.add(to_json(one), after=number, author="a", reason="r")

    assert stage_since(store, history[-1].rules[0]) == 2000
    assert stage_since(store, history[-1].default) == 1000
    assert stage_since(MemoryLedger().stages, history[-1].default) is None
