"""`queuebridge report`: what became of the jobs of each stage, and whether the next one may begin."""

from __future__ import annotations

from dataclasses import asdict

import click

from queuebridge.cli.ledgers import open_ledger
from queuebridge.cli.reading import (
    json_option,
    print_json,
    print_table,
    since_ms,
    since_option,
    stage_option,
)
from queuebridge.reporting import Percentiles, StageReport, Verdict, build_report, judge
from queuebridge.stages import Stage


@click.command("report")
@click.option("--task", help="Only this task; a pattern such as 'mail.*' for several.")
@stage_option
@since_option
@json_option
def command(task: str | None, stage: str | None, since_ago_ms: int | None, as_json: bool) -> None:
    """Show what became of the jobs of each stage and task, and whether they are ready for the next stage.

    Times are in milliseconds. Everything that JSON has is explained at `queuebridge.reporting.StageReport`.
    """
    with open_ledger() as ledger:
        now_ms = ledger.now_ms()
        since = since_ms(ledger, since_ago_ms)
        reports = build_report(
            ledger.executions, now_ms=now_ms, task=task, stage=Stage(stage) if stage else None, since_ms=since
        )
    judged = [(report, judge(report)) for report in reports]
    if as_json:
        print_json({"now_ms": now_ms, "since_ms": since, "reports": [_as_json(*pair) for pair in judged]})
        return
    if not judged:
        click.echo("The ledger has no such jobs.", err=True)
        return
    print_table(_JOB_COLUMNS, [_job_row(report) for report in reports])
    click.echo()
    print_table(_COPY_COLUMNS, [row for report in reports for row in _copy_rows(report)])
    click.echo()
    for report, verdict in judged:
        following = _next_stage(report)
        if following is not None:
            click.echo(f"{report.task}: {'ready' if verdict.ready else 'not ready'} for {following}")
            for reason in verdict.reasons:
                click.echo(f"  {reason}")


_JOB_COLUMNS = (
    *("stage", "task", "jobs", "done", "failed", "open", "lost", "late", "executed by", "suppressed", "busy"),
    *("safety ran", "stale", "lag p50", "lag p95", "lag p99"),
)
_COPY_COLUMNS = (
    *("stage", "task", "copies", "written", "unknown", "failed", "held", "arrived", "missing", "invalid"),
    *("different", "lag p50", "lag p95", "lag p99"),
)


def _job_row(report: StageReport) -> list[object]:
    return [
        report.stage,
        report.task,
        report.jobs,
        report.done,
        report.failed + report.quarantined + report.expired,
        report.open,
        report.lost,
        report.late,
        ", ".join(f"{backend} {count}" for backend, count in report.executed_by.items()) or None,
        report.suppressed,
        report.busy,
        report.safety_ran,
        report.stale_settles,
        *_lag(report.lag_ms),
    ]


def _copy_rows(report: StageReport) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, side in (("legacy", report.legacy), ("push", report.push)):
        # Figures of shadow copies stand in the row of the side that they go to.
        shadow = report.shadow if name == "push" and report.shadow.arrived else None
        rows.append(
            [
                report.stage,
                report.task,
                name,
                side.written,
                side.unknown,
                side.failed,
                side.held,
                side.delivered,
                side.missing,
                shadow.invalid if shadow else None,
                shadow.different if shadow else None,
                *_lag(shadow.lag_ms if shadow else side.lag_ms),
            ]
        )
    return rows


def _lag(lag: Percentiles) -> tuple[int | None, int | None, int | None]:
    return lag.p50, lag.p95, lag.p99


def _next_stage(report: StageReport) -> str | None:
    stage = next((stage for stage in Stage if stage.value == report.stage), None)
    return stage.after.value if stage is not None and stage.after is not None else None


def _as_json(report: StageReport, verdict: Verdict) -> dict[str, object]:
    return {
        **asdict(report),
        "next_stage": _next_stage(report),
        "ready": verdict.ready,
        "reasons": list(verdict.reasons),
    }
