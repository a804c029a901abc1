"""`queuebridge reconcile`: publish what the ledger has and the backends have not."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from queuebridge.bridge import Bridge
from queuebridge.reconciling import reconcile_until_stopped


@click.command("reconcile")
@click.option("--loop", is_flag=True, help="Go on until stopped.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between two looks. Default: QUEUEBRIDGE_RECONCILE_SECONDS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(loop: bool, every: float | None, as_json: bool) -> None:
    """Publish held copies that are due, recorded jobs that no backend has, and jobs whose executor died.

    `queuebridge worker`, `queuebridge dev` and the Celery workers of an app with the bridge do this all the time.
    Several may run at once. Where none of them runs, as in stage `push` without workers, run it with --loop, or once
    a minute by a schedule.
    """
    with Bridge(kind="reconcile") as bridge:
        if loop:
            reconcile_until_stopped(bridge, every=every)
            return
        done = bridge.reconciler().run_once()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done)))
    else:
        click.echo(
            f"held copies written: {done.released}, unpublished jobs: {done.published}, abandoned jobs: "
            f"{done.redispatched}, failed: {done.failed}, skipped: {done.skipped}"
        )
    sys.exit(1 if done.failed or done.skipped else 0)
