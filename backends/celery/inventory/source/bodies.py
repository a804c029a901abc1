"""What the body of a task does that may be different outside a worker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.names import Function, SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import seconds_in, shortened

# Full name, or the beginning of one -> the kind of use. A newcomer adds what else matters here.
_CALLS = {
    "subprocess": "process",
    "multiprocessing": "process",
    "billiard": "process",
    "os.fork": "process",
    "os.system": "process",
    "os.popen": "process",
    "os._exit": "process",
    "concurrent.futures.ProcessPoolExecutor": "process",
    "threading.Thread": "thread",
    "threading.Timer": "thread",
    "_thread": "thread",
    "concurrent.futures.ThreadPoolExecutor": "thread",
    "gevent": "greenlet",
    "eventlet": "greenlet",
    "signal.signal": "signal",
    "signal.alarm": "signal",
    "signal.setitimer": "signal",
    "celery.result.allow_join_result": "join",
    "celery.result.AsyncResult": "async_result",
    "celery.result.GroupResult": "async_result",
}
_RAISED = {
    "celery.exceptions.Reject": "reject",
    "celery.exceptions.Ignore": "ignore",
    "celery.exceptions.Retry": "retry",
}
_CAUGHT = {
    "celery.exceptions.SoftTimeLimitExceeded": "soft_limit",
    "billiard.exceptions.SoftTimeLimitExceeded": "soft_limit",
}
_OF_SELF = {"retry": "retry", "replace": "replace", "add_to_chord": "add_to_chord", "update_state": "update_state"}
_CURRENT = ("celery.current_task", "celery._state.current_task", "celery.app.current_task")
_CHANGING = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear")
)
_WRITING = frozenset("wax+")
_HELPERS = 30


@dataclass(frozen=True, order=True, slots=True)
class Use:
    """Something that a body uses.

    Attributes:
        place: Where.
        kind: What kind of use, as in the tables of this module.
        detail: What exactly.
    """

    place: Place
    kind: str
    detail: str


def find_uses(project: Project, module: SourceModule, node: Function | ast.ClassDef, *, bound: bool) -> list[Use]:
    """Return what a task uses: its function or class, and the functions of the same module that it calls.

    Args:
        project: All sources.
        module: The module of the task.
        node: Its function, or its class.
        bound: Whether the first argument of its function is the task itself.
    """
    found: list[Use] = []
    pending: list[Function | ast.ClassDef] = [node]
    seen: set[ast.AST] = set()
    while pending and len(seen) < _HELPERS:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.add(current)
        found += _uses_of(project, module, current, itself=current is node and bound)
        pending += _helpers(module, current)
    return sorted(set(found))


def _helpers(module: SourceModule, node: ast.AST) -> Iterator[Function]:
    called = {one.func.id for one in ast.walk(node) if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)}
    yield from (one for one in module.tree.body if isinstance(one, Function) and one.name in called)


def _uses_of(
    project: Project, module: SourceModule, node: Function | ast.ClassDef, *, itself: bool
) -> Iterator[Use]:
    for part in node.body:
        for one in ast.walk(part):
            for kind, detail in _kinds(project, module, one, itself=itself or isinstance(node, ast.ClassDef)):
                yield Use(module.place(one), kind, detail)


def _kinds(project: Project, module: SourceModule, node: ast.AST, *, itself: bool) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Call):
        yield from _called(project, module, node, itself=itself)
    elif isinstance(node, ast.Attribute):
        yield from _attribute(project, module, node, itself=itself)
    elif isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        kind = _RAISED.get(project.resolve(module, raised) or "")
        if kind is not None:
            yield "requeue" if kind == "reject" and _requeues(node.exc) else kind, shortened(node.exc)
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        for one in caught:
            kind = _CAUGHT.get(project.resolve(module, one) or "")
            if kind is not None:
                yield kind, shortened(one)
    elif isinstance(node, ast.Global):
        yield "global", ", ".join(node.names)
    elif isinstance(node, ast.Subscript):
        name = _changed_global(module, node)
        if name is not None:
            yield "global", name


def _called(project: Project, module: SourceModule, node: ast.Call, *, itself: bool) -> Iterator[tuple[str, str]]:
    name = project.resolve(module, node.func)
    kind = next((kind for known, kind in _CALLS.items() if name == known or (name or "").startswith(f"{known}.")), None)
    if kind is not None:
        yield kind, shortened(node.func)
    elif name in ("builtins.open", "io.open") and _writes(node):
        yield "file", shortened(node)
    if not isinstance(node.func, ast.Attribute):
        return
    method = node.func.attr
    if itself and _is_task(module, node.func.value) and method in _OF_SELF:
        yield _OF_SELF[method], shortened(node)
        for keyword in node.keywords if method == "retry" else ():
            if keyword.arg in ("countdown", "eta"):
                delay = seconds_in(project, module, keyword.value)
                yield from [("retry_delay", f"{delay:g}")] if delay is not None else []
    elif method == "AsyncResult" and kind is None:
        yield "async_result", shortened(node.func)
    elif method in _CHANGING and isinstance(node.func.value, ast.Name) and _is_global(module, node.func.value):
        yield "global", node.func.value.id


def _attribute(
    project: Project, module: SourceModule, node: ast.Attribute, *, itself: bool
) -> Iterator[tuple[str, str]]:
    if isinstance(node.ctx, ast.Store) and itself and _is_task(module, node.value):
        yield "task_state", shortened(node)
    elif isinstance(node.ctx, ast.Store | ast.Del):
        name = _changed_global(module, node)
        if name is not None:
            yield "global", name
    elif isinstance(node.value, ast.Attribute) and node.value.attr == "request":
        owner = node.value.value
        name = project.resolve(module, owner)
        if (itself and _is_task(module, owner)) or name in _CURRENT or project.task_of(name) is not None:
            yield "request", node.attr


def _is_task(module: SourceModule, node: ast.expr) -> bool:
    """Say whether an expression is the first argument of the function in which it stands."""
    function = module.function_of(node)
    while function is not None and isinstance(node, ast.Name):
        arguments = [*function.args.posonlyargs, *function.args.args]
        if arguments and arguments[0].arg == node.id:
            return True
        function = module.function_of(function)
    return False


def _changed_global(module: SourceModule, node: ast.AST) -> str | None:
    """Return the global of the module that an assignment to an item or attribute changes."""
    if not isinstance(node, ast.Subscript | ast.Attribute) or not isinstance(node.ctx, ast.Store | ast.Del):
        return None
    base: ast.expr = node
    while isinstance(base, ast.Subscript | ast.Attribute):
        base = base.value
    return base.id if isinstance(base, ast.Name) and _is_global(module, base) else None


def _is_global(module: SourceModule, name: ast.Name) -> bool:
    for scope in module.scopes_at(name):
        if name.id in scope.bound or name.id in scope.imports:
            return scope is module.top and name.id in scope.values
    return False


def _requeues(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    given = [*node.args[1:2], *(one.value for one in node.keywords if one.arg == "requeue")]
    return any(not (isinstance(one, ast.Constant) and not one.value) for one in given)


def _writes(node: ast.Call) -> bool:
    mode = node.args[1] if len(node.args) > 1 else next((one.value for one in node.keywords if one.arg == "mode"), None)
    return isinstance(mode, ast.Constant) and bool(_WRITING & set(str(mode.value)))
