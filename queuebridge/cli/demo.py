"""`queuebridge demo`: the same jobs through every backend, checked against their effects."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections import deque
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from queuebridge.cli.app import ExitCode
from queuebridge.demo.files import choose_files
from queuebridge.demo.run import BACKENDS, DemoResult, run_demo
from queuebridge.errors import QueueBridgeError
from queuebridge.processes import interrupt_on_signals
from queuebridge.settings import environment_or


@click.command("demo")
@click.option("--input", "folder", type=click.Path(path_type=Path), help="Read the files below this folder.")
@click.option("--limit", default=500, show_default=True, type=click.IntRange(min=1), help="Read so many files at most.")
@click.option(
    "--only", "backends", multiple=True, type=click.Choice(BACKENDS), help="Run just this backend; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no progress.")
@click.option("--logs", is_flag=True, help="Show the output of servers and workers.")
def command(folder: Path | None, limit: int, backends: tuple[str, ...], as_json: bool, logs: bool) -> None:
    """Run real jobs through QStash, Celery and RQ, and count their effects.

    Each job reads one file, by default one of Python's own standard library, computes its SHA-256 and counts its
    lines and bytes. QStash is the embedded server with signed pushes to a real receiver; Celery and RQ run in real
    worker processes on REDIS_URL, a redis-server found on the machine, or an embedded one.

    The exit status is 0 exactly if every job took effect once.
    """
    logging.getLogger("queuebridge").setLevel(logging.WARNING)
    interrupt_on_signals()
    files = choose_files(folder, limit)
    console = Console(stderr=True)
    recent: deque[str] = deque(maxlen=40)

    def on_line(name: str, line: str) -> None:
        recent.append(f"{name:>8} | {line}")
        if logs:
            click.echo(recent[-1], err=True)

    with tempfile.TemporaryDirectory(prefix="queuebridge-demo-") as work, Bars(console, quiet=as_json or logs) as bars:
        try:
            result = run_demo(
                files,
                backends=backends or BACKENDS,
                folder=Path(work).resolve(),
                environ=environment_or(None),
                progress=bars,
                on_line=on_line,
            )
        except QueueBridgeError:
            if not logs:
                click.echo("\n".join(recent), err=True)
            raise
    if as_json:
        click.echo(json.dumps({"ok": result.ok, "backends": [backend.as_json() for backend in result.backends]}))
    else:
        _print(result, len(files))
    if not result.ok and not logs:
        click.echo("The last output of the processes:\n" + "\n".join(recent), err=True)
    sys.exit(ExitCode.DONE if result.ok else ExitCode.FAILED)


class Bars:
    """Progress bars: how many jobs were accepted, and how many took effect."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=quiet,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}

    def start(self, backend: str, jobs: int) -> None:
        """Show the bars of a backend."""
        for what in ("enqueued", "executed"):
            self._bars[backend, what] = self._progress.add_task(f"{backend} {what}", total=jobs)

    def sent(self, backend: str, count: int) -> None:
        """Move the first bar."""
        self._progress.update(self._bars[backend, "enqueued"], completed=count)

    def done(self, backend: str, count: int) -> None:
        """Move the second bar."""
        self._progress.update(self._bars[backend, "executed"], completed=count)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _print(result: DemoResult, files: int) -> None:
    table = Table(title=f"{files} files through {', '.join(row.name for row in result.backends)}")
    table.add_column("backend")
    for heading in ("jobs", "executed", "lost", "run twice", "jobs/s", "latency p50", "latency p95"):
        table.add_column(heading, justify="right")
    for row in result.backends:
        table.add_row(
            row.name,
            str(row.jobs),
            str(row.executed),
            f"[red]{row.lost}" if row.lost else "0",
            f"[red]{row.duplicated}" if row.duplicated else "0",
            f"{row.throughput_per_s:.0f}",
            f"{row.latency_p50_ms:.0f} ms",
            f"{row.latency_p95_ms:.0f} ms",
        )
    console = Console()
    console.print(table)
    if result.broker is not None:
        console.print(f"The legacy backends used {result.broker}.")
    if result.ok:
        console.print("[green]Every job took effect exactly once.")
    else:
        console.print("[red]Not every job took effect exactly once.")
