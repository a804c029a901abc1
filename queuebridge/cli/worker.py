"""`queuebridge worker`: run jobs that arrive through Celery or RQ."""

from __future__ import annotations

import sys

import click

from queuebridge.bridge import Bridge
from queuebridge.errors import ConfigurationError
from queuebridge.loading import WORKER_MODULES, import_optional
from queuebridge.reconciling import reconciling


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.option(
    "-q", "--queue", "queues", multiple=True, help="Queue to consume; repeatable. Default: all that the tasks name."
)
@click.option("-c", "--concurrency", type=click.IntRange(min=1), help="Jobs at a time (Celery).")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def command(queues: tuple[str, ...], concurrency: int | None, extra: tuple[str, ...]) -> None:
    """Run a worker for the backend that the environment selects, celery or rq; in a migration, for the old one.

    QUEUEBRIDGE_TASKS names the modules with the tasks. Further options, after `--`, go to the worker of the
    library: `queuebridge worker -- --pool threads`. With a ledger it also reconciles (see `queuebridge reconcile`).
    """
    bridge = Bridge(kind="worker")
    name = bridge.worker_backend.name
    if name not in WORKER_MODULES:
        raise ConfigurationError(
            f"The backend in use is {name}, which needs no worker"
            + (": QStash calls the receiver (gunicorn 'bridge_app:create_app()')." if name == "qstash" else ".")
        )
    bridge.load_tasks()
    if not len(bridge.registry):
        raise ConfigurationError("There is no task to run: name the modules that declare tasks in QUEUEBRIDGE_TASKS.")
    worker = import_optional(WORKER_MODULES[name], feature=f"The {name} worker")
    with reconciling(bridge):
        status = worker.run_worker(bridge, queues=queues, concurrency=concurrency, extra=extra)
    sys.exit(status)
