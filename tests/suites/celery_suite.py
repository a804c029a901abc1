"""Celery's own tests with the bridge below them: `tox run -e celery-suite`.

The tests come from the source distribution of the Celery that is installed, and stay as they are. They run plain, to
know what passes on this machine, and then with a bridge attached to every app: the unit tests in stage `legacy`, the
integration tests over push alone, over `dual` and over `live`. What passes plain and not with the bridge must be
explained in docs/celery-suite.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import celery_suite_differences as comparing  # noqa: E402
from celery_suite_services import DUAL, LEGACY, LIVE, PLAIN, PUSH, STAGE_PUSH, Mode, clean, services  # noqa: E402
from celery_suite_source import unpack_source  # noqa: E402

UNIT = ("t/unit/tasks", "t/unit/app", "t/unit/worker")
INTEGRATION = ("t/integration/test_canvas.py", "t/integration/test_tasks.py", "t/integration/test_group_chains.py")
PAGE = ROOT / "docs" / "celery-suite.md"
QUICK = HERE / "celery_suite_quick.txt"
MODES = {mode.name: mode for mode in (LEGACY, PUSH, STAGE_PUSH, DUAL, LIVE)}
# A run that takes longer hangs.
LONGEST_RUN_SECONDS = 3600


@dataclass
class Suite:
    """One call of this program.

    Attributes:
        source: The folder with Celery's tests.
        folder: Where logs and results go.
        seconds: How long a test may take.
        expression: As in `pytest -k`.
    """

    source: Path
    folder: Path
    seconds: float
    expression: str | None = None

    def run(self, mode: Mode, tests: Sequence[str], *, unit: bool, again: bool = False) -> dict[str, str]:
        """Run tests, and return how they ended."""
        folder = self.folder / f"{'unit' if unit else 'integration'}-{mode.name}{'-again' if again else ''}"
        folder.mkdir()
        results = folder / "results.jsonl"
        started = time.monotonic()
        with self._environment(mode, folder, unit=unit) as more, (folder / "pytest.log").open("wb") as log:
            done = subprocess.run(
                self._command(tests, unit=unit),
                cwd=self.source,
                env={
                    **clean(os.environ),
                    **more,
                    "PYTHONPATH": str(HERE),
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                    "CELERY_SUITE_RESULTS": str(results),
                    "CELERY_SUITE_SECONDS": str(self.seconds),
                    **({"CELERY_SUITE_BRIDGED": "1"} if mode.environment else {}),
                    **({} if mode.worker else {"CELERY_SUITE_NO_WORKER": "1"}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LONGEST_RUN_SECONDS,
                check=False,
            )
        outcomes = comparing.read_outcomes(results)
        took = f"{time.monotonic() - started:.0f} s"
        print(f"{folder.name}: {comparing.count(outcomes)}, in {took}", flush=True)
        if not outcomes:
            raise SystemExit(f"{folder.name}: no test ran.\n{(folder / 'pytest.log').read_text()[-3000:]}")
        # 0: all passed; 1: some failed.
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with {done.returncode}:\n{(folder / 'pytest.log').read_text()[-3000:]}")
        return outcomes

    def _command(self, tests: Sequence[str], *, unit: bool) -> list[str]:
        return [
            *(sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest", "-p", "pytest_timeout"),
            *(("-p", "pytest_click") if unit else ()),
            *("-p", "celery_suite_plugin", "-o", "addopts=--strict-markers"),
            *(("-k", self.expression) if self.expression else ()),
            *tests,
        ]

    @contextmanager
    def _environment(self, mode: Mode, folder: Path, *, unit: bool) -> Iterator[dict[str, str]]:
        if unit:
            yield dict(mode.environment)
        else:
            with services(mode, self.source, folder) as environment:
                yield environment


@dataclass(frozen=True)
class Part:
    """Some tests in one mode."""

    mode: Mode
    tests: Sequence[str]
    unit: bool = False


@dataclass
class Findings:
    """What came out.

    Attributes:
        lines: The report.
        differences: For each mode the tests that pass plain and not with the bridge; unless explained, twice not.
        ran: For each mode how all tests ended.
    """

    lines: list[str] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)
    ran: dict[str, dict[str, str]] = field(default_factory=dict)


def main() -> int:
    """Run the program; return 1 if a difference is not explained."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="celery-suite-") as temporary:
        folder = (arguments.keep or Path(temporary) / "runs").resolve()
        folder.mkdir(parents=True)
        source = unpack_source(Path(temporary))
        suite = Suite(source=source, folder=folder, seconds=arguments.seconds, expression=arguments.k)
        findings = _find(suite, _quick() if arguments.quick else _whole(), arguments.mode, arguments.jobs)
    unexplained = _report(findings, arguments.report)
    return 1 if unexplained else 0


def _whole() -> list[Part]:
    """Return everything, what takes longest first."""
    return [
        *(Part(mode, INTEGRATION) for mode in (PUSH, STAGE_PUSH, DUAL, LIVE, PLAIN)),
        *(Part(mode, UNIT, unit=True) for mode in (LEGACY, PLAIN)),
    ]


def _quick() -> list[Part]:
    """Return a selection, all of which passes plain."""
    selected = [line for line in QUICK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    integration = [test for test in selected if test.startswith("t/integration")]
    unit = [test for test in selected if test.startswith("t/unit")]
    return [Part(PUSH, integration), Part(DUAL, integration), Part(LEGACY, unit, unit=True)]


def _find(suite: Suite, parts: Sequence[Part], modes: Sequence[str], jobs: int) -> Findings:
    """Run the parts, and note what passes plain and not with the bridge.

    What is not explained of that runs again, for it may be unsteady.
    """
    known = comparing.explanations(PAGE)
    bridged = [part for part in parts if part.mode.name in modes]
    units = {part.unit for part in bridged}
    plain = [part for part in parts if part.mode is PLAIN and part.unit in units]
    with ThreadPoolExecutor(jobs) as pool:
        ended = {
            (part.mode.name, part.unit): pool.submit(suite.run, part.mode, part.tests, unit=part.unit)
            for part in parts
            if part in bridged or part in plain
        }
    findings = Findings()
    for part in bridged:
        mode = part.mode.name
        ran = ended[mode, part.unit].result()
        # Without a plain run all is known to pass, except for what is skipped.
        passing = {test: comparing.PASSED for test, outcome in ran.items() if outcome != "skipped"}
        if (PLAIN.name, part.unit) in ended:
            passing = ended[PLAIN.name, part.unit].result()
        different = comparing.new_failures(passing, ran)
        repeated = [test for test in different if not any(row.covers(test, mode) for row in known)]
        again = suite.run(part.mode, repeated, unit=part.unit, again=True) if repeated else {}
        findings.ran[mode] = {**ran, **again}
        findings.differences[mode] = [test for test in different if again.get(test) != comparing.PASSED]
        steady = list(passing.values()).count(comparing.PASSED)
        findings.lines.append(
            f"{mode}: {steady} pass plain; with the bridge {comparing.count(ran)}; "
            f"{len(findings.differences[mode])} differences"
        )
        for test in repeated:
            if again.get(test) == comparing.PASSED:
                findings.lines.append(f"{mode}: failed once, and passed when repeated: {test}")
    return findings


def _report(findings: Findings, report: Path) -> list[str]:
    """Write and show the report; return the differences that are not explained."""
    known = comparing.explanations(PAGE)
    unexplained = []
    for mode, tests in findings.differences.items():
        for test in tests:
            explained = any(row.covers(test, mode) for row in known)
            findings.lines.append(f"{mode}: {'explained' if explained else 'NOT EXPLAINED'}: {test}")
            if not explained:
                unexplained.append(test)
    for row in comparing.unused(known, findings.differences, findings.ran):
        findings.lines.append(f"explained in docs/{PAGE.name}, and passes: {row}")
    text = "\n".join(findings.lines) + "\n"
    report.write_text(text, encoding="utf-8")
    print(f"\n{text}\nThe list is in {report}.")
    return unexplained


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run Celery's own tests, plain and with the bridge below them.")
    parser.add_argument("--quick", action="store_true", help="a selection of at most three minutes, without plain runs")
    parser.add_argument("--mode", action="append", choices=MODES, help="run this one only; may be repeated")
    parser.add_argument("-k", metavar="EXPRESSION", help="select tests as pytest does")
    parser.add_argument("--jobs", type=int, default=6, help="how many runs at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long a test may take (%(default)s)")
    parser.add_argument("--report", type=Path, default=Path("celery-suite.txt"), help="where to write the differences")
    parser.add_argument("--keep", type=Path, help="keep logs and results in this folder")
    arguments = parser.parse_args()
    arguments.mode = arguments.mode or list(MODES)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
