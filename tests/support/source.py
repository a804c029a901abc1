"""The project's own source code, as data."""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Folder below the root -> the name under which it is installed (`package_dir` in setup.cfg).
FOLDERS = {"queuebridge": "queuebridge", "backends": "queuebridge.backends", "bridge_app": "bridge_app"}


@dataclass(frozen=True)
class Module:
    """A module on the disk and its full name when installed."""

    name: str
    path: Path

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return parse(self.path)

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__` of a package."""
        return self.path.name == "__init__.py"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Import:
    """One module that another one imports, anywhere in its code."""

    target: str
    line: int

    @property
    def top(self) -> str:
        """The outermost package."""
        return self.target.partition(".")[0]


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def modules() -> tuple[Module, ...]:
    """Return all modules of the three packages."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names = [package, *(part for part in parts if part != "__init__")]
            found.append(Module(".".join(names), path))
    return tuple(found)


def packages() -> list[str]:
    """Return the names of all packages on the disk."""
    return sorted(module.name for module in modules() if module.is_package)


def imports(module: Module) -> Iterator[Import]:
    """Yield what a module imports: at the top, inside functions and for type checking alike.

    `from package import name` counts as an import of `package.name` if that is a module of ours.
    """
    own = {other.name for other in modules()}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = module.name.split(".")
                base = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
                source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield Import(full if full in own else source, node.lineno)


def is_standard(name: str) -> bool:
    """Say whether a top-level name belongs to the standard library."""
    return name in sys.stdlib_module_names


def below(name: str, *packages: str) -> bool:
    """Say whether a module is one of these packages or lies in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def setup_cfg() -> configparser.ConfigParser:
    """Return setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def setup_list(section: str, option: str) -> list[str]:
    """Return an option of setup.cfg that has one entry a line."""
    return [line for line in setup_cfg()[section][option].splitlines() if line.strip()]
