"""Stage settings as JSON, TOML and text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge import ConfigurationError
from queuebridge.routing.codec import describe, from_json, parse_rules, parse_stage, parse_toml, render, to_json
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import ORDER, STAGES, Stage, render_table

NAMES = st.frozensets(st.text(max_size=5), max_size=3)
LATER = st.builds(
    StageRule,
    stage=st.sampled_from(ORDER[1:]),
    percent=st.floats(0, 100),
    key=st.sampled_from(["job_id", "user_id", "organization_id", "metadata.x"]),
    include=NAMES,
)

TOML = """
[default]
stage = "shadow"

[[rule]]
task = "mail.urgent.*"
queue = "bulk"
stage = "live"
percent = 12.5
key = "user_id"
include = ["acme", 42]
exclude = ["initech"]

[[rule]]
task = "mail.*"
stage = "dual"
percent = 25
"""


@given(default=LATER, rule=LATER)
def test_json_gives_back_what_it_was_made_from(default: StageRule, rule: StageRule) -> None:
    settings = StageSettings(default=default, rules=(StageRule(stage=rule.stage, task="a", include=rule.include),))

    assert from_json(to_json(settings)) == settings


def test_json_of_a_revision_has_this_form() -> None:
    settings = parse_toml(TOML)

    # Revisions live in databases: a change of the form needs a new version, and this one must still be read.
    assert json.loads(to_json(settings)) == {
        "version": 1,
        "default": {"stage": "shadow", "percent": 100.0, "key": "job_id", "include": [], "exclude": []},
        "rules": [
            {
                "task": "mail.urgent.*",
                "queue": "bulk",
                "stage": "live",
                "percent": 12.5,
                "key": "user_id",
                "include": ["42", "acme"],
                "exclude": ["initech"],
            },
            {
                "task": "mail.*",
                "queue": "*",
                "stage": "dual",
                "percent": 25.0,
                "key": "job_id",
                "include": [],
                "exclude": [],
            },
        ],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"version": 2, "default": {"stage": "legacy"}}', "version 2, .* knows 1. Upgrade it"),
        ("{}", "version None"),
        ('{"version": 1}', "default: stage: it is missing"),
        ('{"version": 1, "default": {"stage": "legacy"}, "rules": {}}', "rule: it is not a list"),
        ('{"version": 1, "default": {"stage": "legacy"}, "extra": 1}', "'extra' is not a setting"),
    ],
)
def test_damaged_or_newer_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        from_json(text)


def test_toml_without_a_default_leaves_other_tasks_where_they_are() -> None:
    settings = parse_toml('[[rule]]\ntask = "mail.*"\nstage = "shadow"\n')

    assert settings.default == StageRule(stage=Stage.LEGACY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nstage =", "it is not TOML: "),
        ('[default]\nstage = "shadwo"', "default: stage: it is not a stage. Did you mean 'shadow'"),
        ("[default]\nstage = 1", "default: stage: it is not a text"),
        ('[default]\nstage = "legacy"\ntask = "a"', "default: it matches every job"),
        ('[[rule]]\ntask = "a"', r"rule 1 \(a\): stage: it is missing"),
        ('[[rule]]\ntask = "a"\nstage = "dual"\npercnt = 1', r"rule 1 \(a\): 'percnt' .*Did you mean 'percent'"),
        ('[[rule]]\ntask = "a"\nstage = "dual"\npercent = "1"', r"rule 1 \(a\): percent: it is not a number"),
        ('[[rule]]\ntask = "a"\nstage = "dual"\npercent = true', r"rule 1 \(a\): percent: it is not a number"),
        ('[[rule]]\ntask = "a"\nstage = "dual"\npercent = 101', r"rule 1 \(a\): percent: it is not a number"),
        ('[[rule]]\ntask = "a"\nstage = "dual"\ninclude = "b"', r"rule 1 \(a\): include: it is not a list"),
        ('[[rule]]\nstage = "dual"\nkey = "x"', "rule 1: key: it is none of"),
        (
            '[[rule]]\ntask = "a"\nstage = "dual"\n[[rule]]\ntask = "a"\nstage = "live"',
            r"rule 2 \(a\): .*never reached",
        ),
        ('[[rules]]\ntask = "a"', "'rules' is not a setting. Did you mean 'rule'"),
        ('rule = "a"', "rule: it is not a list of tables"),
        ("default = 1", "default: it is not a table"),
    ],
)
def test_wrong_toml_is_refused_by_rule_and_field(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        parse_toml(text)


def test_rules_in_one_line_are_read() -> None:
    assert parse_rules(" mail.*=live:25 , reports.* = shadow,,x=dual:12.5%", key="user_id") == (
        StageRule(stage=Stage.LIVE, task="mail.*", percent=25, key="user_id"),
        StageRule(stage=Stage.SHADOW, task="reports.*", key="user_id"),
        StageRule(stage=Stage.DUAL, task="x", percent=12.5, key="user_id"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mail.*", "rule 1: it is not of the form"),
        ("a=live,=dual", "rule 2: it is not of the form"),
        ("a=live,b=lvie", r"rule 2 \(b\): stage: it is not a stage. Did you mean 'live'"),
        ("a=live:much", r"rule 1 \(a\): percent: it is not a number"),
        ("a=live:101", r"rule 1 \(a\): percent: it is not a number"),
        ("a=live:", r"rule 1 \(a\): percent: it is not a number"),
        ("a=legacy:5", r"rule 1 \(a\): percent: there is no stage before"),
    ],
)
def test_wrong_rule_in_one_line_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_rules(text)


def test_unknown_stage_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_stage("redis://:hunter2@host")

    assert str(caught.value) == "it is not a stage. There are: legacy, shadow, dual, live, rampdown, push."


def test_settings_are_readable() -> None:
    assert render(parse_toml(TOML)).splitlines() == [
        (
            "mail.urgent.* on queue bulk: live for 12.5 % by user_id, dual for the others; always in: 42, acme; "
            "never in (dual): initech"
        ),
        "mail.*: dual for 25 % by job_id, shadow for the others",
        "default: shadow",
    ]
    assert describe(StageRule(stage=Stage.LEGACY)) == "default: legacy"


def test_table_has_a_row_for_each_stage() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in render_table().splitlines()]

    assert [row[0] for row in rows[2:]] == [f"`{stage.value}`" for stage in ORDER]
    assert {len(row) for row in rows} == {5}
    assert [row[1] for row in rows[2:]] == [
        "legacy",
        "legacy and push (shadow copy)",
        "legacy and push (safety copy)",
        "push and legacy (safety copy)",
        "push; legacy only when that write fails",
        "push",
    ]
    assert [row[2:] for row in rows[2:]] == [[p.runs, p.write_fails, p.rollback] for p in STAGES.values()]
