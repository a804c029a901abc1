"""Where stages come from: variables, a file that may change, and what each needs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from queuebridge import ConfigurationError
from queuebridge.errors import LedgerRequired
from queuebridge.routing import FileSource, FixedSource, RoutingSettings, StageRule, StageSettings, create_source
from queuebridge.routing.ledger_source import LedgerSource
from queuebridge.routing.sources import StageSource
from queuebridge.stages import Stage
from queuebridge.storage.memory import MemoryLedger

SECRET = "hunter2-TOP-SECRET"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def source(*, ledger: bool = True, **environ: str) -> StageSource:
    routing = RoutingSettings.from_environment({"QUEUEBRIDGE_LEGACY": "celery", **environ})
    return create_source(routing, MemoryLedger() if ledger else None, kind="producer")


def test_nothing_set_is_no_migration() -> None:
    assert not RoutingSettings.from_environment({}).active


def test_legacy_alone_means_stage_legacy() -> None:
    assert source(ledger=False).settings() == StageSettings(default=StageRule(stage=Stage.LEGACY))


def test_variables_make_the_settings() -> None:
    fixed = source(
        QUEUEBRIDGE_STAGE="Live",
        QUEUEBRIDGE_STAGE_PERCENT="12.5",
        QUEUEBRIDGE_STAGE_KEY="user_id",
        QUEUEBRIDGE_STAGE_RULES="mail.*=dual:25, reports.*=shadow",
    )

    assert isinstance(fixed, FixedSource)
    assert fixed.revision() == 0
    assert fixed.settings() == StageSettings(
        default=StageRule(stage=Stage.LIVE, percent=12.5, key="user_id"),
        rules=(
            StageRule(stage=Stage.DUAL, task="mail.*", percent=25, key="user_id"),
            StageRule(stage=Stage.SHADOW, task="reports.*", key="user_id"),
        ),
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"QUEUEBRIDGE_STAGE": "shadow"}, "QUEUEBRIDGE_STAGE is set, and QUEUEBRIDGE_LEGACY is not"),
        ({"QUEUEBRIDGE_STAGE_RULES": "a=dual"}, "QUEUEBRIDGE_STAGE_RULES is set, and QUEUEBRIDGE_LEGACY is not"),
        (
            {"QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_BACKEND": "rq"},
            "are both set. For a migration unset QUEUEBRIDGE_B",
        ),
        (
            {"QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_STAGE": "ledger", "QUEUEBRIDGE_STAGE_PERCENT": "5"},
            "QUEUEBRIDGE_STAGE_PERCENT is set, but .* from the ledger",
        ),
        (
            {"QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_STAGE": "a.toml", "QUEUEBRIDGE_STAGE_KEY": "user_id"},
            "QUEUEBRIDGE_STAGE_KEY is set, but .* from the file",
        ),
        ({"QUEUEBRIDGE_LEGACY": SECRET}, "QUEUEBRIDGE_LEGACY: "),
        ({"QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_STAGE_PERCENT": SECRET}, "QUEUEBRIDGE_STAGE_PERCENT: "),
    ],
)
def test_contradictory_variables_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        RoutingSettings.from_environment(environ)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"QUEUEBRIDGE_STAGE": "duel"}, "QUEUEBRIDGE_STAGE: it is not a stage. Did you mean 'dual'.*toml, or ledger"),
        ({"QUEUEBRIDGE_STAGE": SECRET}, "QUEUEBRIDGE_STAGE: it is not a stage"),
        ({"QUEUEBRIDGE_STAGE": "dual", "QUEUEBRIDGE_STAGE_KEY": SECRET}, "QUEUEBRIDGE_STAGE_KEY: it is none of"),
        ({"QUEUEBRIDGE_STAGE_PERCENT": "5"}, "QUEUEBRIDGE_STAGE_PERCENT: there is no stage before legacy"),
        ({"QUEUEBRIDGE_STAGE_RULES": "a=b"}, r"QUEUEBRIDGE_STAGE_RULES: rule 1 \(a\): stage: it is not a stage"),
        ({"QUEUEBRIDGE_STAGE_RULES": "a=dual,a=live"}, "QUEUEBRIDGE_STAGE_RULES: rule 2 .*never reached"),
        ({"QUEUEBRIDGE_STAGE": "/no/such.toml"}, "QUEUEBRIDGE_STAGE: /no/such.toml cannot be read: No such file"),
    ],
)
def test_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        source(**environ)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "feature"),
    [
        ({"QUEUEBRIDGE_STAGE": "dual"}, "The stage dual (default)"),
        ({"QUEUEBRIDGE_STAGE": "live"}, "The stage live (default)"),
        ({"QUEUEBRIDGE_STAGE_RULES": "a=shadow,mail.*=live"}, "The stage live (mail.*)"),
        # Those who are not in rampdown yet are in live.
        ({"QUEUEBRIDGE_STAGE": "rampdown", "QUEUEBRIDGE_STAGE_PERCENT": "99"}, "The stage live (default)"),
        ({"QUEUEBRIDGE_STAGE": "ledger"}, "QUEUEBRIDGE_STAGE=ledger"),
    ],
)
def test_stage_with_two_copies_is_refused_without_a_ledger(environ: dict[str, str], feature: str) -> None:
    with pytest.raises(LedgerRequired) as caught:
        source(ledger=False, **environ)

    assert caught.value.feature == feature
    source(ledger=True, **environ)


@pytest.mark.parametrize("stage", ["legacy", "shadow", "rampdown", "push"])
def test_stage_with_one_copy_that_runs_needs_no_ledger(stage: str) -> None:
    assert source(ledger=False, QUEUEBRIDGE_STAGE=stage).settings().default.stage.value == stage


def test_ledger_is_the_source_if_the_environment_says_so() -> None:
    followed = source(QUEUEBRIDGE_STAGE="LEDGER")

    assert isinstance(followed, LedgerSource)
    assert followed.settings().default.stage is Stage.LEGACY
    followed.close()


def write(path: Path, stage: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(f'[default]\nstage = "{stage}"\n')
    new.replace(path)


def test_file_is_read_again_when_it_changes_and_at_most_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "stages.toml", Clock()
    write(path, "shadow")
    followed = FileSource(path, has_ledger=True, clock=clock)
    write(path, "dual")

    clock.now += 0.9
    assert followed.settings().default.stage is Stage.SHADOW
    clock.now += 0.1
    assert followed.settings().default.stage is Stage.DUAL
    write(path, "live")
    clock.now += 0.9
    assert followed.settings().default.stage is Stage.DUAL


def test_change_that_keeps_the_size_is_seen(tmp_path: Path) -> None:
    path, clock = tmp_path / "stages.toml", Clock()
    write(path, "dual")
    followed = FileSource(path, has_ledger=True, clock=clock)
    path.write_text('[default]\nstage = "live"\n')
    os.utime(path, ns=(1, 1))
    clock.now += 1

    assert followed.settings().default.stage is Stage.LIVE


@pytest.mark.parametrize("broken", ["[default", '[default]\nstage = "lvie"', "missing", "not text", "needs a ledger"])
def test_broken_file_leaves_the_last_good_settings_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    path, clock = tmp_path / "stages.toml", Clock()
    write(path, "shadow")
    followed = FileSource(path, has_ledger=False, clock=clock)
    if broken == "missing":
        path.unlink()
    elif broken == "not text":
        path.write_bytes(b"\xff\xfe\x00")
    elif broken == "needs a ledger":
        write(path, "dual")
    else:
        path.write_text(broken)

    for _ in range(3):
        clock.now += 1
        assert followed.settings().default.stage is Stage.SHADOW
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert str(path) in caplog.text

    write(path, "push")
    clock.now += 1
    assert followed.settings().default.stage is Stage.PUSH


def test_broken_file_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "stages.toml"
    path.write_text('[[rule]]\ntask = "a"\nstage = "lvie"')

    with pytest.raises(ConfigurationError, match=rf"QUEUEBRIDGE_STAGE: {path}: rule 1 \(a\): stage: .*'live'"):
        source(QUEUEBRIDGE_STAGE=str(path))


def test_file_whose_stages_need_a_ledger_is_refused_at_the_start_without_one(tmp_path: Path) -> None:
    path = tmp_path / "stages.toml"
    write(path, "dual")

    with pytest.raises(LedgerRequired, match=r"The stage dual \(default\)"):
        source(ledger=False, QUEUEBRIDGE_STAGE=str(path))
