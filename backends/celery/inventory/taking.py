"""Take the inventory: read the app and the source, bring both together, judge."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import celery

from queuebridge.backends.celery.inventory.app_reading import (
    apps_in_modules,
    load_app,
    names_in_modules,
    read_app,
    read_tasks,
)
from queuebridge.backends.celery.inventory.facts import AppFacts, Seen, Surroundings, TaskFacts
from queuebridge.backends.celery.inventory.records import Finding, Place, Severity, Verdict, verdict_of
from queuebridge.backends.celery.inventory.rules import APP_RULES, TASK_RULES
from queuebridge.backends.celery.inventory.rules.table import AppSubject, TaskSubject
from queuebridge.backends.celery.inventory.source.annotations import argument_problem, parameters_of
from queuebridge.backends.celery.inventory.source.bodies import Use, find_uses
from queuebridge.backends.celery.inventory.source.calls import Call, find_calls
from queuebridge.backends.celery.inventory.source.files import Files, read_files
from queuebridge.backends.celery.inventory.source.modules import find_module_uses
from queuebridge.backends.celery.inventory.source.names import Function, SourceModule
from queuebridge.backends.celery.inventory.source.project import Project


@dataclass(frozen=True, kw_only=True)
class TaskInventory:
    """What is known of a task, and whether it can move.

    Attributes:
        subject: What is known.
        verdict: Whether it can move.
        findings: What matters for that, the worst first.
    """

    subject: TaskSubject
    verdict: Verdict
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What is known of an app and its tasks.

    Attributes:
        subject: What is known of the app as a whole.
        findings: What matters of the app as a whole, the worst first.
        tasks: The tasks that were asked for, in the order of their names.
        files: How many files were read.
    """

    subject: AppSubject
    findings: tuple[Finding, ...]
    tasks: tuple[TaskInventory, ...]
    files: int


@dataclass
class _Gathered:
    """What the source says, by task."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    bad_arguments: dict[str, list[tuple[Place, str]]] = field(default_factory=dict)
    inner: dict[str, list[Call]] = field(default_factory=dict)
    unresolved: list[Call] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)


def take_inventory(
    path: str,
    *,
    option: str = "--celery",
    folders: Sequence[Path] = (),
    pattern: str | None = None,
    surroundings: Surroundings | None = None,
    seen: Mapping[str, Seen] | None = None,
) -> Inventory:
    """Read an app and its source, and say of each task whether it can move to push delivery.

    The app and the modules of its tasks are imported; the source is only parsed.

    Args:
        path: The app, as `package.module:attribute`.
        option: What named the app, for errors.
        folders: Further folders or files of source to read.
        pattern: Only tasks whose name fits this glob pattern.
        surroundings: The limits of push, and what the ledger can do.
        seen: What the ledger has seen, by the name of the task.

    Raises:
        ConfigurationError: There is no such app.
    """
    app = load_app(path, option=option)
    tasks = read_tasks(app)
    files = read_files([path.partition(":")[0], *(task.module for task in tasks)], folders)
    return examine(
        _project(app, path, files),
        read_app(app, path),
        tasks,
        pattern=pattern,
        surroundings=surroundings or Surroundings(),
        seen=seen or {},
    )


def examine(
    project: Project,
    app: AppFacts,
    tasks: Sequence[TaskFacts],
    *,
    pattern: str | None = None,
    surroundings: Surroundings,
    seen: Mapping[str, Seen],
) -> Inventory:
    """Bring together what the app and the source say, and judge. As `take_inventory` otherwise."""
    gathered = _gather(project)
    subject = AppSubject(
        app=app,
        task_names=frozenset(task.name for task in tasks),
        uses=sorted(set(gathered.uses)),
        unresolved=sorted(gathered.unresolved, key=lambda call: call.place),
        unread=project.unread,
        not_loaded=_not_loaded(project),
    )
    return Inventory(
        subject=subject,
        findings=_ordered(finding for rule in APP_RULES for finding in rule.findings(subject)),
        tasks=tuple(
            judge(_subject(project, gathered, app, task, surroundings, seen.get(task.name)))
            for task in tasks
            if pattern is None or fnmatchcase(task.name, pattern)
        ),
        files=len(project.modules),
    )


def judge(subject: TaskSubject) -> TaskInventory:
    """Apply all rules to a task."""
    findings = _ordered(finding for rule in TASK_RULES for finding in rule.findings(subject))
    return TaskInventory(subject=subject, verdict=verdict_of(findings), findings=findings)


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: -finding.severity.rank))


def _project(app: celery.Celery, path: str, files: Files) -> Project:
    module, _, attribute = path.partition(":")
    return Project(
        files,
        names_in_modules(files.modules, app),
        apps_in_modules(files.modules) | {f"{module}.{attribute}"},
    )


def _gather(project: Project) -> _Gathered:
    gathered = _Gathered()
    for module in project.modules.values():
        gathered.uses += find_module_uses(project, module)
        for call in find_calls(project, module):
            if call.inside is not None:
                gathered.inner.setdefault(call.inside, []).append(call)
            if call.task is None:
                gathered.unresolved.append(call)
                continue
            gathered.calls.setdefault(call.task, []).append(call)
            for argument in call.arguments:
                problem = argument_problem(project, module, argument)
                if problem is not None:
                    gathered.bad_arguments.setdefault(call.task, []).append((module.place(argument), problem))
    return gathered


def _not_loaded(project: Project) -> list[tuple[str, Place]]:
    return [
        (name, place)
        for name, (written, place) in sorted(project.declared.items())
        if project.task_of(name) is None and written not in project.names
    ]


def _subject(
    project: Project,
    gathered: _Gathered,
    app: AppFacts,
    task: TaskFacts,
    surroundings: Surroundings,
    seen: Seen | None,
) -> TaskSubject:
    found = project.at(task.place) if task.place is not None else None
    read: dict[str, Any] = {}
    if found is not None:
        module, node = found
        function = _run_of(node)
        read["parameters"] = parameters_of(project, module, function, bound=task.bound) if function is not None else ()
        read["inner_calls"] = _inner(module, node, gathered)
        read["uses"] = find_uses(project, module, node, bound=task.bound)
    return TaskSubject(
        task=task,
        app=app,
        surroundings=surroundings,
        bad_arguments=gathered.bad_arguments.get(task.name, []),
        calls=sorted(gathered.calls.get(task.name, []), key=lambda call: call.place),
        schedules=[entry for entry in app.schedules if entry.task == task.name],
        seen=seen,
        **read,
    )


def _run_of(node: Function | ast.ClassDef) -> Function | None:
    if isinstance(node, Function):
        return node
    return next((one for one in node.body if isinstance(one, Function) and one.name == "run"), None)


def _inner(module: SourceModule, node: Function | ast.ClassDef, gathered: _Gathered) -> list[Call]:
    name = module.qualname(node)
    return [
        call
        for inside, calls in gathered.inner.items()
        if inside == name or inside.startswith(f"{name}.")
        for call in calls
    ]


def counts(inventory: Inventory) -> dict[str, int]:
    """Return how many tasks have each verdict."""
    return {verdict.value: sum(task.verdict is verdict for task in inventory.tasks) for verdict in Verdict}


def is_blocked(inventory: Inventory) -> bool:
    """Say whether a task, or the app as a whole, cannot move yet."""
    return any(task.verdict is Verdict.BLOCKED for task in inventory.tasks) or any(
        finding.severity is Severity.BLOCKER for finding in inventory.findings
    )
