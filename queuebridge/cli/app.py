"""The root command: global options, and errors as one line with an exit status."""

from __future__ import annotations

import enum
import logging
import sys
import traceback
from typing import Any

import click

from queuebridge.errors import (
    BackendUnavailable,
    ConfigurationError,
    LedgerUnavailable,
    MissingExtra,
    PublishOutcomeUnknown,
    QueueBridgeError,
)
from queuebridge.loading import import_optional


class ExitCode(enum.IntEnum):
    """What the exit status of every command means."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # click's own
    CONFIGURATION = 3
    UNREACHABLE = 4


LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# command -> module below queuebridge.cli that defines `command`; loaded when it is used or listed
COMMANDS = {
    "check": "check",
    "demo": "demo",
    "dev": "dev",
    "devserver": "devserver",
    "enqueue": "enqueue",
    "inventory": "inventory",
    "jobs": "jobs",
    "ledger": "ledger",
    "receiver": "receiver",
    "reconcile": "reconcile",
    "report": "report",
    "rollback": "rollback",
    "stage": "stage",
    "status": "status",
    "tasks": "tasks",
    "worker": "worker",
}

EPILOG = """\b
Examples:
  queuebridge demo                             real jobs through all stages of a migration
  queuebridge dev                              everything for development in one terminal
  queuebridge worker                           run jobs from Celery or RQ
  queuebridge enqueue mail.send '{"to": "x"}'  enqueue one job
  queuebridge inventory --celery proj.celery:app   what a Celery app uses, and what can move
  queuebridge report                           what became of the jobs, stage by stage
"""


class RootCommand(click.Group):
    """A group that loads its commands late and shows errors of queuebridge as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, or None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_optional(f"queuebridge.cli.{COMMANDS[cmd_name]}", feature="The command line")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except QueueBridgeError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            click.echo(f"queuebridge: {error}", err=True)
            sys.exit(exit_code(error))


def exit_code(error: QueueBridgeError) -> ExitCode:
    """Return the exit status for an error."""
    if isinstance(error, ConfigurationError):
        return ExitCode.CONFIGURATION
    if isinstance(error, BackendUnavailable | LedgerUnavailable | PublishOutcomeUnknown):
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED


@click.group(cls=RootCommand, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Show debug logs, and the traceback of an error.")
@click.version_option(package_name="qstash-queuebridge", prog_name="queuebridge")
def root(verbose: bool) -> None:
    """Background jobs over QStash, Celery or RQ behind one interface."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format=LOG_FORMAT,
    )
    if not verbose:
        # A line for each request to QStash, or for each part of Alembic, would bury everything else.
        for name in ("httpx", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Run the command line."""
    # A command is often started in the folder of the tasks that it shall find.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        root.main(prog_name="queuebridge")
    except MissingExtra as error:
        # From --help, which loads all commands to show what they do.
        click.echo(f"queuebridge: {error}", err=True)
        sys.exit(ExitCode.CONFIGURATION)
