"""`queuebridge enqueue`: enqueue one job by name."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from queuebridge.bridge import Bridge
from queuebridge.options import EnqueueOptions


@click.command("enqueue")
@click.argument("task")
@click.argument("arguments", default="{}")
@click.option("--queue", help="The queue, instead of the task's.")
@click.option("--countdown", type=float, help="Seconds to wait before the job may start.")
@click.option("--task-id", help="The job id, instead of a new one.")
@click.option("--idempotency-key", help="Enqueues under the same key are one job.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    task: str,
    arguments: str,
    queue: str | None,
    countdown: float | None,
    task_id: str | None,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Enqueue TASK with ARGUMENTS, a JSON object (keyword arguments) or array (positional ones)."""
    try:
        parsed = json.loads(arguments)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="ARGUMENTS") from None
    if not isinstance(parsed, dict | list):
        raise click.BadParameter("must be a JSON object or array.", param_hint="ARGUMENTS")
    with Bridge() as bridge:
        bridge.load_tasks()
        receipt = bridge.apply_async(
            task,
            parsed if isinstance(parsed, list) else (),
            parsed if isinstance(parsed, dict) else {},
            EnqueueOptions(queue=queue, countdown=countdown, task_id=task_id, idempotency_key=idempotency_key),
        )
    if as_json:
        click.echo(json.dumps(asdict(receipt)))
    else:
        again = " (it had this job already)" if receipt.deduplicated else ""
        click.echo(f"{receipt.backend} has job {receipt.job_id}, message {receipt.message_id}{again}")
