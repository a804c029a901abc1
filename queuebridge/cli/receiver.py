"""`queuebridge receiver`: serve the receiver with gunicorn."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import click

from queuebridge.cli.app import LOG_FORMAT
from queuebridge.loading import import_optional

if TYPE_CHECKING:
    from flask import Flask


@click.command("receiver", context_settings={"ignore_unknown_options": True})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--threads", default=4, show_default=True, type=click.IntRange(min=1), help="Threads per process.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def command(host: str, port: int, workers: int, threads: int, extra: tuple[str, ...]) -> None:
    """Serve the receiver, and show a line for each job.

    Further options, after `--`, go to gunicorn. In production any WSGI server will do; the application is
    `bridge_app:create_app()`.
    """
    import_optional("gunicorn", feature="`queuebridge receiver`")
    # Here, where an error is one line; in gunicorn's children it would be a traceback.
    import_optional("bridge_app", feature="The receiver").create_app()
    arguments = [
        *(sys.executable, "-m", "gunicorn", "queuebridge.cli.receiver:create_app()"),
        *("--bind", f"{host}:{port}", "--workers", str(workers), "--threads", str(threads)),
        # Longer than QStash keeps an idle connection, so that it is never closed under a request.
        *("--worker-class", "gthread", "--keep-alive", "30", "--log-level", "warning"),
        *extra,
    ]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - gunicorn shall get our signals


def create_app() -> Flask:
    """Return the receiver, in a process whose log shows what it does."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    app: Flask = import_optional("bridge_app", feature="The receiver").create_app()
    return app
