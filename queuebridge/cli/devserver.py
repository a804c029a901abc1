"""`queuebridge devserver`: the embedded QStash server."""

from __future__ import annotations

from errno import EADDRINUSE
from pathlib import Path

import click

from queuebridge.errors import ConfigurationError
from queuebridge.loading import import_optional

# Those of the protocol module, which is not imported before the command runs.
QUOTAS = ("free", "payg", "fixed-1m", "fixed-10m")


@click.command("devserver")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Others than the loopback let strangers in: the tokens are public.",
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--db", type=click.Path(dir_okay=False, path_type=Path), help="Keep everything in this SQLite file.")
@click.option("--memory", is_flag=True, help="Keep everything in memory (the default).")
@click.option(
    "--time-scale",
    default=1.0,
    show_default=True,
    help="Divide the waits before retries by this: 60 makes a minute a second.",
)
@click.option(
    "--quota",
    type=click.Choice(QUOTAS),
    default="payg",
    show_default=True,
    envvar="QSTASH_DEV_QUOTA",
    help="Plan whose limits apply; also read from QSTASH_DEV_QUOTA.",
)
@click.option(
    "--resolve",
    multiple=True,
    metavar="HOST=URL",
    help="Send deliveries for HOST (or HOST:PORT) to a local URL, signed for the public one. Repeatable.",
)
@click.option(
    "--print-env",
    is_flag=True,
    help="Print export lines with what clients and receivers need, on standard output.",
)
def command(
    host: str,
    port: int,
    db: Path | None,
    memory: bool,
    time_scale: float,
    quota: str,
    resolve: tuple[str, ...],
    print_env: bool,
) -> None:
    """Run a QStash-compatible server for development: same API, same signatures, no account.

    It knows the public development users of QStash; whoever reaches the port can publish. Open its address in a
    browser to see its messages, queues and schedules.
    """
    if db is not None and memory:
        raise click.UsageError("--db and --memory exclude each other.")
    package = "queuebridge.backends.qstash.devserver"
    server = import_optional(f"{package}.server", feature="The embedded server")
    protocol = import_optional("queuebridge.backends.qstash.protocol", feature="The embedded server")
    user = protocol.DEFAULT_DEV_USER

    def announce(url: str) -> None:
        where = f"keeps messages in {db}" if db else "keeps messages in memory"
        click.echo(f"QStash server running at {url}, {where}", err=True)
        click.echo(f"Open {url} in a browser to see its messages, queues and schedules.", err=True)
        if print_env:
            click.echo(f"export QSTASH_URL='{url}'")
            click.echo(f"export QSTASH_TOKEN='{user.token}'")

    def announce_keys(current_key: str, next_key: str) -> None:
        if print_env:
            click.echo(f"export QSTASH_CURRENT_SIGNING_KEY='{current_key}'")
            click.echo(f"export QSTASH_NEXT_SIGNING_KEY='{next_key}'")

    settings = server.ServerSettings(
        host=host,
        port=port,
        db_path=db,
        resolve=tuple(server.Resolution.parse(text) for text in resolve),
        engine=server.EngineSettings(plan=protocol.PLANS[quota], time_scale=time_scale),
    )
    try:
        server.run(settings, on_ready=announce, on_keys=announce_keys)
    except OSError as error:
        if error.errno == EADDRINUSE:
            raise ConfigurationError(
                f"Port {port} of {host} is in use. Choose another one with --port, or stop what listens there."
            ) from error
        raise ConfigurationError(f"The server cannot listen on {host}:{port}: {error.strerror}.") from error
