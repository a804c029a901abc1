"""`queuebridge demo`: real jobs through a whole migration, or through every backend, checked against their effects."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from queuebridge.cli.app import ExitCode
from queuebridge.cli.demo_view import Bars, print_comparison, print_migration
from queuebridge.demo.comparison import BACKENDS, Comparison, compare_backends
from queuebridge.demo.files import choose_files
from queuebridge.demo.ledgers import LEDGERS
from queuebridge.demo.migration import LEGACIES, MigrationPlan, migrate
from queuebridge.demo.outcomes import Migration
from queuebridge.errors import QueueBridgeError
from queuebridge.processes import interrupt_on_signals
from queuebridge.settings import environment_or


@click.command("demo")
@click.option("--input", "folder", type=click.Path(path_type=Path), help="Read the files below this folder.")
@click.option("--limit", default=500, show_default=True, type=click.IntRange(min=1), help="Read so many files at most.")
@click.option(
    "--legacy", type=click.Choice(LEGACIES), default="celery", show_default=True, help="Which backend to migrate from."
)
@click.option(
    "--ledger",
    type=click.Choice(LEDGERS),
    help="Where to keep the ledger: a SQLite file, or a Redis. Default: sqlite, if the extra `sql` is installed.",
)
@click.option("--chaos", is_flag=True, help="Also kill receiver, worker and server at random moments.")
@click.option("--seed", type=int, help="Decides the moments of --chaos. Default: a random one, which is shown.")
@click.option("--backends", "compare", is_flag=True, help="Compare the backends instead: all files through each.")
@click.option(
    "--only", "backends", multiple=True, type=click.Choice(BACKENDS), help="With --backends, just this one; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no progress.")
@click.option("--logs", is_flag=True, help="Show the output of servers and workers.")
def command(
    folder: Path | None,
    limit: int,
    legacy: str,
    ledger: str | None,
    chaos: bool,
    seed: int | None,
    compare: bool,
    backends: tuple[str, ...],
    as_json: bool,
    logs: bool,
) -> None:
    """Take real jobs through all stages of a migration, and count their effects.

    Each job reads one file, by default one of Python's own standard library, computes its SHA-256 and counts its
    lines and bytes. The files are divided over the steps: legacy, shadow, dual, live, a rollback to legacy while jobs
    are being enqueued, live again, rampdown, push. Everything is real: the embedded server keeps its messages in a
    file and pushes them, signed, to a receiver; a worker of Celery or RQ runs on REDIS_URL, a redis-server found on
    the machine, or an embedded one; the stages are changed by `queuebridge stage` and `queuebridge rollback`.

    With --chaos, receiver, worker and server are killed (SIGKILL) again and again. Not the worker in stages legacy and
    shadow, where only the old backend has the jobs, and not the server in stage push, which refuses jobs without it.

    The exit status is 0 exactly if every accepted job took effect once. The only effects that may be repeated are
    those whose process was killed after the effect and before it could be settled; they are counted apart.
    """
    if seed is not None and not chaos:
        raise click.UsageError("--seed decides the moments of --chaos, which is not given.")
    compare = compare or bool(backends)
    if compare and (chaos or ledger is not None):
        raise click.UsageError("--chaos and --ledger belong to the migration, not to --backends.")
    if chaos and seed is None:
        seed = secrets.randbelow(1_000_000)
    _keep_quiet(all_but_disasters=chaos and not logs)
    interrupt_on_signals()
    files = choose_files(folder, limit)
    log = RecentLines(show=logs)
    if seed is not None:
        click.echo(f"The seed is {seed}.", err=True)
    result: Comparison | Migration
    with (
        tempfile.TemporaryDirectory(prefix="queuebridge-demo-") as work,
        Bars(Console(stderr=True), quiet=as_json or logs) as bars,
        log.shown_on_error(),
    ):
        path, environ = Path(work).resolve(), environment_or(None)
        if compare:
            chosen = backends or BACKENDS
            result = compare_backends(
                files, backends=chosen, folder=path, environ=environ, progress=bars, on_line=log.add
            )
        else:
            plan = MigrationPlan(files=files, legacy=legacy, ledger=ledger, seed=seed, folder=path, environ=environ)
            result = migrate(plan, progress=bars, on_line=log.add)
    if as_json:
        click.echo(json.dumps(result.as_json()))
    elif isinstance(result, Comparison):
        print_comparison(result, len(files))
    else:
        print_migration(result)
    if not result.ok:
        log.show("The last output of the processes:")
    sys.exit(ExitCode.DONE if result.ok else ExitCode.FAILED)


class RecentLines:
    """The last lines of all processes, for the case that something goes wrong.

    Args:
        show: Show each line at once.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._lines: deque[str] = deque(maxlen=40)

    def add(self, name: str, line: str) -> None:
        """Take a line of a process."""
        text = f"{name:>8} | {line}"
        self._lines.append(text)
        if self._show:
            click.echo(text, err=True)

    def show(self, *heading: str) -> None:
        """Show the last lines, unless they were shown already."""
        if not self._show:
            click.echo("\n".join([*heading, *self._lines]), err=True)

    @contextmanager
    def shown_on_error(self) -> Iterator[None]:
        """Show the last lines if the block fails."""
        try:
            yield
        except QueueBridgeError:
            self.show()
            raise


def _keep_quiet(*, all_but_disasters: bool) -> None:
    """Let no logs of our own bury the result: there is a line for each job, and with chaos many for each kill."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("queuebridge").setLevel(logging.CRITICAL if all_but_disasters else logging.WARNING)
    # It warns that there are no stages yet, which is where the demo begins.
    logging.getLogger("queuebridge.routing").setLevel(logging.ERROR)
