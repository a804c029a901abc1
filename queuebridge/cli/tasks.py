"""`queuebridge tasks`: which tasks there are."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from queuebridge.bridge import Bridge


@click.command("tasks")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the tasks of the modules named by QUEUEBRIDGE_TASKS."""
    # Listing needs no backend, so that it works before one is configured.
    bridge = Bridge("inline")
    bridge.load_tasks()
    rows = [
        {
            "name": task.name,
            "queue": task.queue or bridge.settings.default_queue,
            "retries": task.retry.retries,
            "timeout_seconds": task.timeout,
            "aliases": list(task.aliases),
            "description": task.description,
        }
        for task in bridge.registry
    ]
    if as_json:
        click.echo(json.dumps({"tasks": rows}))
        return
    if not rows:
        click.echo("No tasks: name the modules that declare them in QUEUEBRIDGE_TASKS.", err=True)
        return
    table = Table("task", "queue", "retries", "timeout", "description")
    for row in rows:
        timeout = row["timeout_seconds"]
        table.add_row(
            str(row["name"]),
            str(row["queue"]),
            str(row["retries"]),
            f"{timeout:g} s" if isinstance(timeout, float) else "-",
            str(row["description"]),
        )
    Console().print(table)
