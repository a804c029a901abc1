"""Where tasks are called, with what options, and what becomes of the result."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.flow import Flow, canvas_of, follow, options_of
from queuebridge.backends.celery.inventory.source.names import SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import Value, shortened

# Methods that hardly anything but a task has: one on an unknown object is shown as unresolved.
_TELLING = ("delay", "apply_async", "s", "si", "signature", "subtask")
# Methods that many things have: counted only on what is known to be a task.
_COMMON = ("apply", "map", "starmap", "chunks", "AsyncResult")
_WITHOUT_ARGUMENTS = ("map", "starmap", "chunks", "AsyncResult")
_DEPTH = 10
_ARGUMENTS_IN_A_TUPLE = ("apply_async", "apply", "signature", "subtask", "send_task", "signature by name")
_BY_NAME = frozenset(
    (
        *("celery.signature", "celery.canvas.signature", "celery.subtask", "celery.canvas.subtask"),
        *("celery.Signature", "celery.canvas.Signature", "celery.execute.send_task"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One place where a task is called, or a signature of it is made.

    Attributes:
        place: Where.
        text: What is called, as it is written.
        how: `delay`, `apply_async`, `s`, `send_task`, ...; `AsyncResult` where only a result is looked up.
        task: The name of the task; None if it could not be told which one it is.
        unresolved: Why not.
        options: The options of the publication.
        arguments: The arguments of the task, as expressions.
        canvas: What the call is part of: `chain`, `group`, `chord`, `link`, `replace`, ...
        results: What is done with the result: `get`, `status`, `revoke`, ...
        inside: The full name of the function in which it stands.
    """

    place: Place
    text: str
    how: str
    task: str | None
    unresolved: str | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    arguments: tuple[ast.expr, ...] = ()
    canvas: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    inside: str | None = None


def find_calls(project: Project, module: SourceModule) -> Iterator[Call]:
    """Yield the calls of tasks in a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            call = _read(project, module, node)
            if call is not None:
                yield call


def _read(project: Project, module: SourceModule, node: ast.Call) -> Call | None:
    target = _by_name(project, module, node) or _on_task(project, module, node)
    if target is None:
        return None
    how, task, unresolved = target
    flow = Flow()
    if how in _ARGUMENTS_IN_A_TUPLE:
        options_of(project, module, node, flow)
    if how in ("map", "starmap", "chunks"):
        flow.canvas.append(how)
    follow(project, module, node, flow)
    function = module.function_of(node)
    return Call(
        place=module.place(node),
        text=shortened(node.func),
        how=how,
        task=task,
        unresolved=unresolved,
        options=flow.options,
        arguments=tuple(_arguments(node, how)),
        canvas=tuple(dict.fromkeys(flow.canvas)),
        results=tuple(dict.fromkeys(flow.results)),
        inside=module.qualname(function) if function is not None else None,
    )


def _by_name(project: Project, module: SourceModule, node: ast.Call) -> tuple[str, str | None, str | None] | None:
    resolved = project.resolve(module, node.func)
    attribute = node.func.attr if isinstance(node.func, ast.Attribute) else None
    if attribute == "send_task" or resolved == "celery.execute.send_task":
        how = "send_task"
    elif resolved in _BY_NAME or (attribute in ("signature", "subtask") and _names_a_task(project, module, node)):
        how = "signature by name"
    else:
        return None
    named = [one.value for one in node.keywords if one.arg in ("name", "task")]
    given = next(iter([*node.args[:1], *named]), None)
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        if given.value in project.names:
            return how, given.value, None
        return how, None, f"the app has no task {given.value!r}"
    if given is not None:
        task = project.task_of(project.resolve(module, given.value if isinstance(given, ast.Attribute) else given))
        if task is not None:
            return how, task, None
    return how, None, "the name of the task is not written there"


def _names_a_task(project: Project, module: SourceModule, node: ast.Call) -> bool:
    """Say whether a call of `x.signature` is that of an app: its first argument is the name of a task."""
    if not isinstance(node.func, ast.Attribute):
        return False
    base = project.resolve(module, node.func.value)
    return project.is_app(base) or (
        project.task_of(base) is None
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def _on_task(project: Project, module: SourceModule, node: ast.Call) -> tuple[str, str | None, str | None] | None:
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in (*_TELLING, *_COMMON):
        return None
    how, base = node.func.attr, node.func.value
    if isinstance(base, ast.Call | ast.BinOp):
        # A call of what another call has made, which is followed from there.
        return None if _is_followed(project, module, base) or how in _COMMON else (how, None, _unclear(base))
    name = project.resolve(module, base)
    task = project.task_of(name) or project.task_of(_own_task(project, module, base))
    if task is not None:
        return how, task, None
    if how in _COMMON or (name is not None and not project.owns(name)):
        return None
    if isinstance(base, ast.Name) and _is_followed(project, module, base):
        return None
    if name in project.declared:
        return how, None, f"the app has not loaded the task {name}"
    return how, None, _unclear(base)


def _own_task(project: Project, module: SourceModule, base: ast.expr) -> str | None:
    """Return the task that `self` is in a bound task."""
    function = module.function_of(base)
    if not isinstance(base, ast.Name) or function is None or not function.args.args:
        return None
    name = module.qualname(function)
    is_first = base.id == function.args.args[0].arg
    return name if is_first and project.task_of(name) is not None else None


def _is_followed(project: Project, module: SourceModule, base: ast.expr, depth: int = 0) -> bool:
    """Say whether an expression is a signature or canvas that is found at its own place."""
    if depth > _DEPTH:
        return False
    inner: list[ast.expr] = []
    if isinstance(base, ast.Name):
        # What is made of the name itself is followed if the name is.
        inner = [one for one in module.values_of(base) if isinstance(one, ast.Call | ast.BinOp)]
        inner = [one for one in inner if not _mentions(one, base.id)]
    elif isinstance(base, ast.BinOp):
        inner = [base.left, base.right]
    elif isinstance(base, ast.Call):
        if canvas_of(project, module, base) or project.resolve(module, base.func) in _BY_NAME:
            return True
        if isinstance(base.func, ast.Attribute) and base.func.attr in _TELLING:
            return True
        inner = [base.func.value if isinstance(base.func, ast.Attribute) else base.func]
    return any(_is_followed(project, module, one, depth + 1) for one in inner)


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))


def _unclear(base: ast.expr) -> str:
    return f"it cannot be seen what {shortened(base)} is"


def _arguments(node: ast.Call, how: str) -> Iterator[ast.expr]:
    if how in _WITHOUT_ARGUMENTS:
        return
    if how not in _ARGUMENTS_IN_A_TUPLE:
        yield from (one for one in node.args if not isinstance(one, ast.Starred))
        yield from (one.value for one in node.keywords if one.arg is not None)
        return
    skipped = 1 if how in ("send_task", "signature by name") else 0
    given = dict(zip(("args", "kwargs"), node.args[skipped:], strict=False))
    given |= {one.arg: one.value for one in node.keywords if one.arg in ("args", "kwargs")}
    args, kwargs = given.get("args"), given.get("kwargs")
    if isinstance(args, ast.List | ast.Tuple):
        yield from args.elts
    if isinstance(kwargs, ast.Dict):
        yield from kwargs.values
