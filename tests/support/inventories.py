"""Inventories of small projects that are given as text, without a Celery app."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from queuebridge.backends.celery.inventory.facts import AppFacts, Seen, Surroundings, TaskFacts
from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.files import Files, Unread
from queuebridge.backends.celery.inventory.source.names import SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.taking import Inventory, examine

APP = AppFacts(
    name="shop",
    path="shop:app",
    broker="amqp://localhost",
    broker_kind="amqp",
    visibility_timeout_seconds=None,
    result_backend=None,
    accept_content=("json",),
)
WORK = "\n\n@app.task\ndef work(): ...\n"


def project_of(
    modules: Mapping[str, str], tasks: Mapping[str, str] | None = None, unread: tuple[Unread, ...] = ()
) -> Project:
    """Return a project of these modules, by their names; `app` in each of them is the Celery app."""
    parsed = {
        name: SourceModule(name, f"{name.replace('.', '/')}.py", ast.parse(textwrap.dedent(text)))
        for name, text in modules.items()
    }
    apps = frozenset(f"{name}.app" for name in modules)
    return Project(Files(parsed, unread), tasks or {}, apps)


def inventory_of(
    source: str = "",
    *,
    app: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    surroundings: Mapping[str, Any] | None = None,
    seen: Seen | None = None,
    unread: tuple[Unread, ...] = (),
) -> Inventory:
    """Return the inventory of a module `shop` with a task `work`, and a task `other` that is loaded elsewhere.

    Args:
        source: The module. A `work` is added if it defines none.
        app, task, surroundings: Changes to the facts.
        seen: What the ledger has seen of `work`.
        unread: Files that could not be read.
    """
    text = "app = make_app()\n" + textwrap.dedent(source)
    if "def work" not in text:
        text += WORK
    project = project_of({"shop": text}, {"shop.work": "shop.work", "shop.other": "shop.other"}, unread)
    node = next(
        one for one in project.modules["shop"].tree.body if isinstance(one, ast.FunctionDef) and one.name == "work"
    )
    facts = TaskFacts(
        name="shop.work", module="shop", qualname="work", place=Place("shop.py", node.lineno), **(task or {})
    )
    return examine(
        project,
        replace(APP, **(app or {})),
        [facts],
        surroundings=replace(Surroundings(), **(surroundings or {})),
        seen={"shop.work": seen} if seen is not None else {},
    )


def rules_of(inventory: Inventory) -> dict[str, list[str]]:
    """Return what each rule has found: of the task, and of the app."""
    found: dict[str, list[str]] = {}
    for finding in (*inventory.findings, *inventory.tasks[0].findings):
        found.setdefault(finding.rule, []).append(finding.what)
    return found
