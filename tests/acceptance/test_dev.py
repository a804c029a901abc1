"""`queuebridge dev` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from processes import ChildProcess, Spawner

QUEUEBRIDGE = [sys.executable, "-m", "queuebridge"]
TASKS = """
from pathlib import Path

from queuebridge import current_job, task

@task(name="dev_tasks.note")
def note(text: str, file: Path) -> None:
    with file.open("a") as stream:
        stream.write(f"{text} over {current_job().backend}\\n")
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dev_tasks.py").write_text(TASKS)
    return tmp_path


def start_dev(spawn: Spawner, project: Path, ports: tuple[int, int], *arguments: str, **variables: str) -> ChildProcess:
    child = spawn(
        [*QUEUEBRIDGE, "dev", "--port", str(ports[0]), "--server-port", str(ports[1]), *arguments],
        env={**os.environ, "QUEUEBRIDGE_TASKS": "dev_tasks", **variables},
        cwd=project,
        name="dev",
    )
    child.wait_for_line("Ctrl-C stops everything", 60)
    return child


def printed_environment(child: ChildProcess) -> dict[str, str]:
    return dict(re.findall(r"^export (\w+)='(.*)'$", child.stdout, re.MULTILINE))


def enqueue(spawn: Spawner, project: Path, environment: dict[str, str], file: Path) -> None:
    arguments = json.dumps({"text": "hello", "file": str(file)})
    child = spawn(
        [*QUEUEBRIDGE, "enqueue", "dev_tasks.note", arguments],
        env={**os.environ, "QUEUEBRIDGE_TASKS": "dev_tasks", **environment},
        cwd=project,
        name="enqueue",
    )
    assert child.wait(30) == 0, child.report()


@pytest.mark.parametrize("backend", ["qstash", "celery", "rq"])
def test_job_runs_with_the_environment_that_dev_prints(
    spawn: Spawner, project: Path, redis_url: str, free_port: Callable[[], int], backend: str
) -> None:
    legacy = {"CELERY_BROKER_URL": redis_url, "REDIS_URL": redis_url}
    dev = start_dev(spawn, project, (free_port(), free_port()), "--backend", backend, **legacy)
    file = project / "notes.txt"

    enqueue(spawn, project, {**legacy, **printed_environment(dev)}, file)

    dev.wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="the effect")
    assert file.read_text() == f"hello over {backend}\n"
    dev.wait_for_line(r"(receiver|worker) \| .*done job=.* task=dev_tasks.note")


def test_receiver_is_ready_and_shows_no_secret(spawn: Spawner, project: Path, free_port: Callable[[], int]) -> None:
    dev = start_dev(spawn, project, (free_port(), free_port()))
    environment = printed_environment(dev)

    with urllib.request.urlopen(f"{environment['QUEUEBRIDGE_PUBLIC_URL']}/queuebridge/ready") as answer:
        text = answer.read().decode()

    assert json.loads(text)["status"] == "ready"
    for name in ("QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"):
        assert environment[name] not in text


def test_ctrl_c_stops_everything(spawn: Spawner, project: Path, free_port: Callable[[], int]) -> None:
    dev = start_dev(spawn, project, (free_port(), free_port()))

    dev.press_ctrl_c()

    assert dev.wait(30) == 0
    assert dev.family() == []


def test_end_of_one_process_stops_the_others(spawn: Spawner, project: Path, free_port: Callable[[], int]) -> None:
    ports = (free_port(), free_port())
    dev = start_dev(spawn, project, ports)
    server = next(pid for pid in dev.family() if str(ports[1]) in Path(f"/proc/{pid}/cmdline").read_text())

    os.kill(server, 9)

    assert dev.wait(30) == 1
    assert "The server ended with status -9" in dev.stderr
    assert dev.family() == []


def test_port_in_use_names_the_option(spawn: Spawner, project: Path, free_port: Callable[[], int]) -> None:
    first = (free_port(), free_port())
    start_dev(spawn, project, first)

    second = spawn(
        [*QUEUEBRIDGE, "dev", "--port", str(free_port()), "--server-port", str(first[1])],
        env=dict(os.environ),
        cwd=project,
        name="second",
    )

    assert second.wait(30) == 3
    assert f"Port {first[1]} is in use. Choose another one with --server-port." in second.stderr


def ledger(spawn: Spawner, project: Path) -> dict[str, str]:
    """Return the environment of a fresh ledger."""
    environment = {"QUEUEBRIDGE_LEDGER": f"sqlite:///{project / 'ledger.db'}"}
    child = spawn([*QUEUEBRIDGE, "ledger", "upgrade"], env={**os.environ, **environment}, cwd=project, name="upgrade")
    assert child.wait(30) == 0, child.report()
    return environment


@pytest.mark.parametrize(("stage", "runs_it"), [("legacy", "rq"), ("live", "qstash")])
def test_migration_has_the_worker_of_the_old_backend_and_the_receiver(
    spawn: Spawner, project: Path, redis_url: str, free_port: Callable[[], int], stage: str, runs_it: str
) -> None:
    migration = {
        **ledger(spawn, project),
        "QUEUEBRIDGE_LEGACY": "rq",
        "QUEUEBRIDGE_STAGE": stage,
        "REDIS_URL": redis_url,
    }
    dev = start_dev(spawn, project, (free_port(), free_port()), **migration)
    environment = printed_environment(dev)
    file = project / "notes.txt"

    enqueue(spawn, project, {**migration, **environment}, file)

    dev.wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="the effect")
    assert file.read_text() == f"hello over {runs_it}\n"
    # The stage selects the backend, and a setting that does would contradict it.
    assert "QUEUEBRIDGE_BACKEND" not in environment


def test_backend_cannot_be_chosen_in_a_migration(spawn: Spawner, project: Path) -> None:
    child = spawn(
        [*QUEUEBRIDGE, "dev", "--backend", "rq"],
        env={**os.environ, "QUEUEBRIDGE_LEGACY": "rq"},
        cwd=project,
        name="dev",
    )

    assert child.wait(30) == 3
    assert "not --backend" in child.stderr


def test_dev_publishes_what_could_not_be_published_where_there_is_no_worker(
    spawn: Spawner, project: Path, free_port: Callable[[], int]
) -> None:
    variables = ledger(spawn, project)
    dev = start_dev(spawn, project, (free_port(), free_port()), "--backend", "qstash", **variables)
    file = project / "notes.txt"
    nowhere = {"QSTASH_URL": f"http://127.0.0.1:{free_port()}", "QUEUEBRIDGE_ON_PUBLISH_ERROR": "spool"}

    enqueue(spawn, project, {**variables, **printed_environment(dev), **nowhere}, file)

    dev.wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="the effect")
    assert file.read_text() == "hello over qstash\n"
    dev.wait_for_line(r"reconcile \| .*published job=")


def test_keys_rotated_in_an_earlier_run_are_those_of_the_receiver_and_of_the_printed_environment(
    spawn: Spawner, project: Path, free_port: Callable[[], int]
) -> None:
    database = ("--db", str(project / "messages.db"))
    dev = start_dev(spawn, project, (free_port(), free_port()), *database)
    environment = printed_environment(dev)
    for _ in range(2):  # after one the old pair would still verify
        answer = httpx.post(
            f"{environment['QSTASH_URL']}/v2/keys/rotate",
            headers={"Authorization": f"Bearer {environment['QSTASH_TOKEN']}"},
            trust_env=False,
        )
    dev.press_ctrl_c()
    dev.wait(30)

    dev = start_dev(spawn, project, (free_port(), free_port()), *database)
    environment = printed_environment(dev)

    keys = {name: environment[f"QSTASH_{name.upper()}_SIGNING_KEY"] for name in ("current", "next")}
    assert keys == answer.json()
    file = project / "notes.txt"
    enqueue(spawn, project, environment, file)
    dev.wait_until(file.exists, what="the effect")
