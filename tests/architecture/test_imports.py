"""What importing costs, in a fresh interpreter: nothing optional is loaded, nothing is read or opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_python
from source import modules

OPTIONAL = {
    *("aiohttp", "alembic", "celery", "click", "cronsim", "fakeredis", "flask", "gunicorn", "httpx", "jwt", "kombu"),
    *("opentelemetry", "qstash", "redis", "rich", "rq", "sqlalchemy"),
}

# Runs before the import: notes what the program reads and opens, with the file of ours that does it.
RECORDER = """
import _collections_abc, json, os, sys

# Frozen modules have no file name of their own.
MACHINERY = ("<string>", "<frozen os>", "<frozen _collections_abc>", os.__file__, _collections_abc.__file__)

def culprit(frame):
    # The nearest code that is neither the recorder nor the way from it to the reader.
    while frame and frame.f_code.co_filename in MACHINERY:
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""

reads, events = [], []

class Recorder(os._Environ):
    def __getitem__(self, key):
        reads.append((key, culprit(sys._getframe(1))))
        return super().__getitem__(key)
    def __iter__(self):
        reads.append(("*", culprit(sys._getframe(1))))
        return super().__iter__()
    def __contains__(self, key):
        reads.append((key, culprit(sys._getframe(1))))
        return super().__contains__(key)

old = os.environ
os.environ = Recorder(old._data, old.encodekey, old.decodekey, old.encodevalue, old.decodevalue)

def audit(event, args):
    if event == "open":
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        events.append(["write" if writes else "read", str(args[0])])
    elif event.startswith(("socket.", "subprocess.", "sqlite3.", "os.system", "os.exec", "os.fork")):
        events.append([event, ""])

sys.addaudithook(audit)
"""

QSTASH = {
    "QSTASH_TOKEN": "token",
    "QSTASH_CURRENT_SIGNING_KEY": "sig_current_0123456789",
    "QSTASH_NEXT_SIGNING_KEY": "sig_next_0123456789",
    "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
}


def run(code: str, folder: Path) -> Any:
    """Run a program that prints JSON last."""
    return json.loads(run_python(code, cwd=folder).splitlines()[-1])


def loaded_by(code: str, folder: Path) -> set[str]:
    """Return all modules that a program has loaded at its end."""
    return set(run(f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))", folder))


def test_importing_queuebridge_loads_no_optional_library(tmp_path: Path) -> None:
    loaded = loaded_by("import queuebridge", tmp_path)

    assert "pydantic" in loaded
    assert not loaded & OPTIONAL
    assert not [name for name in loaded if name.startswith(("queuebridge.backends", "queuebridge.cli", "bridge_app"))]


@pytest.mark.parametrize("package", ["queuebridge", "bridge_app", "queuebridge.backends.qstash.backend"])
def test_importing_reads_no_environment_variable(tmp_path: Path, package: str) -> None:
    reads = run(f"{RECORDER}\nimport {package}\nprint(json.dumps(reads))", tmp_path)

    ours = {str(module.path) for module in modules()}
    assert [read for read in reads if read[1] in ours] == []


def test_reader_of_the_environment_is_noticed(tmp_path: Path) -> None:
    # The recorder works at all, and knows our code: settings do read the environment, when asked.
    code = "from queuebridge.settings import Settings\nSettings.from_environment()"

    reads = run(f"{RECORDER}\n{code}\nprint(json.dumps(reads))", tmp_path)

    assert {("*", "settings.py"), ("QUEUEBRIDGE_ENV", "settings.py")} <= {
        (name, Path(file).name) for name, file in reads
    }


@pytest.mark.parametrize("package", ["queuebridge", "bridge_app"])
def test_importing_opens_nothing_but_code(tmp_path: Path, package: str) -> None:
    events = run(f"{RECORDER}\nimport {package}\nprint(json.dumps([events, sys.path, sys.prefix]))", tmp_path)

    opened, path, prefix = events
    roots = tuple(filter(None, [*path, prefix]))
    ours = {str(module.path.parent) for module in modules()}
    outside = [
        (kind, name)
        for kind, name in opened
        if kind != "read" or not (name.startswith(roots) or any(name.startswith(folder) for folder in ours))
    ]
    assert opened
    # Bytecode is written by the interpreter, under a temporary name.
    assert [entry for entry in outside if "__pycache__" not in entry[1]] == []


def test_receiver_for_qstash_loads_no_library_of_another_backend(tmp_path: Path) -> None:
    loaded = loaded_by(f"from bridge_app import create_app\ncreate_app(environ={QSTASH!r})", tmp_path)

    assert {"flask", "jwt", "queuebridge.backends.qstash.verification"} <= loaded
    # Flask imports click for its own commands; ours must not come along.
    assert loaded & OPTIONAL == {"flask", "jwt", "click"}
    assert not [name for name in loaded if name.startswith("queuebridge.cli")]


def test_qstash_backend_loads_the_sdk_at_the_first_publish_only(tmp_path: Path) -> None:
    loaded = loaded_by(f"import queuebridge\nqueuebridge.Bridge(environ={QSTASH!r})", tmp_path)

    assert "queuebridge.backends.qstash.backend" in loaded
    assert not loaded & OPTIONAL


def test_inline_backend_loads_no_optional_library(tmp_path: Path) -> None:
    code = """
from queuebridge import Bridge, task

@task(name="double")
def double(n: int) -> int:
    return 2 * n

Bridge(environ={"QUEUEBRIDGE_BACKEND": "inline"}).enqueue(double, 21)
"""
    assert not loaded_by(code, tmp_path) & OPTIONAL
