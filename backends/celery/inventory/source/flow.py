"""What becomes of a signature or result in the function where it is made."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from queuebridge.backends.celery.inventory.source.names import SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import Value, value_of

_CANVAS = {
    f"{package}.{name}": kind
    for package in ("celery", "celery.canvas")
    for name, kind in (
        *(("chain", "chain"), ("group", "group"), ("chord", "chord"), ("chunks", "chunks")),
        *(("xmap", "map"), ("xstarmap", "starmap"), ("_chain", "chain"), ("_chord", "chord")),
    )
}
# Keywords of a publication that are no options of the message.
_NOT_OPTIONS = frozenset(
    ("args", "kwargs", "name", "task", "task_id", "producer", "connection", "router", "link", "link_error", "immutable")
)
_PUBLISHING = ("apply_async", "set", "apply", "delay", "freeze", "clone", "__call__")
_CALLBACKS = ("link", "link_error", "on_error")
_TAKES_SIGNATURES = (*_CALLBACKS, "replace", "add_to_chord", "apply_async")
# What blocks until the result is there, and what only looks at it.
WAITING = frozenset(("get", "wait", "join", "join_native", "collect", "iterate"))
_READING = frozenset(
    (
        *("result", "status", "state", "ready", "successful", "failed", "traceback", "info", "children", "forget"),
        *("results", "completed_count", "then", "maybe_throw", "as_list", "as_tuple", "save"),
    )
)
_CONTROL = frozenset(("revoke", "revoke_by_stamped_headers"))
_COLLECTIONS = (ast.Starred, ast.List, ast.Tuple, ast.Set, ast.IfExp, ast.Await, ast.GeneratorExp, ast.ListComp)
_DEPTH = 12


@dataclass
class Flow:
    """What was found on the way of an expression from inside to outside.

    Attributes:
        options: Options of the publication.
        canvas: What it is part of.
        results: What is done with the result.
        followed: The local names that were followed already, each with its function.
    """

    options: dict[str, Value] = field(default_factory=dict)
    canvas: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    followed: set[tuple[ast.AST, str]] = field(default_factory=set)


def canvas_of(project: Project, module: SourceModule, node: ast.AST) -> str | None:
    """Return `chain`, `group`, ... if an expression makes one."""
    return _CANVAS.get(project.resolve(module, node.func) or "") if isinstance(node, ast.Call) else None


def options_of(project: Project, module: SourceModule, node: ast.Call, flow: Flow) -> None:
    """Note the options of a publication."""
    for keyword in node.keywords:
        if keyword.arg is None:
            flow.options["**"] = Value(f"**{ast.unparse(keyword.value)}")
        elif keyword.arg in ("link", "link_error"):
            flow.canvas.append(keyword.arg)
        elif keyword.arg not in _NOT_OPTIONS:
            flow.options[keyword.arg] = value_of(project, module, keyword.value)


def terminates(node: ast.AST | None) -> bool:
    """Say whether a call may end a job that is under way."""
    return isinstance(node, ast.Call) and any(
        one.arg == "terminate" and not (isinstance(one.value, ast.Constant) and not one.value.value)
        for one in node.keywords
    )


def follow(project: Project, module: SourceModule, node: ast.AST, flow: Flow, depth: int = 0) -> None:
    """Note what becomes of an expression, through calls, operators, collections and local names."""
    if depth > _DEPTH:
        return
    while (parent := module.parents.get(node)) is not None:
        if isinstance(parent, ast.Attribute):
            following = _attribute(project, module, parent, flow)
            if following is None:
                return
            node = following
        elif isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.BitOr):
            flow.canvas.append("chain")
            node = parent
        elif isinstance(parent, ast.Call):
            if not _call(project, module, parent, node, flow, depth):
                return
            node = parent
        elif isinstance(parent, ast.keyword):
            call = module.parents.get(parent)
            if parent.arg in _CALLBACKS:
                flow.canvas.append(str(parent.arg))
                return
            if not isinstance(call, ast.Call) or not canvas_of(project, module, call):
                return
            flow.canvas.append(canvas_of(project, module, call) or "")
            node = call
        elif isinstance(parent, _COLLECTIONS):
            node = parent
        else:
            _assigned(project, module, parent, node, flow, depth)
            return


def _attribute(project: Project, module: SourceModule, attribute: ast.Attribute, flow: Flow) -> ast.AST | None:
    """Note what an attribute of the expression is; return the expression to go on with, None if there is none."""
    name = attribute.attr
    call = module.parents.get(attribute)
    if name in WAITING or name in _READING or name in _CONTROL:
        flow.results.append(name)
        if name in _CONTROL and terminates(call):
            flow.results.append("terminate")
        return None
    if not isinstance(call, ast.Call) or call.func is not attribute:
        return None
    if name in _PUBLISHING:
        options_of(project, module, call, flow)
    elif name in _CALLBACKS:
        flow.canvas.append("link" if name == "link" else "link_error")
    elif name == "stamp":
        flow.canvas.append("stamp")
    return call


def _call(project: Project, module: SourceModule, call: ast.Call, node: ast.AST, flow: Flow, depth: int) -> bool:
    """Note what a call does with the expression; say whether its outcome is to be followed."""
    if call.func is node:
        return True
    kind = canvas_of(project, module, call) or canvas_of(project, module, call.func)
    if kind is not None:
        flow.canvas.append(kind)
        return True
    if isinstance(call.func, ast.Attribute):
        name = call.func.attr
        if name in ("append", "extend", "insert", "add") and isinstance(call.func.value, ast.Name):
            _uses(project, module, call.func.value, flow, depth)
        elif name in _TAKES_SIGNATURES:
            flow.canvas.append({"on_error": "link_error", "apply_async": "chord"}.get(name, name))
    return False


def _assigned(
    project: Project, module: SourceModule, parent: ast.AST, node: ast.AST, flow: Flow, depth: int
) -> None:
    targets: list[ast.expr] = []
    if isinstance(parent, ast.Assign) and parent.value is node:
        targets = parent.targets
    elif isinstance(parent, ast.AnnAssign | ast.NamedExpr | ast.AugAssign | ast.comprehension | ast.For):
        made = parent.iter if isinstance(parent, ast.comprehension | ast.For) else parent.value
        targets = [parent.target] if made is node else []
    for target in targets:
        if isinstance(target, ast.Name):
            _uses(project, module, target, flow, depth)


def _uses(project: Project, module: SourceModule, name: ast.Name, flow: Flow, depth: int) -> None:
    """Follow every use of a local name in its function."""
    owner: ast.AST = module.function_of(name) or module.tree
    if (owner, name.id) in flow.followed:
        return
    flow.followed.add((owner, name.id))
    for node in ast.walk(owner):
        if isinstance(node, ast.Name) and node.id == name.id and isinstance(node.ctx, ast.Load) and node is not name:
            follow(project, module, node, flow, depth + 1)
