"""Whether arguments are JSON, as far as annotations and expressions show it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from queuebridge.backends.celery.inventory.source.names import Function, SourceModule
from queuebridge.backends.celery.inventory.source.project import Project
from queuebridge.backends.celery.inventory.source.values import shortened

# Not JSON, and not among the types that Celery's own JSON knows (datetime, date, time, Decimal, UUID, bytes).
_NOT_JSON = frozenset(
    (
        *("builtins.set", "builtins.frozenset", "builtins.complex", "builtins.bytearray", "builtins.memoryview"),
        *("builtins.object", "builtins.type", "typing.Set", "typing.FrozenSet", "typing.AbstractSet", "typing.Type"),
        *("typing.Callable", "typing.Iterator", "typing.Generator", "typing.IO", "typing.TextIO", "typing.BinaryIO"),
        *("collections.abc.Set", "collections.abc.Callable", "collections.abc.Iterator", "collections.abc.Generator"),
        *("datetime.timedelta", "datetime.tzinfo", "pathlib.Path", "re.Pattern", "typing.Pattern", "range"),
        *("django.db.models.QuerySet", "django.http.HttpRequest", "flask.Request", "pandas.DataFrame"),
        *("numpy.ndarray", "io.BytesIO", "io.StringIO"),
    )
)
_JSON = frozenset(
    (
        *("builtins.bool", "builtins.bytes", "datetime.time", "typing.List", "typing.Dict", "typing.Tuple"),
        *("typing.Sequence", "typing.Mapping", "typing.MutableMapping", "typing.Text", "typing.AnyStr"),
        *("collections.abc.Sequence", "collections.abc.Mapping", "collections.abc.MutableMapping"),
    )
)
# A class with one of these bases is written as JSON after all.
_JSON_BASES = frozenset(
    (
        *("builtins.str", "builtins.int", "builtins.float", "builtins.dict", "builtins.list", "builtins.tuple"),
        *("enum.StrEnum", "enum.IntEnum", "typing.TypedDict", "typing.NamedTuple", "typing_extensions.TypedDict"),
        *("typing.Protocol", "datetime.datetime", "datetime.date", "decimal.Decimal", "uuid.UUID"),
    )
)
_DEPTH = 10
_MODEL_BASES = ("pydantic.BaseModel", "pydantic.main.BaseModel")
_MADE = ("builtins.set", "builtins.frozenset", "builtins.open", "builtins.bytearray", "datetime.timedelta")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a task.

    Attributes:
        name: Its name.
        annotation: Its annotation as written, None if it has none.
        json: Whether its values are JSON for Celery; None if that cannot be seen.
        model: Whether it is a pydantic model.
    """

    name: str
    annotation: str | None
    json: bool | None
    model: bool = False


def parameters_of(project: Project, module: SourceModule, function: Function, *, bound: bool) -> list[Parameter]:
    """Return the parameters of a task's function, without the task itself."""
    arguments = [*function.args.posonlyargs, *function.args.args][1 if bound else 0 :]
    found = []
    for argument in (*arguments, *function.args.kwonlyargs):
        annotation = argument.annotation
        if annotation is None:
            found.append(Parameter(argument.arg, None, None))
            continue
        found.append(
            Parameter(
                argument.arg,
                shortened(annotation),
                is_json(project, module, annotation),
                any(_is_model(project, module, one) for one in _parts(annotation)),
            )
        )
    return found


def is_json(project: Project, module: SourceModule, annotation: ast.expr) -> bool | None:
    """Say whether values with this annotation are JSON; None if nobody can say."""
    answers = [_class_is_json(project, module, one) for one in _parts(annotation)]
    if False in answers:
        return False
    return None if None in answers or not answers else True


def argument_problem(project: Project, module: SourceModule, node: ast.expr, depth: int = 0) -> str | None:
    """Return what an argument at a place of a call is, if it is not JSON for sure."""
    if isinstance(node, ast.Set | ast.SetComp):
        return "a set"
    if isinstance(node, ast.Lambda):
        return "a function"
    if isinstance(node, ast.GeneratorExp):
        return "a generator"
    if isinstance(node, ast.Name):
        annotation = module.annotation_of(node)
        if annotation is not None:
            wrong = is_json(project, module, annotation) is False
            return f"of type {shortened(annotation)}" if wrong else None
        value = module.value_of(node) if depth < _DEPTH else None
        return argument_problem(project, module, value, depth + 1) if value is not None else None
    if not isinstance(node, ast.Call):
        return None
    name = project.resolve(module, node.func)
    if name in _MADE or _class_is_json(project, module, node.func) is False:
        return f"of type {shortened(node.func)}"
    return None


def _parts(annotation: ast.expr) -> Iterator[ast.expr]:
    """Yield the classes that an annotation is made of."""
    if isinstance(annotation, ast.BinOp):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript):
        base = annotation.value
        outer = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if outer == "Literal":
            return
        if outer not in ("Optional", "Union", "Annotated"):
            yield base
        inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for one in inside[:1] if outer == "Annotated" else inside:
            yield from _parts(one)
    elif isinstance(annotation, ast.Name | ast.Attribute) or _is_none(annotation):
        yield annotation


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _class_is_json(project: Project, module: SourceModule, node: ast.expr, depth: int = 0) -> bool | None:
    if isinstance(node, ast.Constant):
        return True
    name = project.resolve(module, node)
    if name is None:
        return None
    if name in _NOT_JSON or name in _MODEL_BASES:
        return False
    if name in _JSON_BASES or name in _JSON:
        return True
    found = project.class_of(name)
    if found is None or depth > _DEPTH:
        return None
    home, definition = found
    if any(isinstance(one, Function) and one.name == "__json__" for one in definition.body):
        return True
    return any(_class_is_json(project, home, base, depth + 1) for base in definition.bases)


def _is_model(project: Project, module: SourceModule, node: ast.expr, depth: int = 0) -> bool:
    name = project.resolve(module, node)
    if name in _MODEL_BASES:
        return True
    found = project.class_of(name)
    if found is None or depth > _DEPTH:
        return False
    home, definition = found
    return any(_is_model(project, home, base, depth + 1) for base in definition.bases)
