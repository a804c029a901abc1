"""Limits that keep files readable, and tests that would never run."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from source import ROOT, modules, parse

MAX_LINES = 400

TESTS = ROOT / "tests"
TEST_SOURCES = sorted(TESTS.rglob("*.py"))
SUPPORT = [path for path in TEST_SOURCES if not path.name.startswith("test_")]
TEST_FILES = [path for path in TEST_SOURCES if path.name.startswith("test_")]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*(module.path for module in modules()), *SUPPORT], ids=short)
def test_file_is_no_longer_than_the_limit(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())

    assert lines <= MAX_LINES, "Split it: it has more than one reason to change."


def test_tests_are_no_package() -> None:
    # With one, pytest would put the project's root on the path, and `backends` would be importable twice.
    assert list(TESTS.rglob("__init__.py")) == []


@pytest.mark.parametrize("path", TEST_SOURCES, ids=short)
def test_every_test_is_collected(path: Path) -> None:
    assert list(uncollected(parse(path), path.name)) == []


@pytest.mark.parametrize("path", TEST_FILES, ids=short)
def test_no_test_hides_another_one_of_its_name(path: Path) -> None:
    assert list(duplicates(parse(path))) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def check_it():\n    assert True", "check_it"),
        ("def tset_it():\n    assert True", "tset_it"),
        ("def test_outer():\n    def test_inner():\n        pass\n    test_inner()", "test_inner"),
        ("class Checks:\n    def test_it(self):\n        pass", "Checks"),
        (
            "class TestIt:\n    def __init__(self):\n        pass\n    def test_it(self):\n        pass",
            "TestIt",
        ),
        ("class TestIt:\n    def checks_it(self):\n        pass", "checks_it"),
    ],
)
def test_uncollected_test_is_noticed(code: str, name: str) -> None:
    assert list(uncollected(ast.parse(code), "test_x.py")) == [name]


def test_test_outside_a_test_file_is_noticed() -> None:
    assert list(uncollected(ast.parse("def test_it():\n    pass"), "helpers.py")) == ["test_it"]


def test_hidden_test_is_noticed() -> None:
    code = "class TestA:\n    def test_x(self): ...\n    def test_x(self): ...\ndef test_x(): ...\n"

    assert list(duplicates(ast.parse(code))) == ["test_x"]


def uncollected(tree: ast.Module, file_name: str) -> Iterator[str]:
    """Yield the names of functions and classes that pytest ignores, though they look like tests.

    In a test file everything is a test, a fixture, a hook, or used by one of them. A class with tests under
    another name is a contract: some class inherits from it, perhaps in another file.
    """
    in_test_file = file_name.startswith("test_")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in tree.body:
        if isinstance(node, Function):
            yield from _uncollected_function(node, used, in_test_file)
        elif isinstance(node, ast.ClassDef):
            yield from _uncollected_class(node, used, in_test_file)


def _uncollected_function(node: Function, used: set[str], in_test_file: bool) -> Iterator[str]:
    for inner in ast.walk(node):
        if inner is not node and isinstance(inner, Function) and inner.name.startswith("test_"):
            yield inner.name
    if node.name.startswith("test_"):
        if not in_test_file:
            yield node.name
    elif in_test_file and node.name not in used and not _is_fixture_or_hook(node):
        yield node.name


def _uncollected_class(node: ast.ClassDef, used: set[str], in_test_file: bool) -> Iterator[str]:
    functions = [function for function in node.body if isinstance(function, Function)]
    tests = [function for function in functions if function.name.startswith("test_")]
    if not node.name.startswith("Test"):
        if tests and in_test_file and node.name not in used:
            yield node.name
        return
    if any(function.name in ("__init__", "__new__") for function in functions):
        yield node.name
    if in_test_file:
        for function in functions:
            special = function.name.startswith("__") or function.name.startswith("setup") or function.decorator_list
            if function not in tests and not special and function.name not in used:
                yield function.name


def _is_fixture_or_hook(node: Function) -> bool:
    return node.name.startswith("pytest_") or any(
        "fixture" in ast.unparse(d) or "register" in ast.unparse(d) or "task" in ast.unparse(d)
        for d in node.decorator_list
    )


def duplicates(tree: ast.Module) -> Iterator[str]:
    """Yield the names of tests that are defined twice in one place."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Module | ast.ClassDef):
            names = Counter(
                node.name
                for node in scope.body
                if isinstance(node, Function | ast.ClassDef) and node.name.lower().startswith("test")
            )
            yield from (name for name, count in names.items() if count > 1)
