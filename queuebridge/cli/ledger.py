"""`queuebridge ledger`: the store of jobs, claims and stage settings."""

from __future__ import annotations

import click

from queuebridge.cli.ledgers import open_ledger, required_ledger_url
from queuebridge.cli.reading import parse_duration
from queuebridge.ledger.custody import new_key
from queuebridge.loading import upgrade_ledger


@click.group("ledger")
def command() -> None:
    """Prepare, check and tidy the ledger that QUEUEBRIDGE_LEDGER names."""


@command.command("upgrade")
def upgrade() -> None:
    """Bring the schema of a SQL ledger up to date; safe to run from several machines at once."""
    click.echo(upgrade_ledger(required_ledger_url()))


@command.command("check")
def check() -> None:
    """Reach the ledger, and see whether its schema is the one that is needed."""
    with open_ledger("This command is about the ledger") as ledger:
        click.echo(f"ok   {ledger.ping()}")


@command.command("purge")
@click.option(
    "--older-than",
    callback=parse_duration,
    required=True,
    metavar="AGE",
    help="How long ago they ended, such as 30d or 12h.",
)
@click.option(
    "--batch", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="How many to forget at a time."
)
def purge(older_than: int, batch: int) -> None:
    """Forget executions that ended long ago, with their deliveries, in small batches."""
    with open_ledger("This command is about the ledger") as ledger:
        before_ms = ledger.now_ms() - older_than
        purged = 0
        while True:
            count = ledger.purge(settled_before_ms=before_ms, limit=batch)
            purged += count
            if count < batch:
                break
    click.echo(f"{purged} executions forgotten")


@command.command("key")
def key() -> None:
    """Make a key for QUEUEBRIDGE_LEDGER_KEY, with which jobs that have secrets are encrypted in the ledger."""
    click.echo(new_key())
