"""Compare runs of Celery's tests, and know the differences that the documentation explains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PASSED = "passed"
_TABLE = "<!-- differences of celery's own suite -->"

Outcomes = Mapping[str, str]


def read_outcomes(file: Path) -> dict[str, str]:
    """Return how each test of a run ended, from the lines that the plugin wrote."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["test"]: line["outcome"] for line in lines}


def count(outcomes: Outcomes) -> str:
    """Return a summary of a run."""
    values = list(outcomes.values())
    return f"{values.count(PASSED)} passed, {values.count('failed')} failed, {values.count('skipped')} skipped"


def new_failures(plain: Outcomes, bridged: Outcomes) -> list[str]:
    """Return the tests that pass plain and do not with a bridge."""
    return [test for test, outcome in plain.items() if outcome == PASSED and bridged.get(test) != PASSED]


@dataclass(frozen=True)
class Explanation:
    """A row of the table in the documentation.

    Attributes:
        test: The id of a test, from its file name on; `[*]` at its end stands for all parameters.
        modes: Where it may differ.
    """

    test: str
    modes: frozenset[str]

    def covers(self, test: str, mode: str) -> bool:
        """Return whether this row is about a test in a mode."""
        if mode not in self.modes:
            return False
        known = test.rpartition("/")[2] if "[" not in test else test[: test.index("[")].rpartition("/")[2]
        if self.test.endswith("[*]"):
            return known == self.test.removesuffix("[*]")
        return test.endswith(f"/{self.test}")


def explanations(page: Path) -> list[Explanation]:
    """Return the rows of the table on a page.

    Raises:
        ValueError: There is no such table.
    """
    _, marker, rest = page.read_text(encoding="utf-8").partition(_TABLE)
    if not marker:
        raise ValueError(f"{page} has no table after {_TABLE!r}.")
    found = []
    for line in rest.lstrip().splitlines():
        if not line.startswith("|"):
            break
        test, modes, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        if test.startswith("`"):
            found.append(Explanation(test.strip("`"), frozenset(mode.strip() for mode in modes.split(","))))
    return found


def unused(
    known: Iterable[Explanation], differences: Mapping[str, Iterable[str]], ran: Mapping[str, Outcomes]
) -> list[str]:
    """Return what is explained and passes: a row for each mode in which no test that it covers differs.

    Args:
        known: The explanations.
        differences: The tests that differ, for each mode.
        ran: All tests that ran, for each mode.
    """
    passing = []
    for row in known:
        for mode in sorted(row.modes & ran.keys()):
            covered = [test for test in ran[mode] if row.covers(test, mode)]
            if covered and not set(covered) & set(differences[mode]):
                passing.append(f"{row.test} ({mode})")
    return passing
