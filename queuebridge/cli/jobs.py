"""`queuebridge jobs`: what the ledger knows of single jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from queuebridge.cli.app import ExitCode
from queuebridge.cli.ledgers import open_ledger
from queuebridge.cli.reading import (
    clock,
    json_option,
    limit_option,
    print_json,
    print_table,
    since_ms,
    since_option,
    stage_option,
)
from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, State
from queuebridge.reporting import TaskStatistics, task_statistics

FAILURES = (State.FAILED, State.EXPIRED, State.QUARANTINED)

task_option = click.option("--task", help="Only jobs of this task.")


@click.group("jobs")
def command() -> None:
    """Look at jobs, and cancel them."""


@command.command("list")
@task_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Only jobs in this state; repeatable.",
)
@stage_option
@since_option
@limit_option(50)
@json_option
def list_jobs(
    task: str | None,
    states: tuple[str, ...],
    stage: str | None,
    since_ago_ms: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the jobs that were accepted last, the newest first."""
    with open_ledger() as ledger:
        wanted = ExecutionFilter(
            task=task,
            states=tuple(map(State, states)),
            stage=stage,
            since_ms=since_ms(ledger, since_ago_ms),
        )
        executions = ledger.executions.recent(wanted, limit=limit)
    _print_executions(executions, as_json=as_json)


@command.command("failed")
@task_option
@since_option
@limit_option(50)
@json_option
def list_failed(task: str | None, since_ago_ms: int | None, limit: int, as_json: bool) -> None:
    """List jobs that failed, expired, or were quarantined, the newest first."""
    with open_ledger() as ledger:
        wanted = ExecutionFilter(task=task, states=FAILURES, since_ms=since_ms(ledger, since_ago_ms))
        executions = ledger.executions.recent(wanted, limit=limit)
    _print_executions(executions, as_json=as_json)


@command.command("show")
@click.argument("job_id")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show everything that is known of a job: executions, copies, deliveries, error and traceback."""
    with open_ledger() as ledger:
        executions = ledger.executions.of_job(job_id)
        deliveries = ledger.executions.deliveries([execution.dispatch_id for execution in executions])
    if not executions:
        _not_found(job_id)
    if as_json:
        print_json(
            {
                "job_id": job_id,
                "executions": [
                    {
                        **asdict(execution),
                        "deliveries": [asdict(delivery) for delivery in deliveries[execution.dispatch_id]],
                    }
                    for execution in executions
                ],
            }
        )
        return
    for execution in executions:
        _print_execution(execution, deliveries[execution.dispatch_id])


@command.command("stats")
@click.option("--task", help="Only this task; a pattern such as 'mail.*' for several.")
@since_option
@json_option
def stats(task: str | None, since_ago_ms: int | None, as_json: bool) -> None:
    """Show how tasks fare: success, durations, time in the queue. Times are in milliseconds."""
    with open_ledger() as ledger:
        tasks = task_statistics(ledger.executions, task=task, since_ms=since_ms(ledger, since_ago_ms))
    if as_json:
        print_json({"tasks": [asdict(one) for one in tasks]})
    elif not tasks:
        click.echo("The ledger has no such jobs.", err=True)
    else:
        print_table(_STATISTICS_COLUMNS, [_statistics_row(one) for one in tasks])


@command.command("cancel")
@click.argument("job_id")
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """Cancel a job that is not running: whichever copy of it arrives will not run.

    The exit status is 0 exactly if the job is cancelled now.
    """
    with open_ledger() as ledger:
        cancelled, running = ledger.cancel(job_id)
        executions = ledger.executions.of_job(job_id)
    if not executions:
        _not_found(job_id)
    state = executions[-1].state
    if as_json:
        print_json({"job_id": job_id, "cancelled": cancelled, "running": running, "state": state})
    elif running:
        click.echo(f"{job_id} is running, and was left alone.", err=True)
    elif state is State.CANCELLED:
        click.echo(f"{job_id} is cancelled." if cancelled else f"{job_id} was cancelled before.")
    else:
        click.echo(f"{job_id} has ended already: {state.value}.", err=True)
    sys.exit(ExitCode.DONE if state is State.CANCELLED and not running else ExitCode.FAILED)


_EXECUTION_COLUMNS = ("job id", "task", "stage", "state", "attempts", "executed by", "accepted", "took ms", "error")
_DELIVERY_COLUMNS = ("arrived", "backend", "side", "copy", "outcome", "attempt", "lag ms", "message id", "problem")
_STATISTICS_COLUMNS = (
    *("task", "total", "done", "failed", "other", "success", "duration p50", "duration p95", "duration p99", "average"),
    "average in queue",
)


def _not_found(job_id: str) -> None:
    click.echo(f"queuebridge: The ledger has no job {job_id!r}.", err=True)
    sys.exit(ExitCode.FAILED)


def _print_executions(executions: Sequence[Execution], *, as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [asdict(execution) for execution in executions]})
    elif not executions:
        click.echo("The ledger has no such jobs.", err=True)
    else:
        print_table(_EXECUTION_COLUMNS, [_execution_row(execution) for execution in executions])


def _execution_row(execution: Execution) -> list[object]:
    return [
        execution.job_id,
        execution.task,
        execution.stage,
        execution.state.value,
        f"{execution.attempts}/{execution.max_attempts}",
        execution.executed_by,
        clock(execution.accepted_at_ms),
        _took_ms(execution),
        execution.error,
    ]


def _took_ms(execution: Execution) -> int | None:
    if execution.started_at_ms is None or execution.finished_at_ms is None:
        return None
    return execution.finished_at_ms - execution.started_at_ms


def _print_execution(execution: Execution, deliveries: Sequence[DeliveryRecord]) -> None:
    facts = {
        "task": execution.task,
        "queue": execution.queue,
        "stage": execution.stage,
        "state": execution.state.value,
        "attempts": f"{execution.attempts} of {execution.max_attempts}",
        "executed by": execution.executed_by,
        "owner": execution.owner,
        "user": execution.user_id,
        "organization": execution.organization_id,
        "enqueued": clock(execution.enqueued_at_ms),
        "not before": clock(execution.not_before_ms),
        "expires": clock(execution.expires_at_ms),
        "accepted": clock(execution.accepted_at_ms),
        "started": clock(execution.started_at_ms),
        "finished": clock(execution.finished_at_ms),
        "deadline": clock(execution.deadline_ms),
        "stale settles": execution.stale_settles or None,
        "arguments": execution.payload,
        "result": execution.result,
        "error": execution.error,
    }
    click.echo(f"dispatch {execution.dispatch_id} of job {execution.job_id}")
    for name, fact in facts.items():
        if fact is not None:
            click.echo(f"  {name + ':':<15}{fact}")
    for copy in execution.copies:
        more = "".join(f", {text}" for text in (copy.message_id, copy.error, clock(copy.due_at_ms)) if text)
        click.echo(f"  {copy.side.value + ' copy:':<15}{copy.role.value} on {copy.backend}, {copy.state.value}{more}")
    if deliveries:
        print_table(_DELIVERY_COLUMNS, [_delivery_row(delivery) for delivery in deliveries])
    if execution.traceback:
        click.echo(execution.traceback)


def _delivery_row(delivery: DeliveryRecord) -> list[object]:
    return [
        clock(delivery.at_ms),
        delivery.backend,
        delivery.side.value if delivery.side else None,
        delivery.role.value if delivery.role else None,
        delivery.outcome.value,
        delivery.attempt,
        delivery.lag_ms,
        delivery.message_id,
        delivery.problem,
    ]


def _statistics_row(one: TaskStatistics) -> list[object]:
    done = one.states[State.DONE.value]
    failed = sum(one.states[state.value] for state in FAILURES)
    return [
        one.task,
        one.total,
        done,
        failed,
        one.total - done - failed,
        None if one.success_rate is None else f"{one.success_rate:.2%}",
        one.duration_ms.p50,
        one.duration_ms.p95,
        one.duration_ms.p99,
        None if one.average_duration_ms is None else f"{one.average_duration_ms:.1f}",
        None if one.average_queue_ms is None else f"{one.average_queue_ms:.1f}",
    ]
