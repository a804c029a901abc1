"""What the commands about stages have in common: the ledger, and adding a revision."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from queuebridge.cli import ledgers
from queuebridge.errors import ConfigurationError
from queuebridge.ledger import Ledger, Revision
from queuebridge.routing import RoutingSettings, StageRule, StageSettings
from queuebridge.routing.changes import untouched
from queuebridge.routing.codec import describe, from_json, to_json
from queuebridge.stages import ORDER, Stage

Function = TypeVar("Function", bound=Callable[..., Any])

STAGE_NAMES = [stage.value for stage in ORDER]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What the ledger holds: the number of the latest revision, 0 if there is none, and its settings."""

    number: int
    settings: StageSettings


def open_ledger() -> AbstractContextManager[Ledger]:
    """Give the ledger, in which stages are changed; see `queuebridge.cli.ledgers.open_ledger`."""
    return ledgers.open_ledger(
        "Stages are changed in the ledger (without one, the stage is what QUEUEBRIDGE_STAGE says in each process)"
    )


def kept_of(revision: Revision | None) -> Kept:
    """Return what the latest revision holds; without one it is the beginning: every task in stage legacy."""
    if revision is None:
        return Kept(number=0, settings=StageSettings(default=StageRule(stage=Stage.LEGACY)))
    return Kept(number=revision.number, settings=from_json(revision.settings))


def show_plan(kept: Kept, changed: StageSettings, rule: StageRule) -> None:
    """Say what a change of `rule` alters, and which other rules go before it."""
    before, after = kept.settings.all_rules, changed.all_rules
    for sign, these, those in (("-", before, after), ("+", after, before)):
        for one in these:
            if one not in those:
                click.echo(f"{sign} {describe(one)}", err=True)
    for other in untouched(kept.settings, changed, rule):
        click.echo(f"  {describe(other)} (a rule of its own, stays as it is)", err=True)


def add_revision(
    ledger: Ledger, kept: Kept, changed: StageSettings, *, author: str | None, reason: str, forced: bool = False
) -> Revision:
    """Add a revision made from `kept`, and say so.

    Raises:
        RevisionConflict: Somebody else has added one meanwhile.
    """
    revision = ledger.stages.add(
        to_json(changed), after=kept.number, author=author or _user(), reason=reason, forced=forced
    )
    click.echo(f"Revision {revision.number}: {reason}")
    if _goes_by_the_ledger():
        click.echo("Every process goes by it within 5 s; `queuebridge status` says whether all do.", err=True)
    else:
        click.echo(
            "Warning: QUEUEBRIDGE_STAGE is not `ledger` here. Processes with such an environment do not see this "
            "change: set QUEUEBRIDGE_STAGE=ledger for all of them.",
            err=True,
        )
    return revision


def which_tasks(function: Function) -> Function:
    """Add the options that say which rule is meant."""
    queue = click.option("--queue", default="*", show_default=True, help="Only on queues that match this pattern.")
    task = click.option("--task", default="*", show_default=True, help="Only tasks that match this pattern.")
    return task(queue(function))


def author_option(function: Function) -> Function:
    """Add the option that says who makes a change."""
    return click.option("--author", help="Who makes the change. Default: your user name on this machine.")(function)


def _goes_by_the_ledger() -> bool:
    try:
        return RoutingSettings.from_environment().from_ledger
    except ConfigurationError as error:
        # The change is made; what is wrong here may be right where the jobs run.
        click.echo(f"Warning: {error}", err=True)
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container whose user has no name must still be able to roll back.
        return f"user {os.getuid()}"
