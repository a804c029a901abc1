"""`queuebridge inventory` on a project with a dozen tasks, as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from histories import History
from processes import child_environment, run_python
from shop_project import TASKS, line_of, write_project
from source import ROOT

from queuebridge.cli import ledgers
from queuebridge.cli.app import ExitCode, root
from queuebridge.stages import Side

QUEUEBRIDGE = [str(Path(sys.executable).with_name("queuebridge")), "inventory", "--celery", "proj.celery:app"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def run(project: Path, *arguments: str, celery: str = "proj.celery:app") -> subprocess.CompletedProcess[str]:
    command = [*QUEUEBRIDGE[:-1], celery, *arguments]
    return subprocess.run(
        command, cwd=project, env=child_environment({}), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def taken(project: Path) -> dict[str, Any]:
    """The whole inventory, as JSON."""
    done = run(project, "--source", "tools", "--json")
    assert done.returncode == ExitCode.FAILED, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def task(taken: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in taken["tasks"] if one["name"] == name]
    return dict(found)


def findings(one: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in one["findings"]:
        found.setdefault(finding["rule"], []).extend(finding["where"])
    return found


def test_every_task_of_the_app_has_a_verdict_and_celerys_own_are_left_out(taken: dict[str, Any]) -> None:
    assert {one["name"]: one["verdict"] for one in taken["tasks"]} == {
        "mail.digest": "ready",
        "mail.send": "cannot move yet",
        "shop.tasks.charge": "needs a decision",
        "shop.tasks.deliver": "ready",
        "shop.tasks.export": "needs a decision",
        "shop.tasks.order_total": "cannot move yet",
        "shop.tasks.ping": "ready",
        "shop.tasks.price": "ready, with edits",
        "shop.tasks.reload_prices": "cannot move yet",
        "shop.tasks.ship": "ready, with edits",
        "shop.tasks.total": "ready, with edits",
    }
    assert [one["name"] for one in taken["tasks"]] == TASKS
    assert taken["counts"] == {"ready": 3, "ready, with edits": 3, "needs a decision": 2, "cannot move yet": 3}


@pytest.mark.parametrize(
    ("name", "rule", "file", "text"),
    [
        ("mail.send", "serializer-refused", "tools/resend.py", 'serializer="yaml"'),
        ("mail.send", "exchange", "shop/views.py", 'exchange="partner"'),
        ("mail.send", "delay-beyond-visibility", "shop/views.py", "timedelta(hours=2)"),
        ("mail.send", "canvas", "shop/views.py", "link_error"),
        ("mail.send", "files", "mail/tasks.py", "open("),
        ("shop.tasks.charge", "arguments-not-json", "shop/views.py", "jobs.charge.apply_async"),
        ("shop.tasks.charge", "compression-needs-key", "shop/views.py", "compression="),
        ("shop.tasks.charge", "delay-in-hops", "shop/views.py", "10 * DAY"),
        ("shop.tasks.charge", "request-of-worker", "shop/tasks.py", "request.hostname"),
        ("shop.tasks.charge", "reject", "shop/tasks.py", "raise Reject"),
        ("shop.tasks.charge", "globals", "shop/tasks.py", "CACHE[order_id]"),
        ("shop.tasks.charge", "rate-limit", "shop/tasks.py", "rate_limit="),
        ("shop.tasks.export", "processes", "shop/tasks.py", "subprocess.run"),
        ("shop.tasks.export", "limit-beyond-push", "shop/tasks.py", "time_limit=7200"),
        ("shop.tasks.export", "terminate", "shop/views.py", "AsyncResult(task_id)"),
        ("shop.tasks.order_total", "waits-in-task", "shop/tasks.py", ".get(timeout=10)"),
        ("shop.tasks.price", "priority", "shop/tasks.py", "priority=9"),
        ("shop.tasks.price", "results-needed", "shop/views.py", "price.delay(1)"),
        ("shop.tasks.price", "options-unseen", "shop/views.py", "chain("),
        ("shop.tasks.reload_prices", "globals", "shop/tasks.py", "CACHE.clear()"),
        ("shop.tasks.ship", "serializer-needs-key", "shop/tasks.py", '@shared_task(serializer="pickle")'),
    ],
)
def test_finding_names_the_line(taken: dict[str, Any], name: str, rule: str, file: str, text: str) -> None:
    assert line_of(file, text) in findings(task(taken, name))[rule]


def test_settings_of_the_app_count_for_its_tasks(taken: dict[str, Any]) -> None:
    assert findings(task(taken, "shop.tasks.reload_prices"))["broadcast"] == []
    export = task(taken, "shop.tasks.export")
    assert {"priority", "queue", "schedule"} <= set(findings(export))
    assert export["uses"]["route"] == {"queue": "bulk", "priority": 3}
    assert export["uses"]["limits"] == {"time_limit": 7200, "soft_time_limit": 3600}
    (schedule,) = export["uses"]["schedules"]
    assert schedule["name"] == "nightly"


def test_what_a_task_uses_is_listed(taken: dict[str, Any]) -> None:
    price = task(taken, "shop.tasks.price")

    assert [(one["name"], one["annotation"], one["json"]) for one in price["uses"]["arguments"]] == [
        ("product_id", "int", True),
        ("day", "date | None", True),
        ("size", "Size", True),
    ]
    assert set(price["uses"]["canvas"]) == {"chain", "chord", "group", "link_error"}
    assert price["uses"]["call_options"]["priority"] == ["9"]
    assert [one["how"] for one in price["calls"]] == ["s", "s", "delay", "s"]
    (address,) = task(taken, "shop.tasks.deliver")["uses"]["arguments"]
    assert address == {"name": "address", "annotation": "Address", "json": False, "model": True}
    charge = task(taken, "shop.tasks.charge")
    assert charge["uses"]["bound"]
    assert charge["uses"]["bases"] == ["shop.tasks.WithDatabase"]
    assert charge["uses"]["options"]["max_retries"] == "unlimited"


def test_task_that_is_a_class_is_found_with_its_place(taken: dict[str, Any]) -> None:
    digest = task(taken, "mail.digest")

    assert digest["where"] == line_of("mail/tasks.py", "class Digest")
    assert [one["name"] for one in digest["uses"]["arguments"]] == ["addresses"]


def test_what_could_not_be_told_is_said(taken: dict[str, Any]) -> None:
    unresolved = {one["where"]: one["reason"] for one in taken["unresolved"]}

    assert unresolved == {
        line_of("shop/views.py", "handler.delay"): "it cannot be seen what handler is",
        line_of("shop/views.py", "getattr("): "it cannot be seen what getattr(jobs, request.name) is",
        line_of("shop/views.py", 'signature("shop'): "the app has no task 'shop.tasks.removed'",
        line_of("shop/views.py", "send_task(request.name)"): "the name of the task is not written there",
    }
    ((broken, problem),) = [(one["where"], one["problem"]) for one in taken["unread"]]
    assert broken == line_of("shop/broken.py", "half_finished")
    assert problem.startswith("it is not valid Python")


def test_app_as_a_whole_is_judged(taken: dict[str, Any]) -> None:
    assert set(findings(taken)) == {
        *("lost-signals", "not-loaded", "queue-types", "remote-control", "schedule-of-unknown", "task-signals"),
        *("unread", "unresolved", "worker-recycling", "worker-signals"),
    }


def test_passwords_are_not_shown(project: Path, taken: dict[str, Any]) -> None:
    assert taken["app"]["broker"] == "redis://***@broker.internal:6379/0"
    assert "hunter2" not in json.dumps(taken)
    assert task(taken, "mail.send")["uses"]["call_options"]["headers"] == ["..."]
    assert taken["app"]["schedules"][1]["options"] == {"expires": 60, "headers": "..."}
    done = run(project)
    assert "hunter2" not in done.stdout + done.stderr


def test_page_about_it_shows_what_it_prints(project: Path) -> None:
    page = (ROOT / "docs" / "inventory.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    command, _, shown = block.partition("\n")
    wanted = ".*".join(re.escape(part) for part in shown.rstrip().split("..."))

    printed = run(project, *shlex.split(command)[5:]).stdout

    assert command.startswith("$ queuebridge inventory --celery proj.celery:app ")
    assert re.fullmatch(wanted, printed.rstrip(), re.DOTALL), printed


def test_people_get_a_table_and_what_to_do(project: Path) -> None:
    done = run(project, "--task", "shop.tasks.*")

    lines = done.stdout.splitlines()
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "mail is loaded\n"
    assert lines[0].startswith("App proj (proj.celery:app): broker redis://***@broker.internal:6379/0")
    table = [line.split("\t") for line in lines if "\t" in line]
    assert table[0][:2] == ["task", "verdict"]
    assert [row[0] for row in table[1:]] == [name for name in TASKS if name.startswith("shop.")]
    assert "shop.tasks.ping: ready" in lines
    finding = lines.index(f"  edit [priority] priority=9 at a call ({line_of('shop/tasks.py', 'priority=9')})")
    assert lines[finding + 1].startswith("      why: QStash has no priorities")
    assert lines[finding + 2].startswith("      do: Drop it.")
    assert "Longest and largest are not tracked: QUEUEBRIDGE_LEDGER names no ledger." in lines


@pytest.mark.parametrize(
    ("arguments", "celery", "status", "message"),
    [
        (["--task", "mail.digest"], "proj.celery:app", ExitCode.DONE, ""),
        (["--task", "shop.*"], "proj.celery:app", ExitCode.FAILED, ""),
        (["--task", "shop.tasks.charge"], "proj.celery:app", ExitCode.DONE, ""),
        (["--task", "nothing.*"], "proj.celery:app", ExitCode.USAGE, "has no task like 'nothing.*'"),
        (["--source", "nowhere"], "proj.celery:app", ExitCode.USAGE, "there is no 'nowhere'"),
        ([], "proj.celery:nothing", ExitCode.CONFIGURATION, "has no attribute 'nothing'"),
        ([], "proj.celery", ExitCode.CONFIGURATION, "is not of the form package.module:attribute"),
        ([], "proj.celery:Queue", ExitCode.CONFIGURATION, "not a Celery app"),
    ],
)
def test_exit_status_says_whether_all_can_move(
    project: Path, arguments: list[str], celery: str, status: ExitCode, message: str
) -> None:
    done = run(project, *arguments, celery=celery)

    assert done.returncode == status, done.stderr
    assert message in done.stderr


def test_nothing_is_started_connected_to_or_written(project: Path) -> None:
    code = """
import json, sys, threading
events = []
def audit(event, args):
    writing = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writing or event.startswith(("socket.connect", "subprocess.", "os.fork", "os.posix_spawn", "sqlite3.")):
        events.append([event, str(args[0])])
sys.addaudithook(audit)
sys.dont_write_bytecode = True
sys.path.insert(0, "")
from queuebridge.backends.celery.inventory import as_data, take_inventory
from pathlib import Path
data = as_data(take_inventory("proj.celery:app", folders=[Path("tools"), Path("shop")]))
loaded = [name for name in sys.modules if name.partition(".")[0] in ("shop", "tools") or name == "resend"]
print(json.dumps([len(data["tasks"]), events, threading.active_count(), sorted(loaded)]))
"""
    tasks, events, threads, loaded = json.loads(run_python(code, cwd=project).splitlines()[-1])

    assert tasks == len(TASKS)
    assert (events, threads) == ([], 1)
    # Source that the app does not import is read, and not imported.
    assert loaded == ["shop", "shop.models", "shop.tasks"]


def test_ledger_tells_the_longest_run_and_the_largest_arguments(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History()
    history.record("1", task="ledgered.work")
    history.run("1", Side.LEGACY, took_ms=1_000_000)
    (project / "ledgered.py").write_text(
        "from celery import Celery\n"
        "app = Celery('ledgered', broker='memory://', set_as_current=False)\n"
        "@app.task(acks_late=True, shared=False)\ndef work(to): ...\n"
        "@app.task(acks_late=True, shared=False)\ndef idle(): ...\n"
    )
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", "memory://")
    monkeypatch.setattr(ledgers, "load_ledger", lambda url: history.ledger)

    def invoke(*arguments: str) -> tuple[int, dict[str, Any]]:
        command = ["inventory", "--celery", "ledgered:app", "--json", *arguments]
        result = CliRunner().invoke(root, command, catch_exceptions=False)
        return result.exit_code, json.loads(result.stdout)

    status, data = invoke()
    work, idle = task(data, "ledgered.work"), task(data, "ledgered.idle")
    assert (status, data["ledger"]) == (ExitCode.FAILED, True)
    assert work["verdict"] == "cannot move yet"
    assert work["uses"]["seen"] == {"dispatches": 1, "longest_ms": 1_000_000, "largest_bytes": 13, "cut": False}
    assert "runs-too-long" in findings(work)
    assert (idle["verdict"], idle["uses"]["seen"]) == ("ready", None)
    status, data = invoke("--push-timeout", "2h")
    assert (status, task(data, "ledgered.work")["verdict"]) == (ExitCode.DONE, "ready")
