"""`queuebridge ledger`: upgrade, check and purge, over a real file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ledgers import DONE, GRACE, HOUR, claim_request, new_dispatch

from queuebridge.cli.app import ExitCode, root
from queuebridge.ledger import Granted, NewDispatch
from queuebridge.storage.sql import SqlLedger

DAY = 24 * HOUR

Invoke = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", url)
    return url


@pytest.fixture
def ledger_command() -> Invoke:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(root, ["ledger", *arguments], catch_exceptions=False)

    return invoke


def settled(url: str, age_ms: int) -> NewDispatch:
    """Record a dispatch that ended some time ago."""
    dispatch = new_dispatch()
    with closing(SqlLedger.from_url(url, clock_offset_ms=lambda: -age_ms)) as ledger:
        ledger.record([dispatch])
        granted = ledger.claim(claim_request(dispatch), grace_ms=GRACE)
        assert isinstance(granted, Granted)
        assert ledger.settle(dispatch.dispatch_id, granted.token, DONE)
    return dispatch


def test_upgrade_makes_the_ledger_usable(url: str, ledger_command: Invoke) -> None:
    before = ledger_command("check")
    upgraded = ledger_command("upgrade")
    after = ledger_command("check")

    assert before.exit_code == ExitCode.CONFIGURATION
    assert "queuebridge ledger upgrade" in before.stderr
    assert upgraded.exit_code == ExitCode.DONE
    assert (after.exit_code, after.stdout) == (ExitCode.DONE, "ok   SQLite file ledger.db, schema 0001\n")


def test_purge_forgets_what_ended_long_ago_in_batches(url: str, ledger_command: Invoke) -> None:
    ledger_command("upgrade")
    old = [settled(url, 31 * DAY) for _ in range(5)]
    recent = settled(url, 29 * DAY)

    result = ledger_command("purge", "--older-than", "30d", "--batch", "2")

    assert (result.exit_code, result.stdout) == (ExitCode.DONE, "5 executions forgotten\n")
    with closing(SqlLedger.from_url(url)) as ledger:
        assert ledger.executions.get(recent.dispatch_id) is not None
        assert [ledger.executions.get(dispatch.dispatch_id) for dispatch in old] == [None] * 5


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1 week", ""])
def test_impossible_age_is_an_error_of_use(url: str, ledger_command: Invoke, age: str) -> None:
    assert ledger_command("purge", "--older-than", age).exit_code == ExitCode.USAGE


def test_ledger_that_cannot_be_reached_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, ledger_command: Invoke
) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", "postgresql://me:secret-word@127.0.0.1:1/ledger")

    result = ledger_command("check")

    assert result.exit_code == ExitCode.UNREACHABLE
    assert "secret-word" not in result.output


def test_no_ledger_says_what_to_set(ledger_command: Invoke) -> None:
    result = ledger_command("check")

    assert result.exit_code == ExitCode.CONFIGURATION
    assert "QUEUEBRIDGE_LEDGER" in result.stderr
