"""What a name means at a place of a module: found in its imports, definitions and plain assignments."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from queuebridge.backends.celery.inventory.records import Place

Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_BUILTINS = frozenset(
    (
        *("str", "int", "float", "bool", "bytes", "bytearray", "memoryview", "complex", "object", "type"),
        *("dict", "list", "tuple", "set", "frozenset", "open", "range", "print", "len", "super"),
    )
)


@dataclass
class Scope:
    """The names that a module or a function binds itself.

    Attributes:
        imports: Name -> the full name of what is imported.
        definitions: Functions and classes.
        values: Name -> the values that are assigned to it, as far as an assignment is plain.
        annotations: Name -> the annotation of an argument or variable.
        bound: All names, and how often each is bound.
        stars: Modules of `from module import *`.
    """

    imports: dict[str, str] = field(default_factory=dict)
    definitions: set[str] = field(default_factory=set)
    values: dict[str, list[ast.expr]] = field(default_factory=dict)
    annotations: dict[str, ast.expr] = field(default_factory=dict)
    bound: Counter[str] = field(default_factory=Counter)
    stars: list[str] = field(default_factory=list)

    def only_value(self, name: str) -> ast.expr | None:
        """Return the value of a name that is bound once, by a plain assignment."""
        values = self.values.get(name, [])
        return values[0] if len(values) == 1 and self.bound[name] == 1 else None


class SourceModule:
    """A module as text: nothing of it is ever executed.

    Args:
        name: Its full name.
        file: How its file is shown.
        tree: Its syntax tree.
        is_package: Whether it is the `__init__` of a package.
    """

    def __init__(self, name: str, file: str, tree: ast.Module, *, is_package: bool = False) -> None:
        self.name = name
        self.file = file
        self.tree = tree
        self._package = name if is_package else name.rpartition(".")[0]
        self._scopes: dict[ast.AST, Scope] = {}

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """Return what each node of the tree is part of."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @property
    def top(self) -> Scope:
        """Return the names of the module itself."""
        return self.scope(self.tree)

    def place(self, node: ast.AST) -> Place:
        """Return where a node stands."""
        return Place(self.file, getattr(node, "lineno", 0))

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what a node is part of, from inside to outside."""
        current = self.parents.get(node)
        while current is not None:
            yield current
            current = self.parents.get(current)

    def function_of(self, node: ast.AST) -> Function | None:
        """Return the function in which a node stands."""
        return next((one for one in self.above(node) if isinstance(one, Function)), None)

    def qualname(self, function: Function | ast.ClassDef) -> str:
        """Return the full name of a function or class."""
        outer = [one.name for one in self.above(function) if isinstance(one, Function | ast.ClassDef)]
        return ".".join([self.name, *reversed(outer), function.name])

    def scope(self, node: ast.AST) -> Scope:
        """Return the names that a module, function or lambda binds."""
        if node not in self._scopes:
            self._scopes[node] = _read_scope(node, self._package)
        return self._scopes[node]

    def scopes_at(self, node: ast.AST) -> Iterator[Scope]:
        """Yield the scopes that are visible at a node, from inside to outside."""
        for outer in self.above(node):
            if isinstance(outer, _SCOPES):
                yield self.scope(outer)

    def resolve(self, node: ast.AST, depth: int = 0) -> str | None:
        """Return the full name of what an expression names, None if that cannot be seen.

        The name is as the module sees it: `Project.canonical` follows it through re-exports.
        """
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, depth)
            return f"{base}.{node.attr}" if base is not None else None
        if not isinstance(node, ast.Name) or depth > 10:
            return None
        for scope in self.scopes_at(node):
            if node.id in scope.imports:
                return scope.imports[node.id]
            if node.id in scope.bound:
                return self._bound(node.id, scope, depth)
        if node.id in _BUILTINS:
            return f"builtins.{node.id}"
        # Perhaps from `import *`: whoever knows the other modules can tell.
        return f"{self.name}.{node.id}" if self.top.stars else None

    def _bound(self, name: str, scope: Scope, depth: int) -> str | None:
        if scope is self.top:
            return f"{self.name}.{name}"
        # Only a name that means one thing in the whole function means something.
        value = scope.only_value(name)
        return self.resolve(value, depth + 1) if isinstance(value, ast.Name | ast.Attribute) else None

    def value_of(self, node: ast.Name) -> ast.expr | None:
        """Return the expression that is assigned to a name, if there is exactly one."""
        for scope in self.scopes_at(node):
            if node.id in scope.bound:
                return scope.only_value(node.id)
        return None

    def values_of(self, node: ast.Name) -> list[ast.expr]:
        """Return the expressions that are assigned to a name."""
        for scope in self.scopes_at(node):
            if node.id in scope.bound:
                return scope.values.get(node.id, [])
        return []

    def annotation_of(self, node: ast.Name) -> ast.expr | None:
        """Return the annotation of a name."""
        for scope in self.scopes_at(node):
            if node.id in scope.bound:
                return scope.annotations.get(node.id)
        return None


def _read_scope(owner: ast.AST, package: str) -> Scope:
    scope = Scope()
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        arguments = owner.args
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, (arguments.vararg, arguments.kwarg)),
        ):
            scope.bound[argument.arg] += 1
            if argument.annotation is not None and argument not in (arguments.vararg, arguments.kwarg):
                scope.annotations[argument.arg] = argument.annotation
    for node in _own_nodes(owner):
        _bind(node, scope, package)
    return scope


def _own_nodes(owner: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, without those of functions and classes inside it."""
    body = getattr(owner, "body", [])
    pending: list[ast.AST] = list(body) if isinstance(body, list) else [body]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (*_SCOPES, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)


def _bind(node: ast.AST, scope: Scope, package: str) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            scope.imports[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
    elif isinstance(node, ast.ImportFrom):
        source = imported_from(node, package)
        for alias in node.names:
            if alias.name == "*":
                scope.stars.append(source)
            else:
                scope.imports[alias.asname or alias.name] = f"{source}.{alias.name}"
    elif isinstance(node, Function | ast.ClassDef):
        scope.definitions.add(node.name)
        scope.bound[node.name] += 1
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        scope.bound[node.id] += 1
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
        _assign(node, scope)


def _assign(node: ast.Assign | ast.AnnAssign | ast.NamedExpr, scope: Scope) -> None:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Name):
            if isinstance(node, ast.AnnAssign):
                scope.annotations[target.id] = node.annotation
            if node.value is not None:
                scope.values.setdefault(target.id, []).append(node.value)


def imported_from(node: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that a `from` import names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *filter(None, [node.module])])
