"""`queuebridge rollback`: bring tasks back to an earlier stage."""

from __future__ import annotations

import click

from queuebridge.cli.legacy_workers import unclaiming_workers
from queuebridge.cli.stages import STAGE_NAMES, add_revision, author_option, kept_of, open_ledger, show_plan
from queuebridge.errors import StageRefused
from queuebridge.routing.changes import governing, rolled_back
from queuebridge.stages import Stage


@click.command("rollback")
@click.option("--task", default="*", show_default=True, help="Only tasks that match this pattern.")
@click.option("--to", type=click.Choice(STAGE_NAMES[:-1]), help="To this stage, in place of the one before.")
@click.option("--release-now", is_flag=True, help="Also write every safety copy that is held back, now.")
@click.option("--reason", required=True, help="Why, for the history.")
@author_option
def command(task: str, to: str | None, release_now: bool, reason: str, author: str | None) -> None:
    """Bring tasks back: each to the stage before its own, or all that are beyond it to the one named by --to.

    It takes in every rule for the tasks that the pattern matches. It asks for no evidence and no confirmation, and is
    safe at any moment: what was accepted runs. Workers that take jobs without claiming them are warned of.
    """
    with open_ledger() as ledger:
        kept = kept_of(ledger.stages.current())
        try:
            changed = rolled_back(kept.settings, task, Stage(to) if to else None)
        except StageRefused as error:
            # Whoever asks a second time may still want what is held back.
            if not release_now:
                raise
            click.echo(str(error), err=True)
        else:
            rule = governing(changed, task, "*")
            show_plan(kept, changed, rule)
            add_revision(ledger, kept, changed, author=author, reason=reason)
            # Afterwards: going back must not wait for anybody.
            for text in unclaiming_workers(rule):
                click.echo(f"Warning: {text}", err=True)
        if release_now:
            click.echo(f"{ledger.release_held()} safety copies that were held back are due now.")
