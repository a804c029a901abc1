"""`queuebridge devserver` as users start it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx
import pytest
from processes import ChildProcess, Spawner

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER as USER

PUBLIC = "the tokens and signing keys of this server are published ones"


def start(spawn: Spawner, *options: str) -> tuple[ChildProcess, str]:
    server = spawn([sys.executable, "-m", "queuebridge", "devserver", "--port", "0", *options], name="devserver")
    return server, server.wait_for_line(r"QStash server running at (http://\S+:\d+)").group(1)


def keys(url: str, token: str) -> dict[str, str]:
    answer = httpx.get(f"{url}/v2/keys", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.status_code == 200
    found: dict[str, str] = answer.json()
    return found


def test_printed_environment_is_that_of_the_server_and_an_sdk_recognises_it(spawn: Spawner) -> None:
    server, url = start(spawn, "--memory", "--print-env")
    server.wait_for_line("QSTASH_NEXT_SIGNING_KEY")

    printed = dict(re.findall(r"^export (\w+)='(.*)'$", server.stdout, re.MULTILINE))

    assert printed["QSTASH_URL"] == url
    # By this the TypeScript SDK knows a development server that runs already, and uses it.
    assert keys(url, printed["QSTASH_TOKEN"]) == {
        "current": printed["QSTASH_CURRENT_SIGNING_KEY"],
        "next": printed["QSTASH_NEXT_SIGNING_KEY"],
    }
    assert printed["QSTASH_TOKEN"] == USER.token
    assert re.search(r"running at http://127\.0\.0\.1:\d+, keeps messages in memory", server.stderr)
    assert server.wait_for_line(rf"Open {re.escape(url)} in a browser")
    assert PUBLIC not in server.stderr


def test_without_print_env_nothing_goes_to_standard_output(spawn: Spawner) -> None:
    server, _ = start(spawn, "--memory")

    assert server.stdout == ""


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")])
def test_host_that_others_reach_is_warned_about(spawn: Spawner, host: str, shown: str) -> None:
    server, url = start(spawn, "--host", host, "--print-env")

    assert url.startswith(f"http://{shown}:")
    assert keys(url, USER.token)["current"] == USER.current_signing_key
    warned = [line for line in server.stderr.splitlines() if "WARNING" in line]
    assert len(warned) == (0 if host == "localhost" else 1)
    assert all(f"listening on {host}: {PUBLIC}" in line for line in warned)


def test_file_of_db_is_named_and_kept(spawn: Spawner, tmp_path: Path) -> None:
    database = tmp_path / "messages.db"
    server, _ = start(spawn, "--db", str(database))

    assert f"keeps messages in {database}" in server.stderr
    assert database.exists()


def test_port_in_use_ends_the_command_and_says_what_to_do(spawn: Spawner) -> None:
    _, url = start(spawn)
    port = url.rpartition(":")[2]

    server = spawn([sys.executable, "-m", "queuebridge", "devserver", "--port", port], name="second")

    assert server.wait(30) == 3, server.report()
    assert f"Port {port} of 127.0.0.1 is in use. Choose another one with --port" in server.stderr
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    ("options", "status", "problem"),
    [
        (["--port", "65536"], 2, "65536 is not in the range 0<=x<=65535"),
        (["--host", "no.such.host.invalid"], 3, "cannot listen on no.such.host.invalid:0"),
        (["--time-scale", "0"], 3, "time scale must be above 0"),
        (["--db", "/no/such/folder/db"], 3, "/no/such/folder"),
        (["--resolve", "a.example=localhost:3000"], 3, "must begin with http:// or https://"),
        (["--resolve", "a.example=http://a", "--resolve", "a.example=http://b"], 3, "a.example is given twice"),
    ],
)
def test_wrong_option_ends_the_command_with_the_reason(
    spawn: Spawner, options: list[str], status: int, problem: str
) -> None:
    server = spawn([sys.executable, "-m", "queuebridge", "devserver", "--port", "0", *options], name="devserver")

    assert server.wait(30) == status, server.report()
    assert problem in server.stderr
    assert "Traceback" not in server.stderr
