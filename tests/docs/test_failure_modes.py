"""The page about failures names tests that exist, and has an answer to each failure."""

from __future__ import annotations

import ast
import re

from source import ROOT, parse

PAGE = ROOT / "docs" / "failure-modes.md"
ROW = re.compile(r"^\| (?P<number>\d+) \| (?P<failure>.*?) \| (?P<answer>.*) \| (?P<shown>.*?) \|$", re.MULTILINE)


def named_tests(text: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", text)


def existing_tests() -> set[str]:
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_is_named_exists() -> None:
    existing = existing_tests()
    named = named_tests(PAGE.read_text(encoding="utf-8"))

    assert len(named) > 50
    assert [name for name in named if name not in existing] == []


def test_every_failure_has_a_test_or_a_limit() -> None:
    rows = list(ROW.finditer(PAGE.read_text(encoding="utf-8")))

    assert sorted(int(row["number"]) for row in rows) == list(range(1, 56))
    assert [
        row["number"]
        for row in rows
        if not named_tests(row["shown"])
        and "**Stated limit**" not in row["answer"]
        and "**Not in this version" not in row["answer"]
    ] == []
