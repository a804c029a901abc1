"""Which stage a job is written by: patterns, per cents, lists, and keys that stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge import ConfigurationError
from queuebridge.routing.rules import StageRule, StageSettings, bucket_of
from queuebridge.stages import ORDER, Stage

STAGES = st.sampled_from(ORDER[1:])
PERCENTS = st.floats(0, 100)
KEYS = st.text(min_size=1)


def by_user(stage: Stage, percent: float, **more: Any) -> StageRule:
    return StageRule(stage=stage, percent=percent, key="user_id", **more)


def stage_of(rule: StageRule, user: str, task: str = "mail.send") -> Stage:
    return StageSettings(default=rule).stage_for(task, "default", "job-1", {"user_id": user}).stage


@given(stage=STAGES, key=KEYS, percents=st.tuples(PERCENTS, PERCENTS))
def test_p5_raising_a_per_cent_never_moves_a_key_out(stage: Stage, key: str, percents: tuple[float, float]) -> None:
    low, high = sorted(percents)

    if stage_of(by_user(stage, low), key) is stage:
        assert stage_of(by_user(stage, high), key) is stage


def test_p5_who_is_in_at_10_per_cent_is_still_in_at_25() -> None:
    users = [f"user-{number}" for number in range(10_000)]
    at_10 = {user for user in users if stage_of(by_user(Stage.LIVE, 10), user) is Stage.LIVE}
    at_25 = {user for user in users if stage_of(by_user(Stage.LIVE, 25), user) is Stage.LIVE}

    assert at_10 < at_25
    assert len(at_10) > 0


@given(stages=st.tuples(STAGES, STAGES), key=KEYS, percent=PERCENTS)
def test_p5_the_same_keys_are_first_in_every_stage(stages: tuple[Stage, Stage], key: str, percent: float) -> None:
    one, other = stages

    assert (stage_of(by_user(one, percent), key) is one) is (stage_of(by_user(other, percent), key) is other)


@given(key=KEYS, percent=PERCENTS)
def test_p5_a_key_stays_in_when_a_rule_of_its_own_is_made_for_its_task(key: str, percent: float) -> None:
    default = by_user(Stage.LIVE, percent)
    split = StageSettings(default=default, rules=(by_user(Stage.LIVE, percent, task="mail.*"),))
    metadata = {"user_id": key}

    assert split.stage_for("mail.send", "q", "j", metadata).stage is stage_of(default, key)
    assert split.stage_for("other", "q", "j", metadata).stage is stage_of(default, key)


@given(stage=STAGES, percent=PERCENTS, key=KEYS)
def test_a_job_is_in_the_stage_or_in_the_one_before_it(stage: Stage, percent: float, key: str) -> None:
    assert stage_of(by_user(stage, percent), key) in (stage, stage.before)


@pytest.mark.parametrize("percent", [0, 0.5, 10, 50, 99.9, 100])
def test_share_of_keys_that_are_in_is_the_per_cent(percent: float) -> None:
    count = sum(stage_of(by_user(Stage.DUAL, percent), str(user)) is Stage.DUAL for user in range(10_000))

    assert abs(count / 100 - percent) <= 1
    if percent in (0, 100):
        assert count / 100 == percent


@pytest.mark.parametrize(
    ("name", "key", "bucket"),
    [
        ("job_id", "7c9e6679-7425-40de-944b-e07fc1f90ae7", 77.6839),
        ("user_id", "42", 30.2021),
        ("organization_id", "42", 29.7106),
        ("metadata.region", "eu-west-1", 46.0422),
        ("user_id", "Zoë", 76.721),
    ],
)
def test_keys_stand_where_they_always_stood(name: str, key: str, bucket: float) -> None:
    assert bucket_of(name, key) == bucket


@given(name=st.sampled_from(["job_id", "user_id"]), key=st.text(st.characters()))
def test_every_key_has_a_place_below_100(name: str, key: str) -> None:
    assert 0 <= bucket_of(name, key) < 100


def test_lists_count_whatever_the_per_cent() -> None:
    users = [str(number) for number in range(100)]
    nobody = by_user(Stage.LIVE, 0, include=frozenset({"7"}))
    everybody = by_user(Stage.LIVE, 100, exclude=frozenset({"7"}))

    assert [user for user in users if stage_of(nobody, user) is Stage.LIVE] == ["7"]
    assert [user for user in users if stage_of(everybody, user) is Stage.DUAL] == ["7"]


def test_job_without_the_key_goes_by_its_job_id() -> None:
    rule = by_user(Stage.LIVE, 50, include=frozenset({"job-1"}))

    for metadata in ({}, {"user_id": None}, {"user_id": ""}, {"organization_id": "42"}):
        decision = rule.decide("job-1", metadata)
        assert (decision.key_name, decision.key) == ("job_id", "job-1")
        # The list is of users: a job id that happens to look like one is not on it.
        assert (decision.stage is Stage.LIVE) is (bucket_of("job_id", "job-1") < 50)
        assert "has no user_id" in decision.reason


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("user_id", "user_id", "u"),
        ("metadata.user_id", "user_id", "u"),
        ("organization_id", "organization_id", "o"),
        ("metadata.region", "metadata.region", "7"),
        ("metadata.job_id", "metadata.job_id", "m"),
        ("job_id", "job_id", "j"),
    ],
)
def test_routing_key_is_taken_from_where_the_rule_says(key: str, name: str, value: str) -> None:
    metadata = {"user_id": "u", "organization_id": "o", "region": 7, "job_id": "m"}
    decision = StageRule(stage=Stage.LIVE, percent=50, key=key).decide("j", metadata)

    assert (decision.key_name, decision.key) == (name, value)


def test_first_rule_that_matches_decides_and_then_the_default() -> None:
    settings = StageSettings(
        default=StageRule(stage=Stage.LEGACY),
        rules=(
            StageRule(stage=Stage.PUSH, task="mail.urgent.*"),
            StageRule(stage=Stage.DUAL, task="mail.*", queue="bulk*"),
            StageRule(stage=Stage.SHADOW, task="mail.*"),
        ),
    )

    def stage(task: str, queue: str) -> Stage:
        return settings.stage_for(task, queue, "j", {}).stage

    assert stage("mail.urgent.send", "bulk") is Stage.PUSH
    assert stage("mail.send", "bulk-2") is Stage.DUAL
    assert stage("mail.send", "default") is Stage.SHADOW
    assert stage("Mail.send", "default") is Stage.LEGACY
    assert stage("report", "bulk") is Stage.LEGACY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": Stage.LEGACY, "percent": 50.0}, "percent: there is no stage before legacy"),
        ({"stage": Stage.LEGACY, "exclude": frozenset("a")}, "exclude: there is no stage before legacy"),
        ({"stage": Stage.DUAL, "percent": -1.0}, "percent: it is not a number from 0 to 100"),
        ({"stage": Stage.DUAL, "percent": 100.1}, "percent: it is not"),
        ({"stage": Stage.DUAL, "percent": float("nan")}, "percent: it is not"),
        ({"stage": Stage.DUAL, "key": "user"}, "key: it is none of job_id, user_id"),
        ({"stage": Stage.DUAL, "key": "metadata."}, "key: it is none of"),
        ({"stage": Stage.DUAL, "task": ""}, "task: it is empty"),
        ({"stage": Stage.DUAL, "include": frozenset("ab"), "exclude": frozenset("b")}, "'b' is in both"),
    ],
)
def test_impossible_rule_is_refused_by_its_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StageRule(**values)


@pytest.mark.parametrize(
    ("first", "second"), [("mail.*", "mail.*"), ("*", "mail.*"), ("mail.*", "mail.send"), ("mail.*", "mail.u*")]
)
def test_rule_that_could_never_decide_is_refused(first: str, second: str) -> None:
    rules = tuple(StageRule(stage=Stage.DUAL, task=task) for task in (first, second))

    with pytest.raises(ConfigurationError, match=r"rule 2 .* never reached, because rule 1"):
        StageSettings(default=StageRule(stage=Stage.LEGACY), rules=rules)


@pytest.mark.parametrize(
    ("first", "second"), [("mail.send", "mail.*"), ("mail.?", "mail.*"), ("m[ab]*", "mail.*"), ("*.urgent", "mail.*")]
)
def test_rule_that_could_decide_for_some_job_is_taken(first: str, second: str) -> None:
    rules = tuple(StageRule(stage=Stage.DUAL, task=task) for task in (first, second))

    assert StageSettings(default=StageRule(stage=Stage.LEGACY), rules=rules).rules == rules


def test_default_takes_no_pattern() -> None:
    with pytest.raises(ConfigurationError, match="default: it matches every job"):
        StageSettings(default=StageRule(stage=Stage.LEGACY, task="mail.*"))


@pytest.mark.parametrize(
    ("rule", "stages"),
    [
        (StageRule(stage=Stage.LEGACY), (Stage.LEGACY,)),
        (StageRule(stage=Stage.LIVE), (Stage.LIVE,)),
        (StageRule(stage=Stage.LIVE, percent=1), (Stage.DUAL, Stage.LIVE)),
        (StageRule(stage=Stage.LIVE, percent=0), (Stage.DUAL,)),
        (StageRule(stage=Stage.LIVE, percent=0, include=frozenset("a")), (Stage.DUAL, Stage.LIVE)),
        (StageRule(stage=Stage.LIVE, exclude=frozenset("a")), (Stage.DUAL, Stage.LIVE)),
    ],
)
def test_rule_knows_the_stages_that_its_jobs_may_get(rule: StageRule, stages: tuple[Stage, ...]) -> None:
    assert rule.stages == stages
