"""The pages are complete: generated parts fit the code, every name is documented, every link leads somewhere."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from pydantic import BaseModel
from source import ROOT, modules

import bridge_app
import queuebridge
from bridge_app.replies import STATUS_CODES
from queuebridge import settings
from queuebridge.backend import Backend, Capabilities
from queuebridge.backends.celery.options import CeleryOptions
from queuebridge.backends.qstash.options import QStashOptions
from queuebridge.backends.rq.backend import RQOptions
from queuebridge.cli.app import ExitCode, root
from queuebridge.loading import BACKEND_MODULES
from queuebridge.outcome import Status

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def documented(name: str, text: str) -> bool:
    """Say whether a name stands on a page, alone or at the beginning of some code."""
    return re.search(rf"`{re.escape(name)}[`(=:]", text) is not None


@pytest.mark.parametrize("page", generator.generated())
def test_generated_page_fits_the_code(page: str) -> None:
    assert read(page) == generator.generated()[page], "Run: python docs/generate.py"


def test_drift_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(generator.EXIT_CODES, ExitCode.FAILED, "Something else.")

    assert generator.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/reference/cli.md differs from the code\n"


def all_options() -> Iterator[tuple[str, str]]:
    for name, command in generator.commands_of(root):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield from ((name, option) for option in parameter.opts)


@pytest.mark.parametrize("name", [name for name, _ in generator.commands_of(root)])
def test_command_is_documented_and_mentioned_to_people(name: str) -> None:
    others = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent == DOCS)

    assert f"# queuebridge {name}\n" in read("reference/cli.md")
    assert f"queuebridge {name}" in others


def test_commands_of_groups_are_found() -> None:
    names = [name for name, _ in generator.commands_of(root)]

    assert {"stage", "stage show", "ledger upgrade", "jobs cancel", "worker"} <= set(names)


def test_every_option_of_every_command_is_documented() -> None:
    parts = dict(re.findall(r"(?ms)^##+ queuebridge ([\w ]+)\n(.*?)(?=^##|\Z)", read("reference/cli.md")))

    assert [(name, option) for name, option in all_options() if f"`{option}`" not in parts[name]] == []


def settings_models() -> list[type[BaseModel]]:
    """Return every class of settings in the code."""
    found: list[type[BaseModel]] = []
    for module in modules():
        # `settings` modules, and modules small enough to hold theirs.
        if "_settings(" not in module.path.read_text(encoding="utf-8") and not module.name.endswith("settings"):
            continue
        found += [
            value
            for value in vars(importlib.import_module(module.name)).values()
            if inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == module.name
        ]
    return [model for model in found if any(field.validation_alias for field in model.model_fields.values())]


def all_variables() -> set[str]:
    return {
        variable
        for model in settings_models()
        for field in model.model_fields.values()
        for variable in generator.variables_of(field)
    }


def test_every_class_of_settings_is_documented() -> None:
    assert {model.__name__ for model in settings_models()} == {model.__name__ for _, _, model in generator.SETTINGS}


def test_every_variable_is_documented() -> None:
    variables = all_variables()
    text = read("reference/settings.md")

    assert len(variables) > 20
    assert [name for name in sorted(variables) if not documented(name, text)] == []
    text += read("contributing.md")
    assert [name for name in settings.ADAPTER_VARIABLES if not documented(name, text)] == []


def test_secrets_are_marked() -> None:
    rows = re.findall(r"^\| (.*?) \| ", read("reference/settings.md"), re.MULTILINE)

    assert [row for row in rows if "*secret*" in row] == [
        "`QUEUEBRIDGE_LEDGER` *secret*",
        "`QSTASH_TOKEN` *secret*",
        "`QSTASH_CURRENT_SIGNING_KEY` *secret*",
        "`QSTASH_NEXT_SIGNING_KEY` *secret*",
        "`CELERY_BROKER_URL` *secret*",
        "`CELERY_RESULT_BACKEND` *secret*",
        "`RQ_REDIS_URL`, `REDIS_URL` *secret*",
        "`QUEUEBRIDGE_LEDGER_KEY` *secret*",
    ]


@pytest.mark.parametrize("page", [*PAGES, README], ids=short)
def test_variables_on_a_page_exist(page: Path) -> None:
    known = {
        *settings.ADAPTER_VARIABLES,
        "QUEUEBRIDGE_ENV",
        *all_variables(),
        *(
            option.envvar
            for _, command in generator.commands_of(root)
            for option in generator.options_of(command)
            if option.envvar
        ),
    }
    named = set(re.findall(r"\b(?:QUEUEBRIDGE|QSTASH|CELERY|RQ)_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8")))

    assert {name for name in named if not name.startswith("QUEUEBRIDGE_TEST_")} <= known


# Runs under Alembic only.
MIGRATION_SCRIPT = "queuebridge.storage.sql.migrations.env"


def own_errors() -> list[type[BaseException]]:
    """Return every error class of the three packages."""
    names = {module.name for module in modules()} - {MIGRATION_SCRIPT}
    for name in sorted(names):
        importlib.import_module(name)
    found: list[type[BaseException]] = []
    pending: list[type[BaseException]] = [queuebridge.QueueBridgeError]
    while pending:
        error = pending.pop()
        found.append(error)
        pending += [kind for kind in error.__subclasses__() if kind.__module__ in names]
    return found


def test_every_error_is_documented() -> None:
    text = read("reference/errors.md")

    assert len(own_errors()) > 20
    assert [error.__name__ for error in own_errors() if f"\n## {error.__name__}\n" not in text] == []


def test_errors_of_an_enqueue_are_explained_to_callers() -> None:
    # Those that only tasks, executors and receivers meet are explained elsewhere.
    elsewhere = {
        "EnvelopeError",
        "LeaseLost",
        "LedgerError",
        "MalformedEnvelope",
        "NotAuthentic",
        "PermanentFailure",
        "ProcessFailed",
        "PublishError",
        "RetryLater",
        "RevisionConflict",
        "StageRefused",
        "TaskRegistrationError",
        "TaskTimeout",
        "UnsupportedEnvelope",
    }
    text = read("enqueueing.md")

    assert {error.__name__ for error in own_errors() if not documented(error.__name__, text)} == elsewhere


@pytest.mark.parametrize("name", [*queuebridge.__all__, *(f"bridge_app.{name}" for name in bridge_app.__all__)])
def test_public_name_is_documented(name: str) -> None:
    assert documented(name, read("reference/python.md"))


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "function")]


def fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if not name.startswith("_") and callable(value)]


@pytest.mark.parametrize(
    ("names", "page"),
    [
        (parameters(queuebridge.task), "tasks.md"),
        (parameters(queuebridge.task), "reference/python.md"),
        (fields(queuebridge.EnqueueOptions), "enqueueing.md"),
        (fields(queuebridge.EnqueueOptions), "reference/python.md"),
        (fields(queuebridge.CurrentJob), "tasks.md"),
        (fields(queuebridge.CurrentJob), "reference/python.md"),
        ([*fields(queuebridge.Receipt), "id", "backend", "message_id", "deduplicated"], "enqueueing.md"),
        (list(queuebridge.RetryPolicy.model_fields), "reference/python.md"),
        (methods(queuebridge.Bridge), "reference/python.md"),
        (methods(queuebridge.Task), "reference/python.md"),
        (list(QStashOptions.model_fields), "backends.md"),
        (list(CeleryOptions.model_fields), "backends.md"),
        (list(RQOptions.model_fields), "backends.md"),
        (list(BACKEND_MODULES), "backends.md"),
    ],
    ids=[
        *("task", "task-reference", "options", "options-reference", "current-job", "current-job-reference"),
        *("receipt", "retry-policy", "bridge", "task-methods", "qstash-options", "celery-options", "rq-options"),
        "backends",
    ],
)
def test_names_are_on_their_page(names: list[str], page: str) -> None:
    text = read(page)

    assert names
    assert [name for name in names if not documented(name, text)] == []


def test_generator_knows_every_capability_backend_and_outcome() -> None:
    assert {*generator.CAPABILITIES, "reasons"} == set(fields(Capabilities))
    assert [backend.name for backend in generator.BACKENDS] == list(BACKEND_MODULES)
    assert all(issubclass(backend, Backend) for backend in generator.BACKENDS)
    assert set(generator.OUTCOMES) == set(Status) == set(STATUS_CODES)
    assert set(generator.EXIT_CODES) == set(ExitCode)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)} | set(
        re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    )


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or headings that do not exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", [*PAGES, README, ROOT / "CHANGELOG.md"], ids=short)
def test_internal_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md#a-page) [b](page.md#none) [c](none.md) [d](#a-page)\n")

    assert broken_links(page) == ["page.md#none", "none.md"]


def test_every_page_is_in_the_table_of_contents() -> None:
    trees = "".join(re.findall(r"```{toctree}(.*?)```", read("index.md"), re.DOTALL))
    listed = re.findall(r"^[\w/-]+$", trees, re.MULTILINE)

    assert sorted(listed) == sorted(
        page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.name != "index.md"
    )
