"""Reading source: what names mean, which calls are calls of tasks, and what is said when nobody can tell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from inventories import project_of

from queuebridge.backends.celery.inventory.source.annotations import argument_problem, is_json
from queuebridge.backends.celery.inventory.source.calls import Call, find_calls
from queuebridge.backends.celery.inventory.source.files import read_files
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import value_of

TASKS = """
def work(): ...
def other(): ...
again = work
"""
NAMES = {"shop.tasks.work": "work", "shop.tasks.other": "other"}


def project_with(source: str, **more: str) -> Project:
    return project_of({"shop.tasks": TASKS, "shop.views": source, **{f"shop.{k}": v for k, v in more.items()}}, NAMES)


def calls_in(source: str, **more: str) -> list[Call]:
    project = project_with(source, **more)
    return sorted(find_calls(project, project.modules["shop.views"]), key=lambda call: (call.place, call.text))


@pytest.mark.parametrize(
    "source",
    [
        "from shop.tasks import work\nwork.delay()",
        "from shop.tasks import work as job\njob.delay()",
        "import shop.tasks\nshop.tasks.work.delay()",
        "import shop.tasks as jobs\njobs.work.delay()",
        "from shop import tasks\ntasks.work.delay()",
        "from .tasks import work\nwork.delay()",
        "from . import tasks\ntasks.work.delay()",
        "from shop.tasks import *\nwork.delay()",
        "from shop.tasks import again\nagain.delay()",
        "from shop.public import job\njob.delay()",
        "from shop.tasks import work\njob = work\njob.delay()",
        "def view():\n    from shop.tasks import work\n    work.delay()",
        "from shop.tasks import work\ndef view():\n    job = work\n    return lambda: job.delay()",
        "from shop.tasks import work\nclass View:\n    def get(self):\n        work.delay()",
    ],
)
def test_task_is_known_by_whatever_name_it_was_imported(source: str) -> None:
    (call,) = calls_in(source, public="from shop.tasks import work as job\n")

    assert (call.task, call.how, call.unresolved) == ("work", "delay", None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def view(work):\n    work.delay()", "it cannot be seen what work is"),
        ("getattr(jobs, name).delay()", "it cannot be seen what getattr(jobs, name) is"),
        ("self.job.apply_async()", "it cannot be seen what self.job is"),
        ("def view():\n    job = work if late else other\n    job.delay()", "it cannot be seen what job is"),
        ("app.send_task(name)", "the name of the task is not written there"),
        ("app.send_task('gone')", "the app has no task 'gone'"),
        ("from celery import signature\nsignature('gone')", "the app has no task 'gone'"),
        ("def view():\n    a = b.set()\n    b = a.set()\n    b.delay()", "it cannot be seen what b is"),
        ("def view(job):\n    job = work\n    job.delay()", "it cannot be seen what job is"),
        ("for job in (work, other):\n    job.delay()", "it cannot be seen what job is"),
        ("from shop.models import Order\nOrder.delay()", "it cannot be seen what Order is"),
    ],
)
def test_call_of_something_unknown_is_said_to_be_unresolved(source: str, reason: str) -> None:
    (call,) = calls_in(f"from shop.tasks import work, other\n{source}", models="class Order: ...\n")

    assert (call.task, call.unresolved) == (None, reason)


@pytest.mark.parametrize(
    "source",
    [
        "import inspect\ninspect.signature(f)",
        "frame.apply(len)",
        "pool.map(f, [1])",
        "from elsewhere import clock\nclock.delay(3)",
        "from shop.tasks import work\nwork()",
        "'a'.join('b')",
    ],
)
def test_calls_that_are_none_of_celery_are_not_shown(source: str) -> None:
    assert calls_in(source) == []


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("app.send_task('work', args=[1])", "send_task"),
        ("current_app.send_task(name='work')", "send_task"),
        ("app.send_task(work.name)", "send_task"),
        ("signature('work', (1,))", "signature by name"),
        ("app.signature('work')", "signature by name"),
    ],
)
def test_task_is_known_by_its_own_name_too(code: str, how: str) -> None:
    (call,) = calls_in(f"from celery import current_app, signature\nfrom shop.tasks import work\napp = make()\n{code}")

    assert (call.task, call.how) == ("work", how)


@pytest.mark.parametrize(
    ("code", "canvas"),
    [
        ("chain(work.s(), value)", ["chain"]),
        ("(work.s() | value).delay()", ["chain"]),
        ("flow = work.s() | value\n    flow.apply_async()", ["chain"]),
        ("flow = work.s()\n    flow = flow | value\n    flow |= value\n    flow.apply_async()", ["chain"]),
        ("group([work.s(), value])()", ["group"]),
        ("group(work.s(i) for i in value)", ["group"]),
        ("group([work.s(i) for i in value]).apply_async()", ["group"]),
        ("chord([work.s()])(value)", ["chord"]),
        ("chord([value])(work.s())", ["chord"]),
        ("chord(value, work.s())", ["chord"]),
        ("chord(header=[work.s()], body=value)", ["chord"]),
        ("celery.chain(celery.group(work.s()), value)", ["group", "chain"]),
        ("sigs = [work.s()]\n    chain(*sigs)", ["chain"]),
        ("sigs = []\n    sigs.append(work.s())\n    group(sigs)()", ["group"]),
        ("work.apply_async(link=value)", ["link"]),
        ("value.apply_async(link_error=[work.s()])", ["link_error"]),
        ("value.link(work.s())", ["link"]),
        ("work.s().on_error(value)", ["link_error"]),
        ("value.replace(work.s())", ["replace"]),
        ("value.add_to_chord(work.s())", ["add_to_chord"]),
        ("work.s().stamp(tenant=1)", ["stamp"]),
        ("work.chunks(value, 10)()", ["chunks"]),
        ("work.starmap(value)", ["starmap"]),
        ("work.map(value)", ["map"]),
        ("work.delay()", []),
    ],
)
def test_canvas_is_followed_from_the_signature_outwards(code: str, canvas: list[str]) -> None:
    imports = "import celery\nfrom celery import chain, chord, group\nfrom shop.tasks import work"
    source = f"{imports}\ndef f(value):\n    {code}"

    (call,) = [call for call in calls_in(source) if call.task == "work"]

    assert list(call.canvas) == canvas


@pytest.mark.parametrize(
    ("code", "results"),
    [
        ("work.delay().get(timeout=3)", ["get"]),
        ("result = work.delay()\n    print(result.status)\n    return result.get()", ["status", "get"]),
        ("[one.get() for one in [work.delay()]]", ["get"]),
        ("group(work.s())().join()", ["join"]),
        ("flow = chain(work.s(), value)\n    flow.apply_async().revoke()", ["revoke"]),
        ("work.AsyncResult(value).result", ["result"]),
        ("return work.delay()", []),
        ("log(work.delay().id)", []),
    ],
)
def test_what_becomes_of_the_result_is_followed(code: str, results: list[str]) -> None:
    source = f"from celery import chain, group\nfrom shop.tasks import work\ndef f(value):\n    {code}"

    (call,) = [call for call in calls_in(source) if call.task == "work"]

    assert sorted(call.results) == sorted(results)


def test_options_are_those_of_the_call_and_of_what_it_is_part_of() -> None:
    source = """
from celery import chain
from shop.tasks import work
LATER = 5
chain(work.s(1).set(priority=3)).apply_async(countdown=LATER * 60, queue=name(), **more)
"""
    (call,) = calls_in(source)

    assert {name: (value.known, value.value) for name, value in call.options.items()} == {
        "priority": (True, 3.0),
        "countdown": (True, 300.0),
        "queue": (False, None),
        "**": (False, None),
    }
    assert call.options["queue"].text == "name()"


def test_endless_assignments_are_followed_to_an_end() -> None:
    body = "a = b = work.s()\n    a = b\n    b = a\n    a.get()\n    return a, b"
    source = f"from shop.tasks import work\ndef f():\n    {body}"

    (call,) = calls_in(source)

    assert call.task == "work"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3", 3.0),
        ("-3", -3.0),
        ("'bulk'", "bulk"),
        ("None", None),
        ("60 * 60 + 1", 3601.0),
        ("timedelta(days=1, hours=2)", 93_600.0),
        ("timedelta(1)", 86_400.0),
        ("datetime.now() + timedelta(minutes=5)", 300.0),
        ("datetime.datetime.now(tz) + timedelta(minutes=5)", 300.0),
        ("HOUR", 3600.0),
        ("limits.DAY", 86_400.0),
        ("2 * limits.DAY", 172_800.0),
    ],
)
def test_value_is_told_without_running_anything(expression: str, value: object) -> None:
    imports = "import datetime\nfrom datetime import timedelta\nfrom shop import limits"
    source = f"{imports}\nHOUR = 3600\nx = {expression}"
    project = project_with(source, limits="DAY = 24 * 60 * 60\n")
    module = project.modules["shop.views"]

    found = value_of(project, module, module.top.values["x"][0])

    assert (found.known, found.value) == (True, value)


def test_constant_that_changes_is_not_guessed() -> None:
    project = project_with("LATER = 5\nLATER += 1\nx = LATER")
    module = project.modules["shop.views"]

    assert not value_of(project, module, module.top.values["x"][0]).known


@pytest.mark.parametrize("expression", ["f()", "1 / 0", "tomorrow + timedelta(1)", "unknown", "9 ** 9 ** 9", "x"])
def test_value_that_cannot_be_told_is_not_guessed(expression: str) -> None:
    project = project_with(f"from datetime import timedelta\nx = {expression}")
    module = project.modules["shop.views"]

    assert not value_of(project, module, module.top.values["x"][0]).known


@pytest.mark.parametrize(
    ("annotation", "answer"),
    [
        ("int", True),
        ("str | None", True),
        ("Optional[dict[str, int]]", True),
        ("list[tuple[int, str]]", True),
        ("datetime | Decimal | bytes", True),
        ("Size", True),
        ("set[int]", False),
        ("list[set[int]]", False),
        ("Order", False),
        ("Order | None", False),
        ("Callable[[], int]", False),
        ("Elsewhere", None),
        ("Any", None),
        ("Literal['set']", None),
    ],
)
def test_annotation_says_whether_an_argument_is_json(annotation: str, answer: bool | None) -> None:
    source = f"""
import enum
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Optional
from somewhere import Elsewhere
class Order: ...
class Size(str, enum.Enum): ...
x: {annotation}
"""
    project = project_with(source)
    module = project.modules["shop.views"]

    assert is_json(project, module, module.top.annotations["x"]) is answer


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("{1}", "a set"),
        ("set(x)", "of type set"),
        ("lambda: 1", "a function"),
        ("(i for i in x)", "a generator"),
        ("Order(1)", "of type Order"),
        ("order", "of type Order"),
        ("made", "a set"),
        ("number", None),
        ("[1, 'a']", None),
        ("unknown", None),
    ],
)
def test_argument_at_a_call_is_looked_at(expression: str, problem: str | None) -> None:
    source = f"class Order: ...\ndef f(order: Order, number: int):\n    made = {{1}}\n    return {expression}"
    project = project_with(source)
    module = project.modules["shop.views"]
    function = module.tree.body[1]

    assert argument_problem(project, module, function.body[-1].value) == problem  # type: ignore[attr-defined]


def test_files_are_named_as_they_would_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pack/__init__.py", "pack/inner/mod.py", "single.py", "venv/lib/x.py", ".hidden/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x: 'int' = 1\n")
    (tmp_path / "env" / "lib").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "env" / "lib" / "y.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    files = read_files([], [tmp_path])

    assert sorted(files.modules) == ["pack", "pack.inner.mod", "single"]
    assert files.unread == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"def f(:\n", "it is not valid Python"),
        (b"# -*- coding: none-such -*-\n", "it is not valid Python"),
        (b"x = '\xff'\n", "cannot be read|not valid Python"),
    ],
)
def test_file_that_is_no_python_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)

    (unread,) = read_files([], [path]).unread

    assert unread.place.file.endswith("broken.py")
    assert any(part in unread.problem for part in problem.split("|"))
