"""`queuebridge report` and `queuebridge jobs`: JSON with stable keys, tables, exit statuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from histories import HOUR_MS, History

from queuebridge.cli import reading
from queuebridge.cli.app import ExitCode, root
from queuebridge.ledger import Granted, State
from queuebridge.stages import Side

LEGACY, PUSH = Side.LEGACY, Side.PUSH

LAG_KEYS = ["count", "p50", "p95", "p99"]
SIDE_KEYS = ["written", "unknown", "failed", "planned", "held", "delivered", "missing", "lag_ms"]
REPORT_KEYS = [
    *("stage", "task", "jobs", "retried", "done", "failed", "quarantined", "expired", "cancelled", "open", "lost"),
    *("legacy", "push", "executed_by", "suppressed", "busy", "arrived_twice", "unsuppressed", "safety_ran"),
    *("safety_first", "late", "stale_settles", "open_legacy", "lag_ms", "shadow", "next_stage", "ready", "reasons"),
]
SHADOW_KEYS = ["arrived", "missing", "invalid", "different", "same", "uncompared", "unsampled", "lag_ms"]
JOB_KEYS = [
    *("dispatch_id", "job_id", "task", "queue", "stage", "state", "attempts", "max_attempts", "copies", "epoch"),
    *("token", "owner", "lease_until_ms", "retry_at_ms", "deadline_ms", "enqueued_at_ms", "not_before_ms"),
    *("expires_at_ms", "accepted_at_ms", "started_at_ms", "finished_at_ms", "executed_by", "executed_role"),
    *("payload", "user_id", "organization_id", "result", "error", "traceback", "stale_settles", "digest"),
    "next_check_at_ms",
]
COPY_KEYS = ["side", "backend", "role", "state", "due_at_ms", "message_id", "error"]
DELIVERY_KEYS = [
    *("backend", "message_id", "side", "role", "at_ms", "lag_ms", "outcome", "attempt", "digest", "problem"),
]
STATISTICS_KEYS = [
    *("task", "total", "states", "success_rate", "duration_ms", "average_duration_ms", "average_queue_ms"),
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), catch_exceptions=False)


def printed(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == ExitCode.DONE, result.stderr
    return json.loads(result.stdout)


def rows(text: str) -> list[dict[str, str]]:
    head, *lines = (line.split("\t") for line in text.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def two_stages(history: History) -> None:
    history.record("1", stage="shadow")
    history.run("1", LEGACY)
    history.shadow("1")
    history.wait(HOUR_MS)
    history.record("2", stage="live", task="files.scan", deadline_in_ms=10)
    history.wait(11)


# --- report


def test_report_has_stable_keys(history: History) -> None:
    two_stages(history)

    answer = printed("report")

    assert list(answer) == ["now_ms", "since_ms", "reports"]
    assert (answer["now_ms"], answer["since_ms"]) == (history.now_ms, None)
    for one in answer["reports"]:
        assert list(one) == REPORT_KEYS
        assert list(one["legacy"]) == list(one["push"]) == SIDE_KEYS
        assert list(one["lag_ms"]) == list(one["push"]["lag_ms"]) == list(one["shadow"]["lag_ms"]) == LAG_KEYS
        assert list(one["shadow"]) == SHADOW_KEYS


def test_report_says_what_stands_between_a_task_and_its_next_stage(history: History) -> None:
    two_stages(history)

    shadow, live = printed("report")["reports"]

    assert (shadow["stage"], shadow["executed_by"], shadow["shadow"]["same"]) == ("shadow", {"celery": 1}, 1)
    assert (shadow["next_stage"], shadow["ready"]) == ("dual", False)
    assert shadow["reasons"] == ["Shadow copies that have arrived: 1; wanted: at least 100."]
    assert (live["next_stage"], live["lost"]) == ("rampdown", 1)


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        (["--task", "mail.*"], ["mail.send"]),
        (["--stage", "live"], ["files.scan"]),
        (["--since", "30m"], ["files.scan"]),
        (["--since", "1d2h"], ["mail.send", "files.scan"]),
    ],
)
def test_report_is_of_what_was_asked_for(history: History, options: list[str], tasks: list[str]) -> None:
    two_stages(history)

    assert [one["task"] for one in printed("report", *options)["reports"]] == tasks


def test_report_for_people_has_two_tables_and_the_reasons(history: History) -> None:
    two_stages(history)

    result = invoke("report")

    jobs, copies, readiness = result.stdout.split("\n\n")
    assert [(row["stage"], row["jobs"], row["lost"], row["executed by"]) for row in rows(jobs)] == [
        ("shadow", "1", "0", "celery 1"),
        ("live", "1", "1", "-"),
    ]
    assert [(row["copies"], row["written"], row["arrived"], row["invalid"]) for row in rows(copies)] == [
        ("legacy", "1", "1", "-"),
        ("push", "1", "1", "0"),
        ("legacy", "1", "0", "-"),
        ("push", "1", "0", "-"),
    ]
    assert readiness.splitlines()[:2] == [
        "mail.send: not ready for dual",
        "  Shadow copies that have arrived: 1; wanted: at least 100.",
    ]


def test_report_of_the_last_stage_has_no_next_one(history: History) -> None:
    history.record("1", stage="push")

    assert printed("report")["reports"][0]["next_stage"] is None
    assert "ready" not in invoke("report").stdout


def test_empty_report_says_so(history: History) -> None:
    result = invoke("report")

    assert (result.exit_code, result.stdout) == (ExitCode.DONE, "")
    assert "no such jobs" in result.stderr
    assert printed("report")["reports"] == []


@pytest.mark.parametrize("duration", ["24", "h", "1w", "-1h", "1.5h", "24h ", "1h 1m"])
def test_impossible_length_of_time_is_a_usage_error(history: History, duration: str) -> None:
    result = invoke("report", "--since", duration)

    assert result.exit_code == ExitCode.USAGE
    assert "is no length of time" in result.stderr


@pytest.mark.parametrize("command", [["report"], ["jobs", "list"], ["jobs", "stats"], ["jobs", "show", "x"]])
def test_without_a_ledger_the_setting_is_named(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUEUEBRIDGE_LEDGER", raising=False)

    result = invoke(*command)

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "QUEUEBRIDGE_LEDGER" in result.stderr


def test_ledger_out_of_reach_has_status_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", "postgresql://user:geheim@127.0.0.1:1/db")

    result = invoke("report")

    assert result.exit_code == ExitCode.UNREACHABLE
    assert "geheim" not in result.stderr


# --- jobs


def several(history: History) -> None:
    history.record("done", stage="dual")
    history.run("done", LEGACY, took_ms=40)
    history.wait(HOUR_MS)
    history.record("failed", stage="live", task="files.scan")
    history.run("failed", PUSH, state=State.FAILED)
    history.record("open", stage="dual")


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ([], ["job-open", "job-failed", "job-done"]),
        (["--limit", "2"], ["job-open", "job-failed"]),
        (["--task", "files.scan"], ["job-failed"]),
        (["--state", "done"], ["job-done"]),
        (["--state", "done", "--state", "accepted"], ["job-open", "job-done"]),
        (["--stage", "dual"], ["job-open", "job-done"]),
        (["--since", "90s"], ["job-open", "job-failed"]),
    ],
)
def test_jobs_are_listed_the_newest_first(history: History, options: list[str], jobs: list[str]) -> None:
    several(history)

    answer = printed("jobs", "list", *options)

    assert list(answer) == ["jobs"]
    assert [job["job_id"] for job in answer["jobs"]] == jobs


def test_jobs_have_stable_keys(history: History) -> None:
    several(history)

    for job in printed("jobs", "list")["jobs"]:
        assert list(job) == JOB_KEYS
        assert [list(copy) for copy in job["copies"]] == [COPY_KEYS, COPY_KEYS]


def test_jobs_are_listed_for_people(history: History) -> None:
    several(history)

    listed = rows(invoke("jobs", "list").stdout)

    assert [(row["job id"], row["state"], row["attempts"], row["executed by"], row["took ms"]) for row in listed] == [
        ("job-open", "accepted", "0/3", "-", "-"),
        ("job-failed", "failed", "1/3", "qstash", "0"),
        ("job-done", "done", "1/3", "celery", "40"),
    ]
    assert listed[1]["error"] == "ValueError: no"


def test_failed_jobs_are_those_that_failed_expired_or_were_quarantined(history: History) -> None:
    several(history)
    history.record("expired", expires_in_ms=1)
    history.record("quarantined", max_attempts=1)
    history.arrive("quarantined", LEGACY, lease_ms=1)
    history.wait(2)
    history.arrive("expired", LEGACY)
    history.arrive("quarantined", LEGACY)

    def failed(*options: str) -> list[str]:
        return [job["job_id"] for job in printed("jobs", "failed", *options)["jobs"]]

    assert failed() == ["job-quarantined", "job-expired", "job-failed"]
    assert failed("--limit", "1") == ["job-quarantined"]
    assert failed("--task", "files.scan", "--since", "1h") == ["job-failed"]


def test_job_is_shown_with_its_executions_and_deliveries(history: History) -> None:
    history.record("1", job_id="job")
    history.run("1", LEGACY, state=State.RETRIED)
    history.arrive("1", PUSH)
    history.record("2", job_id="job")

    answer = printed("jobs", "show", "job")

    assert list(answer) == ["job_id", "executions"]
    assert [one["dispatch_id"] for one in answer["executions"]] == ["1", "2"]
    first, second = answer["executions"]
    assert list(first) == [*JOB_KEYS, "deliveries"]
    assert [list(delivery) for delivery in first["deliveries"]] == [DELIVERY_KEYS, DELIVERY_KEYS]
    assert [delivery["outcome"] for delivery in first["deliveries"]] == ["granted", "suppressed"]
    assert (first["state"], first["copies"][0]["role"], second["deliveries"]) == ("retried", "preferred", [])


def test_job_is_shown_for_people(history: History) -> None:
    several(history)

    shown = invoke("jobs", "show", "job-failed").stdout

    assert shown.startswith("dispatch failed of job job-failed\n")
    for line in (
        "  state:         failed",
        '  arguments:     {"to": "you"}',
        "  error:         ValueError: no",
        "  legacy copy:   safety on celery, written",
        "Traceback: no",
    ):
        assert line in shown.splitlines()
    assert "qstash\tpush\tpreferred\tgranted\t1\t0\tmessage-push\t-" in shown


@pytest.mark.parametrize("command", ["show", "cancel"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_unknown_job_has_status_1(history: History, command: str, options: list[str]) -> None:
    result = invoke("jobs", command, "nowhere", *options)

    assert (result.exit_code, result.stdout) == (ExitCode.FAILED, "")
    assert "no job 'nowhere'" in result.stderr


def test_lists_without_jobs_say_so(history: History) -> None:
    for name, key in (("list", "jobs"), ("failed", "jobs"), ("stats", "tasks")):
        result = invoke("jobs", name)

        assert (result.exit_code, result.stdout) == (ExitCode.DONE, "")
        assert "no such jobs" in result.stderr
        assert printed("jobs", name) == {key: []}


def test_statistics_have_stable_keys(history: History) -> None:
    several(history)

    answer = printed("jobs", "stats")

    assert list(answer) == ["tasks"]
    files, mail = answer["tasks"]
    assert list(files) == list(mail) == STATISTICS_KEYS
    assert list(mail["duration_ms"]) == LAG_KEYS
    assert sorted(mail["states"]) == sorted(state.value for state in State)
    assert (files["task"], files["success_rate"]) == ("files.scan", 0.0)
    assert (mail["total"], mail["success_rate"], mail["average_duration_ms"]) == (2, 1.0, 40.0)


def test_statistics_are_of_what_was_asked_for(history: History) -> None:
    several(history)

    assert [one["total"] for one in printed("jobs", "stats", "--task", "mail.*")["tasks"]] == [2]
    assert [one["total"] for one in printed("jobs", "stats", "--task", "mail.*", "--since", "1s")["tasks"]] == [1]


def test_statistics_are_shown_for_people(history: History) -> None:
    several(history)

    files, mail = rows(invoke("jobs", "stats").stdout)

    assert (files["task"], files["failed"], files["success"], files["duration p95"]) == (
        "files.scan",
        "1",
        "0.00%",
        "0",
    )
    assert (mail["total"], mail["done"], mail["other"], mail["success"]) == ("2", "1", "1", "100.00%")
    assert (mail["duration p50"], mail["average"], mail["average in queue"]) == ("40", "40.0", "0.0")


def test_cancelled_job_does_not_run(history: History) -> None:
    history.record("1", job_id="job")

    assert printed("jobs", "cancel", "job") == {"job_id": "job", "cancelled": 1, "running": 0, "state": "cancelled"}

    assert not isinstance(history.arrive("1", LEGACY), Granted)
    again = invoke("jobs", "cancel", "job")
    assert (again.exit_code, again.stdout) == (ExitCode.DONE, "job was cancelled before.\n")


def test_running_job_is_left_alone_with_status_1(history: History) -> None:
    history.record("1", job_id="job")
    history.arrive("1", LEGACY)

    result = invoke("jobs", "cancel", "job")

    assert result.exit_code == ExitCode.FAILED
    assert "is running" in result.stderr
    assert json.loads(invoke("jobs", "cancel", "job", "--json").stdout)["running"] == 1


def test_job_that_has_ended_cannot_be_cancelled(history: History) -> None:
    history.record("1", job_id="job")
    history.run("1", LEGACY)

    result = invoke("jobs", "cancel", "job")

    assert result.exit_code == ExitCode.FAILED
    assert result.stderr == "job has ended already: done.\n"


def test_commands_read_a_real_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    assert invoke("ledger", "upgrade").exit_code == ExitCode.DONE

    assert printed("report")["reports"] == []
    assert printed("jobs", "stats") == {"tasks": []}


# --- tables


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_on_a_terminal_has_a_frame_and_takes_nothing_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)

    reading.print_table(["a", "b"], [["[red]x", None]])

    assert "┃" in terminal.getvalue()
    assert "[red]x" in terminal.getvalue()


def test_table_for_programs_has_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    reading.print_table(["a", "b"], [["two\nlines\tand a tab", 1]])

    assert capsys.readouterr().out == "a\tb\ntwo lines and a tab\t1\n"
