"""The commands about stages: what they show, change, refuse and record."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import queuebridge.cli.stage
from queuebridge.cli.app import ExitCode, root
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import Copy, NewDispatch, Revision, WriteState
from queuebridge.reporting.evidence import Verdict
from queuebridge.routing.codec import from_json, to_json
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import Role, Side, Stage
from queuebridge.storage.memory import MemoryLedger

READY = Verdict(ready=True, reasons=("100 jobs were written by this stage.",))
NOT_READY = Verdict(ready=False, reasons=("3 jobs are lost.", "Only 5 jobs were written."))

Invoke = Callable[..., Result]


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> MemoryLedger:
    ledger = MemoryLedger(lambda: clock[0])
    monkeypatch.setattr("queuebridge.cli.ledgers.load_ledger", lambda *_: ledger)
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", "sqlite:///stages.db")
    monkeypatch.setenv("QUEUEBRIDGE_LEGACY", "celery")
    monkeypatch.setenv("QUEUEBRIDGE_STAGE", "ledger")
    return ledger


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the evidence was asked for; all is ready."""
    questions: list[dict[str, Any]] = []

    def judge(_log: object, **question: Any) -> Verdict:
        questions.append(question)
        return READY

    monkeypatch.setattr(queuebridge.cli.stage, "judge_advance", judge)
    return questions


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), catch_exceptions=False)


def put(ledger: MemoryLedger, default: StageRule, *rules: StageRule) -> Revision:
    current = ledger.stages.current()
    text = to_json(StageSettings(default=default, rules=rules))
    return ledger.stages.add(text, after=current.number if current else 0, author="ann", reason="because")


def latest(ledger: MemoryLedger) -> Revision:
    revision = ledger.stages.current()
    assert revision is not None
    return revision


def settings(ledger: MemoryLedger) -> StageSettings:
    return from_json(latest(ledger).settings)


SHADOW = StageRule(stage=Stage.SHADOW)


def test_set_adds_a_revision_with_author_and_reason(ledger: MemoryLedger) -> None:
    result = invoke(
        *("stage", "set", "live", "--task", "mail.*", "--percent", "12.5", "--key", "user_id", "--include", "acme"),
        *("--exclude", "initech", "--reason", "first users", "--yes"),
    )

    assert result.exit_code == ExitCode.DONE
    assert result.stdout == "Revision 1: first users\n"
    assert "+ mail.*: live for 12.5 % by user_id, dual for the others; always in: acme" in result.stderr
    assert "Warning: this skips shadow, dual" in result.stderr
    rule = StageRule(
        stage=Stage.LIVE,
        task="mail.*",
        percent=12.5,
        key="user_id",
        include=frozenset({"acme"}),
        exclude=frozenset({"initech"}),
    )
    assert settings(ledger) == StageSettings(default=StageRule(stage=Stage.LEGACY), rules=(rule,))
    revision = latest(ledger)
    assert (revision.author, revision.reason, revision.forced) == (getpass.getuser(), "first users", False)


def test_set_keeps_key_and_lists_while_the_stage_stays(ledger: MemoryLedger) -> None:
    lists = {"include": frozenset({"acme"}), "exclude": frozenset({"initech"})}
    put(ledger, StageRule(stage=Stage.DUAL, percent=10, key="user_id", **lists))

    invoke("stage", "set", "dual", "--percent", "25", "--reason", "r", "--yes", "--author", "bob")
    assert settings(ledger).default == StageRule(stage=Stage.DUAL, percent=25, key="user_id", **lists)
    assert latest(ledger).author == "bob"
    invoke("stage", "set", "dual", "--percent", "25", "--exclude", "", "--reason", "r", "--yes")
    assert settings(ledger).default.exclude == frozenset()
    invoke("stage", "set", "live", "--percent", "10", "--reason", "r", "--yes")
    assert settings(ledger).default == StageRule(stage=Stage.LIVE, percent=10, key="user_id")


def test_set_says_that_another_key_lets_other_jobs_in(ledger: MemoryLedger) -> None:
    put(ledger, StageRule(stage=Stage.DUAL, percent=10, key="user_id"))

    result = invoke("stage", "set", "dual", "--percent", "25", "--key", "organization_id", "--reason", "r", "--yes")
    assert "by organization_id in place of user_id other jobs are in than before" in result.stderr


def test_set_is_not_done_unasked(ledger: MemoryLedger) -> None:
    result = invoke("stage", "set", "shadow", "--reason", "r")

    assert result.exit_code == ExitCode.USAGE
    assert "--yes" in result.stderr
    assert ledger.stages.current() is None


def test_set_to_what_is_there_already_is_refused(ledger: MemoryLedger) -> None:
    put(ledger, SHADOW)

    result = invoke("stage", "set", "shadow", "--reason", "r", "--yes")
    assert result.exit_code == ExitCode.FAILED
    assert latest(ledger).number == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lvie",), "'lvie' is not one of 'legacy', 'shadow', 'dual'"),
        (("legacy", "--percent", "5"), "percent: there is no stage before legacy"),
        (("live", "--percent", "101"), "percent: it is not a number from 0 to 100"),
        (("live", "--key", "user"), "key: it is none of"),
        (("live", "--include", "a", "--exclude", "a"), "'a' is in both"),
    ],
)
def test_set_refuses_impossible_values(ledger: MemoryLedger, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("stage", "set", *arguments, "--reason", "r", "--yes")

    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr


def test_change_that_somebody_overtook_is_refused(ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(ledger, SHADOW)
    before = ledger.stages.current()
    put(ledger, StageRule(stage=Stage.DUAL))
    monkeypatch.setattr(ledger.stages, "current", lambda: before)

    result = invoke("stage", "set", "live", "--reason", "r", "--yes")
    assert result.exit_code == ExitCode.FAILED
    assert "revision 2 came after revision 1" in result.stderr


def test_change_that_processes_here_would_not_see_says_so(
    ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Warning" not in invoke("stage", "set", "shadow", "--reason", "r", "--yes").stderr

    monkeypatch.setenv("QUEUEBRIDGE_STAGE", "shadow")
    result = invoke("stage", "set", "dual", "--reason", "r", "--yes")
    assert result.exit_code == ExitCode.DONE
    assert "Warning: QUEUEBRIDGE_STAGE is not `ledger` here" in result.stderr


def test_rollback_works_where_the_environment_is_contradictory_and_the_user_has_no_name(
    ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    put(ledger, StageRule(stage=Stage.LIVE))
    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv("QUEUEBRIDGE_LEGACY")

    result = invoke("rollback", "--reason", "r")
    assert result.exit_code == ExitCode.DONE
    assert "Warning: QUEUEBRIDGE_STAGE is set, and QUEUEBRIDGE_LEGACY is not" in result.stderr
    assert (settings(ledger).default.stage, latest(ledger).author) == (Stage.DUAL, f"user {os.getuid()}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("stage", "set", "shadow", "--reason", "r", "--yes"),
        ("stage", "advance"),
        ("stage", "history"),
        ("rollback", "--reason", "r"),
        ("status",),
    ],
)
def test_without_a_ledger_there_is_nothing_to_change(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_LEGACY", "celery")

    result = invoke(*arguments)
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "QUEUEBRIDGE_LEDGER" in result.stderr


def test_ledger_that_cannot_be_reached_has_status_4(ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise LedgerUnavailable("The ledger cannot be reached.")

    monkeypatch.setattr(ledger.stages, "current", gone)
    assert invoke("status").exit_code == ExitCode.UNREACHABLE


def test_advance_goes_to_the_next_stage_on_the_evidence_since_the_present_one_began(
    ledger: MemoryLedger, clock: list[float], asked: list[dict[str, Any]]
) -> None:
    put(ledger, SHADOW)
    clock[0] += 60
    put(ledger, SHADOW, StageRule(stage=Stage.DUAL, task="mail.*", key="user_id"))
    clock[0] += 60

    result = invoke("stage", "advance", "--task", "mail.*")
    assert result.exit_code == ExitCode.DONE
    assert asked == [{"task": "mail.*", "stage": Stage.DUAL, "now_ms": 1_120_000, "since_ms": 1_060_000}]
    assert settings(ledger).rules == (StageRule(stage=Stage.LIVE, task="mail.*", key="user_id"),)
    assert latest(ledger).reason == "mail.* to live. 100 jobs were written by this stage."
    assert not latest(ledger).forced

    invoke("stage", "advance", "--reason", "enough")
    assert asked[-1] == {"task": None, "stage": Stage.SHADOW, "now_ms": 1_120_000, "since_ms": 1_000_000}
    assert (settings(ledger).default.stage, latest(ledger).reason) == (Stage.DUAL, "enough")


def test_advance_is_refused_against_the_evidence(ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(ledger, SHADOW)
    monkeypatch.setattr(queuebridge.cli.stage, "judge_advance", lambda *_, **__: NOT_READY)

    result = invoke("stage", "advance")
    assert result.exit_code == ExitCode.FAILED
    assert (
        "Advancing default from shadow to dual is refused: 3 jobs are lost. Only 5 jobs were written." in result.stderr
    )
    assert latest(ledger).number == 1

    result = invoke("stage", "advance", "--force")
    assert result.exit_code == ExitCode.DONE
    assert settings(ledger).default.stage is Stage.DUAL
    assert latest(ledger).forced
    assert "3 jobs are lost" in latest(ledger).reason


def test_advance_with_real_evidence_refuses_too_few_jobs(ledger: MemoryLedger) -> None:
    put(ledger, SHADOW)

    result = invoke("stage", "advance")
    assert result.exit_code == ExitCode.FAILED
    assert "wanted: at least 100" in result.stderr


def test_advance_waits_for_every_process(ledger: MemoryLedger, asked: list[dict[str, Any]], clock: list[float]) -> None:
    put(ledger, SHADOW)
    ledger.stages.report_process("host-1", "worker", 0)
    ledger.stages.report_process("host-2", "receiver", 1)

    result = invoke("stage", "advance")
    assert result.exit_code == ExitCode.FAILED
    assert "1 of 2 processes do not go by revision 1 yet; the first is host-1 (worker), at revision 0" in result.stderr

    ledger.stages.report_process("host-1", "worker", 1)
    assert invoke("stage", "advance").exit_code == ExitCode.DONE


@pytest.mark.parametrize("more", [{"percent": 25}, {"exclude": frozenset({"acme"})}])
def test_advance_is_refused_while_some_keys_would_skip_a_stage(
    ledger: MemoryLedger, asked: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    put(ledger, StageRule(stage=Stage.DUAL, **more))

    result = invoke("stage", "advance")
    assert result.exit_code == ExitCode.FAILED
    assert "the others would skip it" in result.stderr
    assert invoke("stage", "advance", "--force").exit_code == ExitCode.DONE
    assert latest(ledger).forced


def test_last_stage_cannot_be_left_even_by_force(ledger: MemoryLedger, asked: list[dict[str, Any]]) -> None:
    put(ledger, StageRule(stage=Stage.PUSH))

    assert "is the last one" in invoke("stage", "advance", "--force").stderr


def test_force_that_was_not_needed_is_not_recorded(ledger: MemoryLedger, asked: list[dict[str, Any]]) -> None:
    put(ledger, SHADOW)
    invoke("stage", "advance", "--force")

    assert not latest(ledger).forced


def test_rollback_asks_for_nothing(ledger: MemoryLedger) -> None:
    put(ledger, StageRule(stage=Stage.LIVE, percent=25), StageRule(stage=Stage.PUSH, task="mail.*"))
    ledger.stages.report_process("host-1", "worker", 0)

    result = invoke("rollback", "--reason", "it is late")
    assert result.exit_code == ExitCode.DONE
    assert settings(ledger) == StageSettings(
        default=StageRule(stage=Stage.DUAL), rules=(StageRule(stage=Stage.RAMPDOWN, task="mail.*"),)
    )
    assert "- default: live for 25 % by job_id, dual for the others\n" in result.stderr
    assert "+ default: dual\n" in result.stderr


def test_rollback_of_some_tasks_to_an_earlier_stage(ledger: MemoryLedger) -> None:
    put(ledger, StageRule(stage=Stage.LIVE))

    assert invoke("rollback", "--task", "mail.*", "--to", "legacy", "--reason", "r").exit_code == ExitCode.DONE
    assert settings(ledger).rules == (StageRule(stage=Stage.LEGACY, task="mail.*"),)
    result = invoke("rollback", "--task", "mail.*", "--to", "dual", "--reason", "r")
    assert result.exit_code == ExitCode.FAILED
    assert "None of these tasks is beyond stage dual" in result.stderr
    assert latest(ledger).number == 2


def test_rollback_releases_what_is_held_back(ledger: MemoryLedger) -> None:
    put(ledger, StageRule(stage=Stage.LIVE))
    held = Copy(
        side=Side.LEGACY, backend="celery", role=Role.SAFETY, state=WriteState.HELD, due_at_ms=ledger.now_ms() + 60_000
    )
    preferred = Copy(side=Side.PUSH, backend="qstash", role=Role.PREFERRED)
    ledger.record([new_dispatch(preferred, held)])

    result = invoke("rollback", "--release-now", "--reason", "r")
    assert "1 safety copies that were held back are due now." in result.stdout
    assert settings(ledger).default.stage is Stage.DUAL
    assert len(ledger.take_due(10, lease_ms=1000)) == 1


def test_rollback_that_changes_nothing_releases_all_the_same(ledger: MemoryLedger) -> None:
    result = invoke("rollback", "--release-now", "--reason", "r")

    assert result.exit_code == ExitCode.DONE
    assert "None of these tasks is beyond stage legacy" in result.stderr
    assert "0 safety copies" in result.stdout


def new_dispatch(*copies: Copy) -> NewDispatch:
    return NewDispatch(
        dispatch_id="d-1",
        job_id="j-1",
        task="mail.send",
        queue="default",
        stage="live",
        copies=copies,
        body=b"{}",
        payload="{}",
        enqueued_at_ms=0,
        max_attempts=3,
        check_in_ms=3_600_000,
        deadline_in_ms=7_200_000,
    )


def test_status_says_whether_every_process_has_seen_the_latest_revision(
    ledger: MemoryLedger, clock: list[float]
) -> None:
    put(ledger, SHADOW)
    ledger.stages.report_process("host-1", "worker", 1)
    clock[0] += 2
    ledger.stages.report_process("host-2", "receiver", 1)
    result = invoke("status")
    assert result.exit_code == ExitCode.DONE
    assert "Revision 1 by ann: because" in result.stdout
    assert "default: shadow" in result.stdout
    assert "Every process goes by the latest revision." in result.stdout

    put(ledger, StageRule(stage=Stage.DUAL))
    ledger.stages.report_process("host-2", "receiver", 2)
    assert invoke("status").exit_code == ExitCode.FAILED
    answer = invoke("status", "--json")
    assert answer.exit_code == ExitCode.FAILED
    status = json.loads(answer.stdout)
    assert status["reached_everybody"] is False
    assert status["revision"]["number"] == 2
    assert status["revision"]["settings"]["default"]["stage"] == "dual"
    assert status["processes"] == [
        {"process_id": "host-2", "kind": "receiver", "revision": 2, "seen_ms_ago": 0, "behind": False},
        {"process_id": "host-1", "kind": "worker", "revision": 1, "seen_ms_ago": 2000, "behind": True},
    ]


def test_status_before_the_first_revision(ledger: MemoryLedger) -> None:
    result = invoke("status")

    assert result.exit_code == ExitCode.DONE
    assert "No revision yet" in result.stdout
    assert json.loads(invoke("status", "--json").stdout) == {
        "revision": None,
        "processes": [],
        "reached_everybody": True,
    }


def test_history_shows_who_and_why_the_newest_first(ledger: MemoryLedger) -> None:
    put(ledger, SHADOW)
    ledger.stages.add(to_json(StageSettings(default=SHADOW)), after=1, author="bob", reason="hurry", forced=True)

    assert invoke("stage", "history").stdout.splitlines() == [
        "2  1970-01-01 00:16:40Z  bob (forced): hurry",
        "1  1970-01-01 00:16:40Z  ann: because",
    ]
    answer = json.loads(invoke("stage", "history", "--limit", "1", "--json").stdout)
    assert [(r["number"], r["author"], r["forced"], r["at_ms"]) for r in answer["revisions"]] == [
        (2, "bob", True, 1_000_000)
    ]


def test_show_explains_the_stage_of_a_job(ledger: MemoryLedger) -> None:
    put(ledger, SHADOW, StageRule(stage=Stage.LIVE, task="mail.*", percent=31, key="user_id"))

    result = invoke("stage", "show", "--task", "mail.send", "--key", "42")
    assert result.stdout.splitlines() == [
        "Revision 1 in the ledger:",
        "mail.*: live for 31 % by user_id, dual for the others",
        "default: shadow",
        "",
        "mail.send: the rule mail.* decides.",
        "Stage live: user_id '42' stands at 30.2021, so at 31 % it is in.",
    ]
    answer = json.loads(invoke("stage", "show", "--task", "mail.send", "--key", "42", "--json").stdout)
    assert (answer["source"], answer["revision"], answer["rule"]["task"]) == ("ledger", 1, "mail.*")
    assert answer["settings"]["default"]["stage"] == "shadow"
    assert answer["decision"]["stage"] == "live"
    assert answer["decision"]["bucket"] == 30.2021
    assert invoke("stage", "show", "--key", "42").exit_code == ExitCode.USAGE


def test_show_works_without_a_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "QUEUEBRIDGE_LEGACY" in invoke("stage", "show").stderr
    monkeypatch.setenv("QUEUEBRIDGE_LEGACY", "rq")
    monkeypatch.setenv("QUEUEBRIDGE_STAGE", "shadow")
    assert invoke("stage", "show").stdout == "From the environment:\ndefault: shadow\n"

    path = tmp_path / "stages.toml"
    path.write_text('[default]\nstage = "push"\n')
    monkeypatch.setenv("QUEUEBRIDGE_STAGE", str(path))
    assert invoke("stage", "show").stdout == "From the file:\ndefault: push\n"
