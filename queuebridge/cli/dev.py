"""`queuebridge dev`: embedded server, receiver and worker in one terminal."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click

from queuebridge.assembly import select_backend
from queuebridge.cli.app import ExitCode
from queuebridge.errors import ConfigurationError
from queuebridge.loading import BACKEND_MODULES, import_optional
from queuebridge.processes import Processes, command_line, fetch_json, interrupt_on_signals, port_is_free
from queuebridge.routing import RoutingSettings
from queuebridge.settings import Settings

_COLORS = {"server": "cyan", "receiver": "green", "worker": "yellow", "reconcile": "magenta"}
_READY_SECONDS = 30
_PORT = click.IntRange(1, 65_535)


@click.command("dev")
@click.option(
    "--backend",
    type=click.Choice(["qstash", "celery", "rq"]),
    help="Which backend to run jobs on. Default: what the environment selects.",
)
@click.option("--port", default=8000, show_default=True, type=_PORT, help="Port of the receiver.")
@click.option("--server-port", default=8080, show_default=True, type=_PORT, help="Port of the embedded QStash server.")
@click.option("--db", type=click.Path(dir_okay=False, path_type=Path), help="Keep messages in this file.")
def command(backend: str | None, port: int, server_port: int, db: Path | None) -> None:
    """Start the embedded QStash server, the receiver and, for celery or rq, a worker.

    In a migration (QUEUEBRIDGE_LEGACY) the worker is one of the old backend. Where there is a ledger
    (QUEUEBRIDGE_LEDGER) and no worker, a process reconciles (see `queuebridge reconcile`).

    QUEUEBRIDGE_TASKS names the modules with your tasks. Ctrl-C stops everything.
    """
    protocol = import_optional("queuebridge.backends.qstash.protocol", feature="The embedded server")
    # What children would stumble over is said here, in one line.
    import_optional("queuebridge.backends.qstash.devserver.server", feature="The embedded server")
    import_optional("bridge_app", feature="The receiver")
    user = protocol.DEFAULT_DEV_USER
    settings = Settings.from_environment()
    if settings.production:
        raise ConfigurationError("`queuebridge dev` is for development; the environment says production.")
    legacy = RoutingSettings.from_environment().legacy
    if legacy is not None and backend is not None:
        raise ConfigurationError(
            "QUEUEBRIDGE_LEGACY is set: in a migration the stage says where jobs run, not --backend."
        )
    chosen = legacy or backend or settings.backend or _backend_of(settings)
    if chosen not in BACKEND_MODULES or chosen == "inline":
        raise ConfigurationError("QUEUEBRIDGE_BACKEND names no backend that `queuebridge dev` can start.")
    for number, option in ((port, "--port"), (server_port, "--server-port")):
        if not port_is_free(number):
            raise ConfigurationError(f"Port {number} is in use. Choose another one with {option}.")
    variables = {
        **({"QUEUEBRIDGE_BACKEND": chosen} if legacy is None else {}),
        "QSTASH_URL": f"http://127.0.0.1:{server_port}",
        "QSTASH_TOKEN": user.token,
        "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{port}",
    }
    env = {**os.environ, **variables}
    # Children import the user's tasks from the folder that this command was started in.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), env.get("PYTHONPATH", "")]))
    log = PrefixedLog()
    interrupt_on_signals()
    with Processes(log.write) as processes:
        try:
            storage = ["--db", str(db.absolute())] if db else ["--memory"]
            server = processes.start("server", command_line("devserver", "--port", str(server_port), *storage), env=env)
            server.wait_for_url(f"{variables['QSTASH_URL']}/v2/keys", _READY_SECONDS)
            # With --db they may have been rotated in an earlier run.
            keys = fetch_json(f"{variables['QSTASH_URL']}/v2/keys", token=user.token)
            variables |= {f"QSTASH_{name.upper()}_SIGNING_KEY": keys[name] for name in ("current", "next")}
            env |= variables
            receiver = processes.start("receiver", command_line("receiver", "--port", str(port)), env=env)
            receiver.wait_for_url(f"{variables['QUEUEBRIDGE_PUBLIC_URL']}{settings.prefix}/health", _READY_SECONDS)
            if chosen != "qstash":
                worker = processes.start("worker", command_line("worker"), env=env)
                worker.wait_for_line(r"ready\.|Listening on", _READY_SECONDS)
            elif settings.ledger_url is not None:
                # A worker does so itself.
                processes.start("reconcile", command_line("reconcile", "--loop"), env=env)
            where = f"on {chosen} and on qstash, as their stages say" if legacy is not None else f"on {chosen}"
            _print_environment(variables, where, settings)
            ended = processes.wait_for_first_end()
            click.echo(f"The {ended.name} ended with status {ended.process.returncode}; stopping the others.", err=True)
            sys.exit(ExitCode.FAILED)
        except KeyboardInterrupt:
            click.echo("\nStopping ...", err=True)


def _backend_of(settings: Settings) -> str:
    # Without the warning of select_backend about the embedded server: here that is what the user wants.
    present = settings.qstash_token_present or settings.celery_broker_present or settings.redis_present
    return select_backend(settings) if present else "qstash"


class PrefixedLog:
    """Writes the lines of several processes, each with the name of its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def write(self, name: str, line: str) -> None:
        """Write one line."""
        prefix = f"{name:>9} |"
        if self._color:
            prefix = click.style(prefix, fg=_COLORS.get(name))
        with self._lock:
            click.echo(f"{prefix} {line}", err=True)


def _print_environment(variables: dict[str, str], where: str, settings: Settings) -> None:
    if not settings.tasks:
        click.echo("QUEUEBRIDGE_TASKS is not set: the receiver knows no tasks.", err=True)
    click.echo(f"\nReady: jobs run {where}. Use this environment in your application:\n", err=True)
    for name, value in variables.items():
        click.echo(f"export {name}='{value}'")
    click.echo("\nCtrl-C stops everything.\n", err=True)
