"""A change of the stages, in real processes over real ledgers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ledgers import SHARED_STORES, installed
from processes import SUPPORT, ChildProcess, Spawner, wait_until

Command = Callable[..., ChildProcess]

SECONDS = 5


@pytest.fixture(params=[kind for kind in SHARED_STORES if installed(kind)])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of producers and commands that share a ledger."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = str(request.getfixturevalue(f"{request.param}_url"))
    return {"QUEUEBRIDGE_LEDGER": url, "QUEUEBRIDGE_LEGACY": "celery", "QUEUEBRIDGE_STAGE": "ledger"}


@pytest.fixture
def command(environment: dict[str, str], spawn: Spawner) -> Command:
    """Run `queuebridge ...` to its end."""

    def run(*arguments: str) -> ChildProcess:
        child = spawn([sys.executable, "-m", "queuebridge", *arguments], env=environment, name=arguments[0])
        child.wait(60)
        return child

    return run


def test_rollback_is_in_force_in_every_process_within_5_seconds(
    environment: dict[str, str], command: Command, spawn: Spawner
) -> None:
    assert command("ledger", "upgrade").returncode == 0
    assert command("stage", "set", "live", "--reason", "begin", "--yes").returncode == 0
    script = str(SUPPORT / "stage_process.py")
    producer = spawn([sys.executable, script, "producer", "fork"], env=environment, name="producer")
    worker = spawn([sys.executable, script, "worker"], env=environment, name="worker")
    names = {"producer": producer, "producer-child": producer, "worker": worker}
    for name, process in names.items():
        process.wait_for_line(f"^{name} revision 1 stage live at ", timeout=40)

    before = time.time()
    assert command("rollback", "--reason", "late").returncode == 0
    added = json.loads(command("stage", "history", "--json").stdout)["revisions"][0]["at_ms"] / 1000
    # The ledger's clock is that of this machine.
    assert added >= before - 1
    for name, process in names.items():
        seen = float(process.wait_for_line(rf"^{name} revision 2 stage dual at ([\d.]+)$", timeout=40)[1])
        assert seen - added < SECONDS, f"{name} needed {seen - added:g} s"

    status = wait_until(lambda: command("status", "--json") if everybody(command) else None, 40)
    answer = json.loads(status.stdout)
    assert answer["reached_everybody"]
    assert sorted((p["kind"], p["revision"]) for p in answer["processes"]) == [
        *(("producer", 2), ("producer", 2), ("worker", 2))
    ]

    worker.terminate()
    assert [p["kind"] for p in json.loads(command("status", "--json").stdout)["processes"]] == ["producer", "producer"]


def everybody(command: Command) -> bool:
    """Say whether three processes have reported, and all go by the latest revision."""
    child = command("status", "--json")
    return child.returncode == 0 and len(json.loads(child.stdout)["processes"]) == 3
