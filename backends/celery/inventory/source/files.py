"""Which files are read, and how: by the parser alone, never by importing them."""

from __future__ import annotations

import ast
import os
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from queuebridge.backends.celery.inventory.records import Place
from queuebridge.backends.celery.inventory.source.names import SourceModule

_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages", "dist-packages", "templates", "venv"))
_THIRD_PARTY = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that could not be read.

    Attributes:
        place: Where the trouble is.
        problem: What it is.
    """

    place: Place
    problem: str


@dataclass(frozen=True, slots=True)
class Files:
    """The modules that were read, by their full names, and the files that were not."""

    modules: dict[str, SourceModule]
    unread: tuple[Unread, ...]


def read_files(module_names: Iterable[str], folders: Sequence[Path] = ()) -> Files:
    """Read the source of modules, of everything in their top-level packages, and of further folders and files.

    Of packages that are installed as libraries only the modules themselves are read.

    Args:
        module_names: Modules that are imported already.
        folders: Folders or files to read besides.
    """
    paths: dict[Path, str] = {}
    for name in module_names:
        for path, found in _of_module(name):
            paths.setdefault(path, found)
    for folder in folders:
        for path in [folder] if folder.is_file() else _python_files(folder):
            resolved = path.resolve()
            paths.setdefault(resolved, _name_of(resolved, folder.resolve()))
    modules: dict[str, SourceModule] = {}
    unread: list[Unread] = []
    for path, name in sorted(paths.items()):
        read = _parse(path, name)
        if isinstance(read, Unread):
            unread.append(read)
        else:
            modules.setdefault(name, read)
    return Files(modules, tuple(unread))


def shown(path: str | Path) -> str:
    """Return a path as people like to read it: relative, if it lies below the current folder."""
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)


def is_third_party(file: str | None) -> bool:
    """Say whether a file belongs to an installed library."""
    return file is not None and any(part in _THIRD_PARTY for part in Path(file).parts)


def _of_module(name: str) -> Iterator[tuple[Path, str]]:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        return
    top = sys.modules.get(name.partition(".")[0])
    if is_third_party(file) or not isinstance(top, ModuleType) or not hasattr(top, "__path__"):
        if str(file).endswith(".py"):
            yield Path(file).resolve(), name
        return
    for entry in top.__path__:
        folder = Path(entry).resolve()
        for path in _python_files(folder):
            yield path, _dotted([top.__name__, *path.relative_to(folder).with_suffix("").parts])


def _python_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        # A virtual environment is known by its file, whatever it is called.
        folders[:] = sorted(
            one
            for one in folders
            if one not in _SKIPPED and not one.startswith(".") and not Path(place, one, "pyvenv.cfg").exists()
        )
        yield from (Path(place, name) for name in sorted(names) if name.endswith(".py"))


def _name_of(path: Path, root: Path) -> str:
    """Return the name under which a file would be imported."""
    entries = [Path(entry or ".").resolve() for entry in sys.path]
    bases = sorted((one for one in entries if path.is_relative_to(one)), key=lambda one: len(one.parts), reverse=True)
    for base in (*bases, root if root.is_dir() else root.parent):
        parts = path.relative_to(base).with_suffix("").parts
        if all(part.isidentifier() for part in parts):
            return _dotted(parts)
    return path.stem


def _dotted(parts: Sequence[str]) -> str:
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parse(path: Path, name: str) -> SourceModule | Unread:
    file = shown(path)
    try:
        # As the interpreter does: in the encoding that the file itself names.
        with tokenize.open(path) as stream:
            text = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = _Unquoted().visit(ast.parse(text, file))
    except SyntaxError as error:
        return Unread(Place(file, error.lineno or 0), f"it is not valid Python: {error.msg}")
    except (OSError, ValueError, RecursionError) as error:
        return Unread(Place(file), f"it cannot be read: {type(error).__name__}")
    return SourceModule(name, file, tree, is_package=path.name == "__init__.py")


class _Unquoted(ast.NodeTransformer):
    """Turns annotations that are written in quotes into what they say."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """Change the annotation of an argument."""
        if node.annotation is not None:
            node.annotation = _unquoted(node.annotation)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Change the annotation of a variable."""
        node.annotation = _unquoted(node.annotation)
        return self.generic_visit(node)


def _unquoted(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            inner = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node
        for one in ast.walk(inner):
            if isinstance(one, ast.expr):
                ast.copy_location(one, node)
        return inner
    if isinstance(node, ast.Subscript):
        literal = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        if literal not in ("Literal", "Annotated"):
            inside = node.slice
            node.slice = _unquoted(inside)
            if isinstance(inside, ast.Tuple):
                inside.elts = [_unquoted(one) for one in inside.elts]
    elif isinstance(node, ast.BinOp):
        node.left, node.right = _unquoted(node.left), _unquoted(node.right)
    return node
