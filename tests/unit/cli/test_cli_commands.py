"""The command line in this process: errors as one line, exit codes, JSON with stable keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from queuebridge.cli.app import COMMANDS, ExitCode, root

TASKS = """
from queuebridge import task

@task(name="cli_tasks.greet", queue="mail", retries=1, timeout=5, aliases=["cli_tasks.hello"])
def greet(name: str) -> str:
    "Say hello."
    return f"hello {name}"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    (tmp_path / "cli_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("QUEUEBRIDGE_TASKS", "cli_tasks")
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")
    return CliRunner()


def invoke(runner: CliRunner, *arguments: str) -> Result:
    return runner.invoke(root, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = invoke(CliRunner(), name, "--help")

    assert result.exit_code == ExitCode.DONE
    assert len(result.stdout.splitlines()) > 3


def test_every_command_is_listed_with_a_summary() -> None:
    result = invoke(CliRunner(), "--help")

    context = click.Context(root)
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(20).split()[0] in result.stdout


def test_unknown_command_is_a_usage_error() -> None:
    assert invoke(CliRunner(), "enqeue").exit_code == ExitCode.USAGE


def test_tasks_prints_each_task_as_json(run: CliRunner) -> None:
    result = invoke(run, "tasks", "--json")

    tasks = {task["name"]: task for task in json.loads(result.stdout)["tasks"]}
    assert tasks["cli_tasks.greet"] == {
        "name": "cli_tasks.greet",
        "queue": "mail",
        "retries": 1,
        "timeout_seconds": 5.0,
        "aliases": ["cli_tasks.hello"],
        "description": "Say hello.",
    }


def test_enqueue_prints_the_receipt_as_json(run: CliRunner) -> None:
    result = invoke(run, "enqueue", "cli_tasks.greet", '{"name": "you"}', "--task-id", "job-1", "--json")

    receipt = json.loads(result.stdout)
    assert result.exit_code == ExitCode.DONE
    assert (receipt["job_id"], receipt["task"], receipt["queue"]) == ("job-1", "cli_tasks.greet", "mail")
    assert receipt["writes"][0]["backend"] == "inline"


def test_enqueue_takes_positional_arguments_as_an_array(run: CliRunner) -> None:
    result = invoke(run, "enqueue", "cli_tasks.greet", '["you"]')

    assert result.exit_code == ExitCode.DONE
    assert result.stdout.startswith("inline has job ")


@pytest.mark.parametrize("arguments", ["{", "3", '"text"'])
def test_enqueue_refuses_what_is_no_json_object_or_array(run: CliRunner, arguments: str) -> None:
    result = invoke(run, "enqueue", "cli_tasks.greet", arguments)

    assert result.exit_code == ExitCode.USAGE
    assert "ARGUMENTS" in result.stderr


def test_invalid_arguments_are_one_line_and_status_1(run: CliRunner) -> None:
    result = invoke(run, "enqueue", "cli_tasks.greet", "{}")

    assert result.exit_code == ExitCode.FAILED
    assert result.stderr.startswith("queuebridge: Invalid arguments for task 'cli_tasks.greet'")
    assert len(result.stderr.splitlines()) == 1


def test_configuration_error_has_status_3(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "qstsh")

    result = invoke(run, "check")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "Did you mean 'qstash'?" in result.stderr


def test_unreachable_backend_has_status_4(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "rq")
    monkeypatch.setenv("REDIS_URL", "redis://:geheim@127.0.0.1:1/0")

    checked = invoke(run, "check")
    enqueued = invoke(run, "enqueue", "cli_tasks.greet", '["you"]')
    worker = invoke(run, "worker")

    assert {result.exit_code for result in (checked, enqueued, worker)} == {ExitCode.UNREACHABLE}
    assert "FAIL rq: rq: it cannot be reached" in checked.stdout
    assert worker.stderr.startswith("queuebridge: rq: it cannot be reached")
    assert "geheim" not in checked.output + enqueued.output + worker.output


def test_check_says_what_the_receiver_lacks(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "qstash")
    monkeypatch.setenv("QSTASH_TOKEN", "secret-token")
    monkeypatch.setenv("QSTASH_URL", "http://127.0.0.1:1")

    result = invoke(run, "check", "--json")

    checks = json.loads(result.stdout)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert not checks["receiver"]["ok"]
    assert "QSTASH_CURRENT_SIGNING_KEY" in checks["receiver"]["detail"]
    assert "QUEUEBRIDGE_PUBLIC_URL" in checks["receiver"]["detail"]
    assert "secret-token" not in result.output


@pytest.mark.parametrize("backend", ["qstash", "inline"])
def test_worker_is_refused_for_a_backend_without_one(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", backend)
    monkeypatch.setenv("QSTASH_TOKEN", "token")

    result = invoke(run, "worker")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "needs no worker" in result.stderr


def test_missing_task_module_names_the_variable(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_TASKS", "no_such_module")

    result = invoke(run, "tasks")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "QUEUEBRIDGE_TASKS" in result.stderr


def test_devserver_refuses_a_file_and_memory_together(run: CliRunner) -> None:
    result = invoke(run, "devserver", "--memory", "--db", "x.db")

    assert result.exit_code == ExitCode.USAGE


def test_devserver_says_what_is_wrong_with_a_resolution(run: CliRunner) -> None:
    result = invoke(run, "devserver", "--port", "0", "--resolve", "api.example.com")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "--resolve 'api.example.com': there is no '='" in result.stderr


def test_dev_is_refused_in_production(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_ENV", "production")

    result = invoke(run, "dev", "--backend", "qstash")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "production" in result.stderr


def test_verbose_shows_the_traceback(run: CliRunner) -> None:
    result = invoke(run, "-v", "enqueue", "cli_tasks.greet", "{}")

    assert "Traceback" in result.stderr


def test_qstash_without_a_token_names_the_variable(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "qstash")

    result = invoke(run, "enqueue", "cli_tasks.greet", '["you"]')

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "QSTASH_TOKEN" in result.stderr
    assert "queuebridge dev" in result.stderr
