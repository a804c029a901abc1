"""What `queuebridge demo` shows: progress bars, and tables."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from queuebridge.demo.comparison import Comparison
from queuebridge.demo.effects import BackendResult
from queuebridge.demo.outcomes import Migration, StepResult


class Bars:
    """Progress bars: how many jobs were accepted, and how many took effect."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=quiet,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}

    def start(self, part: str, jobs: int) -> None:
        """Show the bars of a part."""
        for what in ("enqueued", "executed"):
            self._bars[part, what] = self._progress.add_task(f"{part} {what}", total=jobs)

    def sent(self, part: str, count: int) -> None:
        """Move the first bar."""
        self._move(part, "enqueued", count)

    def done(self, part: str, count: int) -> None:
        """Move the second bar."""
        self._move(part, "executed", count)

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self._progress.console.print(f"[dim]{text}")

    def _move(self, part: str, what: str, count: int) -> None:
        bar = self._bars.get((part, what))
        if bar is not None:
            self._progress.update(bar, completed=count)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def print_comparison(result: Comparison, files: int) -> None:
    """Print the end of a comparison of backends."""
    console = Console()
    console.print(_backends_table(f"{files} files through {', '.join(row.name for row in result.backends)}", result))
    if result.broker is not None:
        console.print(f"The legacy backends used {result.broker}.")
    _print_verdict(console, result.ok, "Every job took effect exactly once.")


def print_migration(result: Migration) -> None:
    """Print the end of a migration."""
    console = Console()
    jobs = sum(row.jobs for row in result.stages)
    table = Table(title=f"{jobs} files, divided over the way from {result.legacy} to qstash and back and forth")
    table.add_column("step", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    headings = ("jobs", result.legacy, "qstash", "suppressed", "lost", "run twice")
    for heading in (*headings, *(("rerun after kill",) if result.seed is not None else ()), "lag p50", "lag p95"):
        table.add_column(heading, justify="right")
    for row in result.stages:
        table.add_row(*_cells(row, with_chaos=result.seed is not None))
    console.print(table)
    console.print(_backends_table("The same jobs, by the backend that ran them", result))
    console.print(f"{result.legacy} used {result.broker}; the ledger was in {result.ledger}.")
    if result.seed is not None:
        killed = ", ".join(f"{name} {count} times" for name, count in result.kills.items() if count)
        console.print(f"Killed: {killed or 'nothing'} (--seed {result.seed}).")
    if result.strangers:
        console.print(f"[red]{result.strangers} effects are of jobs that were never accepted.")
    if result.left:
        console.print(f"[red]When the demo gave up waiting, there were still {result.left}.")
    once = "Every job took effect exactly once"
    reruns = sum(row.rerun_after_kill for row in result.stages)
    more = f", but for {reruns} whose process was killed before it could say so" if reruns else ""
    _print_verdict(console, result.ok, f"{once}{more}.")


def _cells(row: StepResult, *, with_chaos: bool) -> list[str]:
    return [
        row.step.name,
        row.step.stage.value,
        str(row.jobs),
        *(str(count) for count in row.executed_by.values()),
        str(row.suppressed),
        _bad(row.lost),
        _bad(row.duplicated),
        *([str(row.rerun_after_kill)] if with_chaos else []),
        f"{row.lag_p50_ms:.0f} ms",
        f"{row.lag_p95_ms:.0f} ms",
    ]


def _backends_table(title: str, result: Comparison | Migration) -> Table:
    table = Table(title=title)
    table.add_column("backend")
    for heading in ("jobs", "executed", "lost", "run twice", "jobs/s", "latency p50", "latency p95"):
        table.add_column(heading, justify="right")
    for row in result.backends:
        table.add_row(*_backend_cells(row))
    return table


def _backend_cells(row: BackendResult) -> list[str]:
    return [
        row.name,
        str(row.jobs),
        str(row.executed),
        _bad(row.lost),
        _bad(row.duplicated),
        f"{row.throughput_per_s:.0f}",
        f"{row.latency_p50_ms:.0f} ms",
        f"{row.latency_p95_ms:.0f} ms",
    ]


def _bad(count: int) -> str:
    return f"[red]{count}" if count else "0"


def _print_verdict(console: Console, ok: bool, text: str) -> None:
    console.print(f"[green]{text}" if ok else "[red]Not every job took effect exactly once.")
