"""The values of expressions, as far as they can be told without executing anything."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from queuebridge.backends.celery.inventory.source.names import SourceModule
from queuebridge.backends.celery.inventory.source.project import Project

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNITS = {"weeks": 604_800.0, "days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0, "milliseconds": 0.001}
_TIMEDELTA_ORDER = ("days", "seconds", "microseconds", "milliseconds", "minutes", "hours", "weeks")
_LONGEST_TEXT = 60
_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Value:
    """A value in source code.

    Attributes:
        text: As it is written.
        known: Whether it could be told.
        value: What it is, if so.
    """

    text: str
    known: bool = False
    value: Any = None

    @property
    def number(self) -> float | None:
        """Return it as a number, None if it is none."""
        return float(self.value) if self.known and type(self.value) in (int, float) else None


def value_of(project: Project, module: SourceModule, node: ast.expr, depth: int = 0) -> Value:
    """Return the value of an expression: literals, plain arithmetic, constants of modules and timedelta."""
    text = shortened(node)
    number = seconds_in(project, module, node)
    if number is not None:
        return Value(text, True, number)
    try:
        return Value(text, True, ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        constant = _constant(project, module, node) if depth < _DEPTH else None
        return value_of(project, *constant, depth=depth + 1) if constant is not None else Value(text)


def seconds_in(project: Project, module: SourceModule, node: ast.expr, depth: int = 0) -> float | None:
    """Return a number, or the seconds of a `timedelta`; what is added to a point in time such as now counts."""
    if depth > _DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return float(node.value) if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = seconds_in(project, module, node.operand, depth + 1)
        return -inner if inner is not None else None
    if isinstance(node, ast.BinOp):
        return _arithmetic(project, module, node, depth)
    if isinstance(node, ast.Call):
        return _timedelta(project, module, node, depth)
    constant = _constant(project, module, node)
    return seconds_in(project, *constant, depth=depth + 1) if constant is not None else None


def shortened(node: ast.AST) -> str:
    """Return the text of an expression, its end cut off if it is long."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _arithmetic(project: Project, module: SourceModule, node: ast.BinOp, depth: int) -> float | None:
    left = seconds_in(project, module, node.left, depth + 1)
    right = seconds_in(project, module, node.right, depth + 1)
    if left is None or right is None:
        # A point in time plus a length of time: the length is the delay.
        moment = node.left if left is None else node.right
        added = right if left is None else left
        return added if isinstance(node.op, ast.Add) and _is_now(project, module, moment) else None
    apply = _OPERATORS.get(type(node.op))
    try:
        return apply(left, right) if apply is not None else None
    except (ArithmeticError, ValueError):
        return None


def _is_now(project: Project, module: SourceModule, node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = project.resolve(module, node.func) or ""
    return name.rpartition(".")[2] in ("now", "utcnow", "today")


def _timedelta(project: Project, module: SourceModule, node: ast.Call, depth: int) -> float | None:
    if project.resolve(module, node.func) != "datetime.timedelta":
        return None
    given = [*zip(_TIMEDELTA_ORDER, node.args, strict=False), *((one.arg or "", one.value) for one in node.keywords)]
    total = 0.0
    for unit, expression in given:
        number = seconds_in(project, module, expression, depth + 1)
        if number is None or unit not in _UNITS:
            return None
        total += number * _UNITS[unit]
    return total


def _constant(project: Project, module: SourceModule, node: ast.AST) -> tuple[SourceModule, ast.expr] | None:
    """Return the one expression that a name stands for, in this module or in the one it is imported from."""
    if isinstance(node, ast.Name):
        value = module.value_of(node)
        if value is not None:
            return module, value
    name = project.resolve(module, node)
    if name is None:
        return None
    owner, _, attribute = name.rpartition(".")
    home = project.modules.get(owner)
    found = home.top.only_value(attribute) if home is not None else None
    return (home, found) if home is not None and found is not None else None
