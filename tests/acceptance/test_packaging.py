"""The distribution as a user gets it: built, installed without extras, and tried from an empty folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.utils import canonicalize_name
from processes import child_environment
from requirements import base_requirements, closure, extra_requirements, link
from source import FOLDERS, ROOT, below, modules, packages, setup_cfg

# The first test builds everything.
pytestmark = pytest.mark.timeout(240)

# Packages that cannot be imported without a library, and the library. All others need none.
NEEDS = {
    "bridge_app": "flask",
    "queuebridge.backends.celery": "celery",
    "queuebridge.backends.celery.inventory": "celery",
    "queuebridge.backends.celery.inventory.rules": "celery",
    "queuebridge.backends.celery.inventory.source": "celery",
    "queuebridge.backends.qstash.devserver": "aiohttp",
    "queuebridge.backends.qstash.devserver.admin": "aiohttp",
    "queuebridge.backends.qstash.devserver.page": "aiohttp",
    "queuebridge.backends.qstash.devserver.resources": "aiohttp",
    "queuebridge.backends.qstash.devserver.workflow": "aiohttp",
    "queuebridge.storage.redis": "redis",
    "queuebridge.storage.sql": "sqlalchemy",
    "queuebridge.storage.sql.migrations": "sqlalchemy",
    "queuebridge.storage.sql.migrations.versions": "sqlalchemy",
}

# Extras -> what they must suffice to import.
SUFFICES = {
    "qstash": ("queuebridge.backends.qstash", "bridge_app"),
    "devserver": ("queuebridge.backends.qstash.devserver",),
    "celery": ("queuebridge.backends.celery",),
    "celery,redis": ("queuebridge.backends.celery", "kombu.transport.redis"),
    "rq": ("queuebridge.backends.rq",),
    "redis": ("queuebridge.storage.redis",),
    "sql": ("queuebridge.storage.sql",),
    "encryption": ("queuebridge.ledger.sealing",),
    "cli": ("queuebridge.cli",),
}


class Done(NamedTuple):
    """The end of a command."""

    status: int
    stdout: str
    stderr: str


def run(*args: str | Path, cwd: Path, **env: str) -> Done:
    """Run a command to its end, without the test helpers on the import path."""
    environment = child_environment({"PYTHONPATH": None, **env})
    done = subprocess.run(
        args, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def checked(*args: str | Path, cwd: Path, **env: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = run(*args, cwd=cwd, **env)
    assert done.status == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the build backend."""
    folder = tmp_path_factory.mktemp("backend")
    match = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    needed = re.findall(r'"([^"]+)"', match.group(1))
    checked(sys.executable, "-m", "pip", "install", "-q", "--target", folder, *needed, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def sdist(backend: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy of the project, because building leaves files behind."""
    copy = tmp_path_factory.mktemp("project") / "project"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=ignored)
    code = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    checked(sys.executable, "-c", code, copy.parent, cwd=copy, PYTHONPATH=str(backend))
    return next(copy.parent.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(backend: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution, so that both are proved complete."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source = next(path for path in folder.iterdir() if path.is_dir())
    code = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    checked(sys.executable, "-c", code, folder, cwd=source, PYTHONPATH=str(backend))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and its base requirements, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    checked(*install, cwd=folder)
    site = Path(checked(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    link(closure(base_requirements()), site)
    return python.parent


def test_source_distribution_holds_what_building_and_reading_take(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_holds_every_module_under_its_installed_name_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}")

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert names == expected


def test_metadata_names_extras_licence_and_description(wheel: Path) -> None:
    metadata = read_metadata(wheel)

    extras = {canonicalize_name(extra) for extra in setup_cfg()["options.extras_require"]}
    assert set(metadata.get_all("Provides-Extra") or []) == extras
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == setup_cfg()["options"]["python_requires"]


def read_metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_packages_without_optional_library_are_imported_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, json, sys
answer = {}
for name in sys.argv[1:]:
    try:
        answer[name] = importlib.import_module(name).__file__
    except Exception as error:
        # The receiver says which extra to install; why, is its cause.
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        answer[name] = "needs " + missing.name
print(json.dumps(answer))
"""
    answer = json.loads(checked(installed / "python", "-c", code, *packages(), cwd=tmp_path))

    refused = {name: found[len("needs ") :] for name, found in answer.items() if found.startswith("needs ")}
    assert refused == NEEDS
    outside = [found for name, found in answer.items() if name not in NEEDS and "site-packages" not in found]
    assert outside == []


def test_every_module_is_imported_where_all_libraries_are_installed(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, sys
sys.path += sys.argv[1].split(":")
for name in sys.argv[2:]:
    assert "site-packages" in importlib.import_module(name).__file__, name
print(sorted(name for name in sys.modules if name.partition(".")[0] == "backends"))
"""
    libraries = ":".join(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    names = [module.name for module in modules() if module.name != "queuebridge.__main__"]

    printed = checked(installed / "python", "-c", code, libraries, *names, cwd=tmp_path)

    assert printed == "[]\n"


@pytest.mark.parametrize("extras", SUFFICES)
def test_extra_suffices_for_its_feature(installed: Path, tmp_path: Path, extras: str) -> None:
    chosen = extras.split(",")
    brought = closure(line for extra in chosen for line in extra_requirements(extra))
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    link(brought - closure(base_requirements()), libraries)
    other_extra = () if "devserver" in chosen else ("queuebridge.backends.qstash.devserver",)
    names = [
        *(name for name in SUFFICES[extras] if not below(name, *FOLDERS.values())),
        *(m.name for m in modules() if below(m.name, *SUFFICES[extras]) and not below(m.name, *other_extra)),
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"

    checked(installed / "python", "-c", code, *names, cwd=tmp_path, PYTHONPATH=str(libraries))


def test_job_runs_inline_without_any_extra(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(
        "from queuebridge import task\n"
        "@task(name='report')\n"
        "def report(year: int) -> None:\n"
        "    print(f'the report of {year}')\n"
        "if __name__ == '__main__':\n"
        "    print(report.delay('2024').writes[0].backend)\n"
    )

    assert checked(installed / "python", "jobs.py", cwd=tmp_path, QUEUEBRIDGE_BACKEND="inline") == (
        "the report of 2024\ninline\n"
    )


@pytest.mark.parametrize(
    ("backend_name", "environ"),
    [
        ("qstash", {"QSTASH_TOKEN": "token", "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com"}),
        ("celery", {"CELERY_BROKER_URL": "redis://127.0.0.1:1"}),
        ("rq", {"REDIS_URL": "redis://127.0.0.1:1"}),
    ],
)
def test_job_for_a_backend_without_its_extra_names_the_extra(
    installed: Path, tmp_path: Path, backend_name: str, environ: dict[str, str]
) -> None:
    (tmp_path / "jobs.py").write_text(
        "from queuebridge import task\n@task\ndef report(year: int) -> None: ...\nreport.delay(2024)\n"
    )

    done = run(installed / "python", "jobs.py", cwd=tmp_path, **environ)

    assert done.status == 1
    last = done.stderr.splitlines()[-1]
    assert "MissingExtra" in last
    assert f"pip install 'qstash-queuebridge[{backend_name}]'" in last


@pytest.mark.parametrize("command", [["queuebridge"], ["python", "-m", "queuebridge"]], ids=" ".join)
def test_command_without_its_extra_ends_with_one_clear_line(
    installed: Path, tmp_path: Path, command: list[str]
) -> None:
    done = run(installed / command[0], *command[1:], "demo", cwd=tmp_path)

    assert (done.status, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'qstash-queuebridge[cli]'" in done.stderr
