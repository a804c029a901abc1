"""`queuebridge demo` as a user runs it: real processes, effects counted here once more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import Spawner

QUEUEBRIDGE = [sys.executable, "-m", "queuebridge"]

pytestmark = pytest.mark.timeout(300)

STEPS = {
    "legacy": "legacy",
    "shadow": "shadow",
    "dual": "dual",
    "live": "live",
    "rollback": "legacy",
    "live again": "live",
    "rampdown": "rampdown",
    "push": "push",
}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of files with every kind of content and name."""
    folder = tmp_path / "inputs"
    (folder / "below").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "no newline").write_bytes(b"text")
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 1000)
    (folder / "below" / "ünïcode.txt").write_text("ä\nö\n" * 500)
    for number in range(26):
        (folder / f"file-{number:02}.txt").write_text("line\n" * number)
    return folder


def demo(spawn: Spawner, *arguments: str, **variables: str) -> tuple[int, Any]:
    child = spawn([*QUEUEBRIDGE, "demo", "--json", *arguments], env={**os.environ, **variables}, name="demo")
    status = child.wait(280)
    return status, json.loads(child.stdout)


def assert_all_once(result: Any, names: list[str], jobs: int) -> None:
    assert result["ok"] is True
    assert [backend["name"] for backend in result["backends"]] == names
    for backend in result["backends"]:
        counts = {key: backend[key] for key in ("jobs", "executed", "lost", "duplicated")}
        assert counts == {"jobs": jobs, "executed": jobs, "lost": 0, "duplicated": 0}
        assert backend["throughput_per_s"] > 0
        assert 0 < backend["latency_ms"]["p50"] <= backend["latency_ms"]["p95"]


def assert_migrated(result: Any, legacy: str, files: int) -> None:
    assert result["ok"] is True
    assert result["legacy"] == legacy
    assert {stage["step"]: stage["stage"] for stage in result["stages"]} == STEPS
    assert sum(stage["jobs"] for stage in result["stages"]) == files
    for stage in result["stages"]:
        assert stage["jobs"] == sum(stage["executed_by"].values()) > 0
        assert (stage["lost"], stage["duplicated"]) == (0, 0)
        assert 0 < stage["lag_ms"]["p50"] <= stage["lag_ms"]["p95"]
    assert [backend["name"] for backend in result["backends"]] == [legacy, "qstash"]
    for backend in result["backends"]:
        assert backend["jobs"] == backend["executed"] > 0
        assert (backend["lost"], backend["duplicated"]) == (0, 0)
    assert sum(backend["jobs"] for backend in result["backends"]) == files


def assert_nothing_left(redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        left = [key.decode() for key in client.keys("*")]
        assert not [key for key in left if "queuebridge-demo" in key]
        assert not [key for key in left if key.startswith(("rq:queue:", "rq:job:", "rq:results:", "rq:worker:"))]
        assert not [key for key in left if key.startswith(("{queuebridge}", "unacked"))]
        assert client.smembers("rq:queues") == set()


@pytest.mark.parametrize("legacy", ["celery", "rq"])
def test_every_file_takes_effect_once_on_the_way_through_all_stages(
    spawn: Spawner, redis_url: str, inputs: Path, legacy: str
) -> None:
    # The user's own settings do not matter, and the user's own ledger is left alone.
    foreign = {"QUEUEBRIDGE_LEDGER": "postgresql://127.0.0.1:1/none", "QUEUEBRIDGE_LEGACY": "rq", "QSTASH_TOKEN": "own"}

    status, result = demo(spawn, "--legacy", legacy, "--input", str(inputs), REDIS_URL=redis_url, **foreign)

    assert status == 0
    assert list(result) == ["ok", "legacy", "ledger", "stages", "backends"]
    assert result["ledger"] == "sqlite"
    assert_migrated(result, legacy, 30)
    for stage in result["stages"]:
        # On a slow machine a safety copy may come first.
        if stage["step"] in ("legacy", "shadow", "rollback"):
            assert stage["executed_by"] == {legacy: stage["jobs"], "qstash": 0}
        if stage["step"] in ("rampdown", "push"):
            assert stage["executed_by"] == {legacy: 0, "qstash": stage["jobs"]}
    assert next(stage for stage in result["stages"] if stage["step"] == "dual")["suppressed"] > 0
    assert all(stage["rerun_after_kill"] == 0 for stage in result["stages"])
    assert_nothing_left(redis_url)


@pytest.mark.parametrize("legacy", ["celery", "rq"])
def test_nothing_is_lost_or_doubled_when_processes_are_killed(
    spawn: Spawner, redis_url: str, inputs: Path, legacy: str
) -> None:
    for number in range(30):
        (inputs / f"more-{number:02}.txt").write_text("line\n" * number)

    status, result = demo(
        spawn, "--legacy", legacy, "--chaos", "--seed", "7", "--input", str(inputs), REDIS_URL=redis_url
    )

    assert_migrated(result, legacy, 60)
    assert status == 0
    assert result["chaos"]["seed"] == 7
    assert result["chaos"]["kills"] == {"server": 5, "receiver": 7, "worker": 4}
    assert_nothing_left(redis_url)


def test_ledger_may_be_in_a_redis_of_its_own(spawn: Spawner, redis_url: str, inputs: Path) -> None:
    status, result = demo(spawn, "--ledger", "redis", "--input", str(inputs), "--limit", "16", REDIS_URL=redis_url)

    assert_migrated(result, "celery", 16)
    assert (status, result["ledger"]) == (0, "redis")
    assert_nothing_left(redis_url)


@pytest.mark.parametrize(
    "arguments",
    [("--seed", "1"), ("--backends", "--chaos"), ("--only", "rq", "--ledger", "redis")],
    ids=" ".join,
)
def test_options_that_do_not_belong_together_are_refused(spawn: Spawner, arguments: tuple[str, ...]) -> None:
    child = spawn([*QUEUEBRIDGE, "demo", *arguments], env=dict(os.environ), name="demo")

    assert child.wait(30) == 2
    assert "Error: --" in child.stderr


def test_every_file_takes_effect_once_on_every_backend(spawn: Spawner, redis_url: str, inputs: Path) -> None:
    status, result = demo(spawn, "--backends", "--input", str(inputs), REDIS_URL=redis_url)

    assert list(result) == ["ok", "backends"]
    assert_all_once(result, ["qstash", "celery", "rq"], 30)
    assert status == 0


def test_demo_leaves_no_queue_on_the_users_redis(spawn: Spawner, redis_url: str, inputs: Path) -> None:
    import redis

    demo(spawn, "--input", str(inputs), "--only", "celery", "--only", "rq", REDIS_URL=redis_url)

    with redis.Redis.from_url(redis_url) as client:
        left = [key.decode() for key in client.keys("*")]
    assert not [key for key in left if "queuebridge-demo" in key and not key.startswith("rq:")]
    assert not [key for key in left if key.startswith(("rq:queue:", "rq:job:", "rq:results:"))]


def test_demo_runs_on_an_embedded_redis_where_there_is_none(spawn: Spawner, inputs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-programs"
    empty.mkdir()
    assert shutil.which("redis-server", path=str(empty)) is None

    status, result = demo(spawn, "--input", str(inputs), "--only", "celery", "--only", "rq", PATH=str(empty))

    assert_all_once(result, ["celery", "rq"], 30)
    assert status == 0


def test_user_settings_do_not_reach_the_demo(spawn: Spawner, inputs: Path) -> None:
    status, result = demo(
        spawn,
        *("--input", str(inputs), "--only", "qstash"),
        QUEUEBRIDGE_BACKEND="celery",
        QUEUEBRIDGE_TASKS="no_such_module",
        QUEUEBRIDGE_PREFIX="/elsewhere",
        QUEUEBRIDGE_ENV="production",
        QSTASH_TOKEN="a real token",
        QSTASH_URL="http://127.0.0.1:1",
    )

    assert_all_once(result, ["qstash"], 30)
    assert status == 0


def test_migration_prints_its_steps_for_people(spawn: Spawner, redis_url: str, inputs: Path) -> None:
    child = spawn(
        [*QUEUEBRIDGE, "demo", "--limit", "16", "--input", str(inputs)],
        env={**os.environ, "COLUMNS": "120", "REDIS_URL": redis_url},
        name="demo",
    )

    assert child.wait(200) == 0, child.report()
    assert "Every job took effect exactly once." in child.stdout
    assert "live again" in child.stdout


def test_demo_prints_a_table_for_people(spawn: Spawner, inputs: Path) -> None:
    child = spawn(
        [*QUEUEBRIDGE, "demo", "--only", "qstash", "--limit", "5", "--input", str(inputs)],
        env={**os.environ, "COLUMNS": "100"},
        name="demo",
    )

    assert child.wait(60) == 0
    assert "Every job took effect exactly once." in child.stdout
    assert "latency p95" in child.stdout


@pytest.mark.parametrize("backend", ["celery", "rq"])
def test_unreachable_redis_is_one_line_and_not_a_traceback(backend: str, spawn: Spawner, inputs: Path) -> None:
    child = spawn(
        [*QUEUEBRIDGE, "demo", "--only", backend, "--input", str(inputs)],
        env={**os.environ, "REDIS_URL": "redis://:geheim@127.0.0.1:1/0"},
        name="demo",
    )

    # Sooner than a worker that tries again and again would be given up.
    assert child.wait(20) == 4
    assert child.stderr.count("queuebridge: ") == 1
    assert "cannot be reached" in child.stderr
    assert "geheim" not in child.output


def test_demo_needs_no_proxy_for_its_own_processes(spawn: Spawner, inputs: Path) -> None:
    proxy = "http://127.0.0.1:9"

    status, result = demo(spawn, "--input", str(inputs), "--only", "qstash", http_proxy=proxy, HTTP_PROXY=proxy)

    assert_all_once(result, ["qstash"], 30)
    assert status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("arguments", "moment"),
    [(("--only", "qstash"), "running at"), (("--chaos",), "killed the receiver")],
    ids=["comparison", "migration"],
)
def test_demo_ends_its_processes_when_interrupted(
    spawn: Spawner, redis_url: str, number: signal.Signals, arguments: tuple[str, ...], moment: str
) -> None:
    child = spawn([*QUEUEBRIDGE, "demo", *arguments, "--logs"], env={**os.environ, "REDIS_URL": redis_url}, name="demo")
    child.wait_for_line(moment, 120)

    child.send(number)

    assert child.wait(30) != 0
    assert child.family() == []
    assert_nothing_left(redis_url)
