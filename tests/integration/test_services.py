"""What other tests rely on: services isolated and cleaned up, child processes awaited and ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import psycopg
import pytest
import redis
from postgres_service import PostgresService
from processes import Spawner, answers, child_environment, wait_until
from rabbitmq_service import RabbitService
from redis_service import RedisService
from services import Service, ServiceUnavailableError, provide

LEAVES_DATA_BEHIND = """
import signal, sys, redis, redis_service
with redis_service.RedisService(sys.argv[1]).fresh() as url:
    redis.Redis.from_url(url).set("left", "behind")
    print(url, flush=True)
    signal.pause()
"""
KINDS = [RedisService, RabbitService, PostgresService]


def ids(kind: type[Service]) -> str:
    return kind.name


@pytest.fixture
def existing_redis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RedisService]:
    """A Redis that the tests take for somebody else's."""
    # Where the lock files go.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    try:
        own = RedisService.start()
    except ServiceUnavailableError as error:
        pytest.skip(str(error))
    yield RedisService(own.url)
    own.stop()


def test_redis_database_is_empty_and_emptied_afterwards(existing_redis: RedisService) -> None:
    with existing_redis.fresh() as url, redis.Redis.from_url(url) as client:
        before = client.dbsize()
        client.set("left", "behind")

    with redis.Redis.from_url(url) as client:
        assert (before, client.dbsize()) == (0, 0)


def test_two_users_of_an_existing_redis_get_different_databases(existing_redis: RedisService) -> None:
    with existing_redis.fresh() as one, existing_redis.fresh() as other:
        assert one != other


def test_data_of_others_in_an_existing_redis_survives(existing_redis: RedisService) -> None:
    for number in (0, 9):
        with redis.Redis.from_url(f"{existing_redis.url}/{number}") as client:
            client.set("precious", number)

    with existing_redis.fresh() as url:
        assert int(urlsplit(url).path[1:]) in range(10, 16)

    for number in (0, 9):
        with redis.Redis.from_url(f"{existing_redis.url}/{number}") as client:
            assert client.get("precious") == str(number).encode()


def test_what_a_killed_run_left_in_redis_is_removed(existing_redis: RedisService, spawn: Spawner) -> None:
    killed = spawn(
        [
            sys.executable,
            "-c",
            LEAVES_DATA_BEHIND,
            existing_redis.url,
        ]
    )
    left = killed.wait_for_line(r"redis://\S+").group()
    killed.kill()

    with existing_redis.fresh() as url, redis.Redis.from_url(url) as client:
        assert (url, client.dbsize()) == (left, 0)


def test_rabbitmq_virtual_host_is_removed_afterwards(rabbitmq_server: Service) -> None:
    with rabbitmq_server.fresh() as url:
        if url == rabbitmq_server.url:
            pytest.skip("rabbitmqctl does not control this server, so tests share its virtual host")
        place = urlsplit(url)
        with amqp.Connection(host=f"{place.hostname}:{place.port}", virtual_host=place.path[1:]) as connection:
            channel = connection.channel()
            channel.queue_declare("jobs")
            channel.basic_publish(amqp.Message("hello"), routing_key="jobs")
            received = wait_until(lambda: channel.basic_get("jobs", no_ack=True), what="the message")
            assert received.body == "hello"

    assert "not found" in (RabbitService.problem(url) or "")


def test_rabbitmq_shares_the_virtual_host_of_the_url_where_it_may_not_make_one(
    rabbitmq_server: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "rabbitmqctl"
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    foreign = RabbitService(rabbitmq_server.url)
    monkeypatch.setattr(foreign, "_ctl", str(refusing))

    with foreign.fresh() as url:
        assert url == rabbitmq_server.url


def test_postgres_database_is_empty_and_dropped_under_open_connections(
    postgres_server: Service,
) -> None:
    with postgres_server.fresh() as url:
        connection = psycopg.connect(url)
        tables = connection.execute("SELECT * FROM pg_tables WHERE schemaname = 'public'").fetchall()
        connection.execute("CREATE TABLE jobs (id int)")
        connection.commit()

    with connection, pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert tables == []
    assert "does not exist" in (PostgresService.problem(url) or "")


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_server_is_started_from_a_binary_and_stopped_without_a_trace(kind: type[Service]) -> None:
    try:
        service = kind.start()
    except ServiceUnavailableError as error:
        pytest.skip(str(error))
    assert service.own is not None
    port = urlsplit(service.url).port
    assert port is not None
    with service.fresh() as url:
        assert kind.problem(url) is None

    service.stop()

    assert not answers(port)
    assert not service.own.folder.exists()


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_server_on_the_standard_port_is_preferred_to_a_new_one(
    kind: type[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "problem", lambda url: None if url == kind.standard_urls[-1] else "no")

    assert kind.find(None).url == kind.standard_urls[-1]


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_url_in_the_variable_that_does_not_answer_fails_even_where_services_are_optional(
    kind: type[Service],
) -> None:
    scheme = urlsplit(kind.standard_urls[0]).scheme

    with pytest.raises(pytest.fail.Exception, match=kind.variable):
        next(provide(kind, f"{scheme}://127.0.0.1:1/", required=False))


@pytest.mark.parametrize("kind", KINDS, ids=ids)
@pytest.mark.parametrize(
    ("required", "outcome"),
    [(False, pytest.skip.Exception), (True, pytest.fail.Exception)],
    ids=["optional", "required"],
)
def test_absent_service_skips_or_fails_with_the_reason(
    kind: type[Service], required: bool, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "standard_urls", ())
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)

    with pytest.raises(outcome, match=rf"{kind.name} is needed.*not installed.*{kind.variable}"):
        next(provide(kind, None, required=required))


def test_broken_server_program_makes_the_service_unavailable_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with pytest.raises(ServiceUnavailableError, match="the disk is on fire"):
        RedisService.start()


def test_line_on_either_stream_is_awaited(spawn: Spawner) -> None:
    child = spawn(["sh", "-c", "echo ready on port 81 >&2; exec tail -f /dev/null"])

    assert child.wait_for_line(r"port (\d+)").group(1) == "81"


def test_waiting_for_a_line_ends_with_the_process_and_shows_its_output(spawn: Spawner) -> None:
    child = spawn(["sh", "-c", "echo no licence; exit 4"], name="server")

    with pytest.raises(AssertionError, match=r"server ended(.|\n)*ended with 4(.|\n)*no licence"):
        child.wait_for_line("ready", timeout=30)


def test_family_is_ended_even_where_it_left_the_process_group(spawn: Spawner) -> None:
    child = spawn(["sh", "-c", "setsid tail -f /dev/null & tail -f /dev/null & wait"])
    wait_until(lambda: len(child.family()) == 2, what="two children")

    child.kill()

    wait_until(lambda: not child.family(), what="the end of both")


def test_children_do_not_see_the_settings_of_the_developer(spawn: Spawner) -> None:
    child = spawn(["env"], env={"QUEUEBRIDGE_BACKEND": "inline", "HOME": None})

    child.wait()

    names = [line.partition("=")[0] for line in child.stdout.splitlines()]
    assert [name for name in names if name.startswith(("QUEUEBRIDGE_", "QSTASH_"))] == ["QUEUEBRIDGE_BACKEND"]
    assert "HOME" not in names


def test_failed_test_shows_the_output_of_its_children(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(
        "def test_failing(spawn):\n"
        "    child = spawn(['sh', '-c', 'echo said by the child'], name='worker')\n"
        "    child.wait()\n"
        "    assert not child\n"
    )

    done = run_pytest(tmp_path)

    assert "process worker" in done
    assert "[stdout] said by the child" in done
    assert "1 failed" in done


def test_run_that_is_told_to_stop_leaves_no_process_behind(tmp_path: Path, spawn: Spawner) -> None:
    (tmp_path / "test_waiting.py").write_text(
        "import signal\n"
        "def test_waiting(spawn):\n"
        "    child = spawn(['tail', '-f', '/dev/null'])\n"
        "    print('child', child.pid, flush=True)\n"
        "    signal.pause()\n"
    )
    run = spawn([*pytest_command(tmp_path), "-s"])
    child = int(run.wait_for_line(r"child (\d+)").group(1))

    assert run.terminate() == 128 + 15
    assert not Path(f"/proc/{child}").exists()


def test_settings_of_the_developer_are_hidden_from_tests(tmp_path: Path) -> None:
    names = ["QUEUEBRIDGE_BACKEND", "QSTASH_TOKEN", "REDIS_URL", "VERCEL_URL", "RENDER", "APP_ENV"]
    (tmp_path / "test_environment.py").write_text(
        f"import os\ndef test_environment():\n    assert [n for n in {names} if n in os.environ] == []\n"
    )

    assert "1 passed" in run_pytest(tmp_path, **dict.fromkeys(names, "x"))


def test_importing_adapters_under_their_second_name_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "backends.py").touch()
    (tmp_path / "test_import.py").write_text(
        f"import sys\ndef test_import():\n    sys.path.insert(0, {str(tmp_path)!r})\n    import backends\n"
    )

    assert "1 passed, 1 error" in run_pytest(tmp_path)


def pytest_command(folder: Path) -> list[str]:
    """Return the command that runs the tests in a folder with this project's configuration."""
    tests = Path(__file__).parents[1]
    (folder / "conftest.py").write_text((tests / "conftest.py").read_text())
    return [sys.executable, "-m", "pytest", "-c", str(tests.parent / "tox.ini"), "--rootdir", *[str(folder)] * 2]


def run_pytest(folder: Path, **env: str) -> str:
    """Run the tests in a folder, and return what pytest says."""
    done = subprocess.run(
        pytest_command(folder),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**child_environment({}), **env, "COLUMNS": "120"},
        timeout=50,
        check=False,
    )
    return done.stdout + done.stderr
