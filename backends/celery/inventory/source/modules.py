"""What modules do with the app as a whole: signals, remote control, events, own workers."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from queuebridge.backends.celery.inventory.source.bodies import Use
from queuebridge.backends.celery.inventory.source.flow import terminates
from queuebridge.backends.celery.inventory.source.names import SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import shortened

_SIGNALS = "celery.signals."
# Attributes of an app -> the kind of use.
_OF_APP = {"control": "control", "events": "events", "steps": "steps", "Worker": "worker", "WorkController": "worker"}
_RESULTS = ("AsyncResult", "GroupResult")
_NAMES = {
    "celery.result.AsyncResult": "async_result",
    "celery.result.GroupResult": "async_result",
    "celery.app.control": "control",
    "celery.events": "events",
    "celery.bootsteps": "steps",
    "celery.worker.WorkController": "worker",
}


def find_module_uses(project: Project, module: SourceModule) -> Iterator[Use]:
    """Yield what a module does with the app."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield from _attribute(project, module, node)
        elif isinstance(node, ast.Call):
            name = project.resolve(module, node.func) or ""
            kind = next((kind for known, kind in _NAMES.items() if name == known or name.startswith(f"{known}.")), None)
            if kind is None and isinstance(node.func, ast.Attribute) and node.func.attr in _RESULTS:
                base = project.resolve(module, node.func.value)
                kind = "async_result" if project.is_app(base) or project.task_of(base) else None
            if kind is not None:
                yield Use(module.place(node), kind, shortened(node.func))


def _attribute(project: Project, module: SourceModule, node: ast.Attribute) -> Iterator[Use]:
    if node.attr == "connect":
        name = project.resolve(module, node.value) or ""
        if name.startswith(_SIGNALS):
            yield Use(module.place(node), "signal", name.removeprefix(_SIGNALS))
    elif node.attr in _OF_APP and project.is_app(_app_of(project, module, node)):
        outer = module.parents.get(node)
        shown = outer if isinstance(outer, ast.Attribute) else node
        kind = _OF_APP[node.attr]
        if isinstance(outer, ast.Attribute) and outer.attr == "revoke":
            kind = "terminate" if terminates(module.parents.get(outer)) else "revoke"
        yield Use(module.place(node), kind, shortened(shown))


def _app_of(project: Project, module: SourceModule, node: ast.Attribute) -> str | None:
    """Return the app that an attribute is taken from; `self.app` in a task is one too."""
    if isinstance(node.value, ast.Attribute) and node.value.attr == "app":
        return "celery.current_app"
    return project.resolve(module, node.value)
