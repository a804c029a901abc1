"""All modules that were read, and which names in them are tasks."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cached_property

from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.files import Files
from queuebridge.backends.celery.inventory.source.names import Function, SourceModule

_HOPS = 20


class Project:
    """The source of a project.

    Args:
        files: What was read.
        tasks: Full name of a Python object -> name of the task that it is.
        apps: Full names of Celery apps.

    Attributes:
        modules: The modules, by their full names.
        unread: The files that could not be read.
        names: The names of all tasks.
    """

    def __init__(self, files: Files, tasks: Mapping[str, str], apps: frozenset[str] = frozenset()) -> None:
        self.modules = files.modules
        self.unread = files.unread
        self.names = frozenset(tasks.values())
        self._tasks = {self.canonical(name): task for name, task in tasks.items()} | dict(tasks)
        self._apps = apps | {self.canonical(name) for name in apps}

    def resolve(self, module: SourceModule, node: ast.AST) -> str | None:
        """Return the full name of what an expression names, followed to its definition."""
        name = module.resolve(node)
        return self.canonical(name) if name is not None else None

    def canonical(self, name: str) -> str:
        """Return the name under which something is defined, for one under which it can be had."""
        for _ in range(_HOPS):
            following = self._step(name)
            if following is None or following == name:
                break
            name = following
        return name

    def task_of(self, name: str | None) -> str | None:
        """Return the name of the task that a Python name stands for, None if it stands for none."""
        return self._tasks.get(name) if name is not None else None

    def is_app(self, name: str | None) -> bool:
        """Say whether a name is a Celery app."""
        return name is not None and (name in self._apps or name == "celery.current_app")

    def owns(self, name: str) -> bool:
        """Say whether a name lies in a module that was read."""
        return self._split(name) is not None

    def class_of(self, name: str | None) -> tuple[SourceModule, ast.ClassDef] | None:
        """Return the definition of a class that stands at the top of a module."""
        found = self._split(name) if name is not None else None
        if found is None:
            return None
        module, rest = found
        if len(rest) != 1:
            return None
        body = module.tree.body
        node = next((one for one in body if isinstance(one, ast.ClassDef) and one.name == rest[0]), None)
        return (module, node) if node is not None else None

    def at(self, place: Place) -> tuple[SourceModule, Function | ast.ClassDef] | None:
        """Return the function or class that begins at a place, its decorators included."""
        for module in self.modules.values():
            if module.file != place.file:
                continue
            for node in ast.walk(module.tree):
                if isinstance(node, Function | ast.ClassDef) and place.line in _first_lines(node):
                    return module, node
        return None

    @cached_property
    def declared(self) -> dict[str, tuple[str | None, Place]]:
        """Return what looks like a task: full name -> its task name, if it is written there, and its place.

        That is every function with the decorator `shared_task` or `task` of a Celery app.
        """
        found: dict[str, tuple[str | None, Place]] = {}
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if not isinstance(node, Function):
                    continue
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if self._declares(module, called):
                        found[module.qualname(node)] = (_written_name(decorator), module.place(node))
        return found

    def _declares(self, module: SourceModule, decorator: ast.expr) -> bool:
        name = self.resolve(module, decorator)
        if name is None:
            return False
        if name in ("celery.shared_task", "celery.app.shared_task"):
            return True
        base, _, attribute = name.rpartition(".")
        return attribute == "task" and self.is_app(base)

    def _step(self, name: str) -> str | None:
        found = self._split(name)
        if found is None:
            return None
        module, (first, *rest) = found
        scope = module.top
        target: str | None = None
        if first in scope.imports:
            target = scope.imports[first]
        elif first in scope.definitions:
            return None
        elif first in scope.bound:
            value = scope.only_value(first)
            if isinstance(value, ast.Name | ast.Attribute):
                target = module.resolve(value)
        else:
            target = next((f"{star}.{first}" for star in scope.stars if self._has(star, first)), None)
        return ".".join([target, *rest]) if target is not None else None

    def _has(self, module_name: str, name: str) -> bool:
        module = self.modules.get(module_name)
        return module is not None and (name in module.top.bound or name in module.top.imports)

    def _split(self, name: str) -> tuple[SourceModule, list[str]] | None:
        """Return the module that a full name lies in, and what follows its name."""
        parts = name.split(".")
        for size in range(len(parts) - 1, 0, -1):
            module = self.modules.get(".".join(parts[:size]))
            if module is not None:
                return module, parts[size:]
        return None


def _first_lines(node: Function | ast.ClassDef) -> set[int]:
    return {node.lineno, *(decorator.lineno for decorator in node.decorator_list)}


def _written_name(decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Call):
        for keyword in decorator.keywords:
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return None
