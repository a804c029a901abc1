"""`queuebridge reconcile`: publish what the ledger has and the backends have not."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from queuebridge.bridge import Bridge
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.processes import command_line, interrupt_on_signals
from queuebridge.reconcile import Reconciler
from queuebridge.settings import environment_or, read_settings

logger = logging.getLogger(__name__)


@click.command("reconcile")
@click.option("--loop", is_flag=True, help="Go on until stopped.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between two looks. Default: QUEUEBRIDGE_RECONCILE_SECONDS.",
)
@click.option("--parent", type=int, hidden=True, help="Stop when this process, which started us, is gone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(loop: bool, every: float | None, parent: int | None, as_json: bool) -> None:
    """Publish held copies that are due, recorded jobs that no backend has, and jobs whose executor died.

    `queuebridge worker` and `queuebridge dev` do this all the time. Several may run at once. Where neither runs, as
    in stage `push` without workers, run it with --loop, or once a minute by a schedule.
    """
    with Bridge(kind="reconcile") as bridge:
        reconciler = bridge.reconciler()
        if loop:
            interrupt_on_signals()
            pause = every or read_settings(LedgerSettings, environment_or(None)).reconcile_seconds
            try:
                _run(reconciler, pause, parent)
            except KeyboardInterrupt:
                return
        done = reconciler.run_once()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done)))
    else:
        click.echo(
            f"held copies written: {done.released}, unpublished jobs: {done.published}, abandoned jobs: "
            f"{done.redispatched}, failed: {done.failed}, skipped: {done.skipped}"
        )
    sys.exit(1 if done.failed or done.skipped else 0)


@contextmanager
def reconciling(bridge: Bridge) -> Iterator[None]:
    """Reconcile in a process of its own while the block runs, if the bridge has a ledger.

    Not in a thread: workers fork, and a forked child would inherit whatever lock the thread holds at that moment. It
    ends with this process, however that ends.
    """
    if bridge.ledger is None:
        yield
        return
    # Its log goes where ours goes; the new session keeps Ctrl-C from it until the worker has ended.
    child = subprocess.Popen(  # noqa: S603 - our own command
        command_line("reconcile", "--loop", "--parent", str(os.getpid())),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def _run(reconciler: Reconciler, pause: float, parent: int | None) -> None:
    stop = threading.Event()
    away = False
    while parent is None or os.getppid() == parent:
        try:
            reconciler.run_once()
            if away:
                logger.info("The ledger is back.")
            away = False
        except LedgerUnavailable as error:
            if not away:
                logger.error("The ledger cannot be reached; trying on: %s", error, extra={"event": "ledger_down"})
            away = True
        except Exception:
            # Whatever it is, the jobs that come after must not wait for it.
            logger.exception("Reconciling failed; trying on.")
        stop.wait(pause)
