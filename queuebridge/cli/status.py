"""`queuebridge status`: have all processes seen the latest stages?"""

from __future__ import annotations

import sys

import click

from queuebridge.cli.app import ExitCode
from queuebridge.cli.reading import json_option, print_json, print_table
from queuebridge.cli.stage import revision_data
from queuebridge.cli.stages import kept_of, open_ledger
from queuebridge.routing.codec import render
from queuebridge.routing.reach import Reach, reach_of


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show the stages in the ledger, and which processes go by them.

    The exit status is 0 if every living process goes by the latest revision, and 1 if not. A process counts as living
    for 30 s after its last report.
    """
    with open_ledger() as ledger:
        reach = reach_of(ledger.stages)
        now_ms = ledger.now_ms()
    if as_json:
        _print_json(reach, now_ms)
    else:
        latest = reach.latest
        if latest is None:
            click.echo("No revision yet: every task is in stage legacy.")
        else:
            click.echo(f"Revision {latest.number} by {latest.author}: {latest.reason}")
        click.echo(render(kept_of(latest).settings))
        _print_processes(reach, now_ms)
    sys.exit(ExitCode.FAILED if reach.behind else ExitCode.DONE)


def _print_json(reach: Reach, now_ms: int) -> None:
    answer = {
        "revision": revision_data(reach.latest) if reach.latest is not None else None,
        "processes": [
            {
                "process_id": process.process_id,
                "kind": process.kind,
                "revision": process.revision,
                "seen_ms_ago": max(0, now_ms - process.seen_at_ms),
                "behind": process in reach.behind,
            }
            for process in reach.processes
        ],
        "reached_everybody": not reach.behind,
    }
    print_json(answer)


def _print_processes(reach: Reach, now_ms: int) -> None:
    if not reach.processes:
        click.echo("No process has reported within 30 s.")
        return
    rows = []
    for process in reach.processes:
        ago = max(0, now_ms - process.seen_at_ms) / 1000
        late = " (behind)" if process in reach.behind else ""
        rows.append((process.kind, process.process_id, f"{process.revision}{late}", f"{ago:.0f} s ago"))
    print_table(("kind", "process", "revision", "last report"), rows)
    if reach.behind:
        click.echo(f"{len(reach.behind)} of {len(reach.processes)} processes do not go by the latest revision yet.")
    else:
        click.echo("Every process goes by the latest revision.")
