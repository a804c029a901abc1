"""Stages with two copies, and real processes of RQ's own worker that would run a job a second time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result
from processes import ChildProcess, Spawner
from rq_program import NAME

from queuebridge.cli.app import ExitCode, root
from queuebridge.cli.stages import kept_of, open_ledger
from queuebridge.stages import Stage

Start = Callable[..., ChildProcess]
OURS = "queuebridge.backends.rq.Worker"


@pytest.fixture(autouse=True)
def _environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_URL": redis_url,
        "QUEUEBRIDGE_LEDGER": redis_url,
        "QUEUEBRIDGE_LEGACY": "rq",
        "QUEUEBRIDGE_STAGE": "ledger",
        "QSTASH_TOKEN": "t",
        "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def start(spawn: Spawner, redis_url: str) -> Start:
    """Start `rq worker`, with RQ's own worker unless told otherwise."""

    def run(*queues: str, worker_class: str = "rq.Worker", name: str = "stranger", **env: str | None) -> ChildProcess:
        command = [Path(sys.executable).with_name("rq"), "worker", "--url", redis_url, "-w", worker_class]
        worker = spawn([*command, "--name", name, *(queues or (NAME,))], env=env, name=name)
        worker.wait_for_line("[Ll]istening on|started with")
        return worker

    return run


def invoke(*arguments: str) -> Result:
    """Run `queuebridge ...`."""
    return CliRunner().invoke(root, list(arguments), catch_exceptions=False)


def set_stage(stage: str, *more: str) -> Result:
    """Run `queuebridge stage set`."""
    return invoke("stage", "set", stage, "--yes", "--reason", "r", *more)


def stage_now() -> Stage:
    """Return the stage that the ledger has for everything else."""
    with open_ledger() as ledger:
        return kept_of(ledger.stages.current()).settings.default.stage


@pytest.mark.parametrize("stage", ["dual", "live", "rampdown", "push"])
def test_stage_is_refused_and_stays_while_a_worker_of_rqs_listens(start: Start, stage: str) -> None:
    assert set_stage("shadow").exit_code == ExitCode.DONE
    start(worker_class=OURS, name="ours")
    start()

    refused = set_stage(stage)

    assert refused.exit_code == ExitCode.FAILED
    assert "1 workers take jobs without claiming them" in refused.stderr
    assert "stranger" in refused.stderr
    assert "ours" not in refused.stderr
    assert stage_now() is Stage.SHADOW


def test_stage_is_set_when_the_worker_has_ended(start: Start) -> None:
    start(worker_class=OURS, name="ours")
    stranger = start()
    assert set_stage("dual").exit_code == ExitCode.FAILED

    stranger.terminate()

    assert set_stage("dual").exit_code == ExitCode.DONE
    assert stage_now() is Stage.DUAL


def test_worker_that_was_killed_counts_until_redis_forgets_it(start: Start, redis_url: str) -> None:
    stranger = start()
    stranger.kill()
    assert set_stage("dual").exit_code == ExitCode.FAILED

    # As it expires.
    with redis.Redis.from_url(redis_url) as client:
        client.delete("rq:worker:stranger")

    assert set_stage("dual").exit_code == ExitCode.DONE


def test_stages_with_one_copy_are_none_of_its_business(start: Start) -> None:
    start()

    assert set_stage("shadow").exit_code == ExitCode.DONE
    assert set_stage("legacy").exit_code == ExitCode.DONE


def test_queues_that_it_does_not_listen_to_may_go_on(start: Start) -> None:
    start("reports", "mail.slow")

    assert set_stage("dual", "--queue", "mail").exit_code == ExitCode.DONE
    assert set_stage("dual", "--queue", "mail.*").exit_code == ExitCode.FAILED
    assert set_stage("dual", "--task", "shop.jobs.*").exit_code == ExitCode.FAILED


@pytest.mark.parametrize(
    "unset",
    [("QUEUEBRIDGE_LEDGER", "QUEUEBRIDGE_STAGE"), ("QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_STAGE", "QUEUEBRIDGE_LEDGER")],
    ids=["no ledger", "no bridge"],
)
def test_worker_of_ours_without_a_ledger_is_refused_too(start: Start, unset: tuple[str, ...]) -> None:
    start(worker_class=OURS, name="ours", **dict.fromkeys(unset))

    refused = set_stage("dual")

    assert (refused.exit_code, "ours" in refused.stderr) == (ExitCode.FAILED, True)


def test_force_goes_on_and_the_history_shows_it(start: Start) -> None:
    start()

    assert set_stage("dual", "--force").exit_code == ExitCode.DONE

    with open_ledger() as ledger:
        assert ledger.stages.history(1)[0].forced


def test_advance_is_refused_whatever_the_evidence(start: Start) -> None:
    set_stage("shadow")
    start()

    refused = invoke("stage", "advance")

    assert refused.exit_code == ExitCode.FAILED
    assert "1 workers take jobs without claiming them" in refused.stderr
    assert stage_now() is Stage.SHADOW


def test_rollback_is_never_refused_but_warns(start: Start) -> None:
    set_stage("live")
    start()

    done = invoke("rollback", "--reason", "r")

    assert (done.exit_code, stage_now()) == (ExitCode.DONE, Stage.DUAL)
    assert "Warning: 1 workers take jobs without claiming them" in done.stderr
    assert "Warning" not in invoke("rollback", "--reason", "r").stderr
