"""`queuebridge inventory`: what a Celery app uses, and which of its tasks can move to push delivery."""

from __future__ import annotations

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from queuebridge.cli.app import ExitCode
from queuebridge.cli.ledgers import optional_ledger
from queuebridge.cli.reading import json_option, parse_duration, print_json, print_table
from queuebridge.errors import ConfigurationError
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.loading import import_optional
from queuebridge.reporting.extremes import Extremes, task_extremes
from queuebridge.settings import environment_or, read_settings

# So many places of a finding are shown to people; JSON has more.
_PLACES = 3


@click.command("inventory")
@click.option("--celery", "path", required=True, metavar="MODULE:APP", help="The Celery app, as in proj.celery:app.")
@click.option(
    "--source",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A further folder or file with source that calls tasks; repeatable. The packages of the app and of its tasks "
    "are always read.",
)
@click.option("--task", "pattern", help="Only this task; a pattern such as 'mail.*' for several.")
@click.option(
    "--push-timeout",
    "push_timeout_ms",
    default="15m",
    show_default=True,
    metavar="DURATION",
    callback=parse_duration,
    help="How long your QStash plan waits for a response.",
)
@json_option
def command(path: str, folders: tuple[Path, ...], pattern: str | None, push_timeout_ms: int, as_json: bool) -> None:
    """Say of each task of a Celery app what it uses, whether it can move to push delivery, and what to edit.

    The app is imported, as a worker would; the source is read, and not executed. Nothing is published, and no broker
    is connected to. With a ledger (QUEUEBRIDGE_LEDGER), the longest run and the largest arguments seen count too.

    The exit status is 1 if a task that is shown, or the app as a whole, cannot move yet, and 0 otherwise: edits and
    decisions do not count.
    """
    for folder in folders:
        if not folder.exists():
            raise click.BadParameter(f"there is no {str(folder)!r}.", param_hint="--source")
    inventory = import_optional("queuebridge.backends.celery.inventory", feature="The inventory of a Celery app")
    limits = import_optional("queuebridge.backends.qstash.settings", feature="The limits of QStash").PublishSettings
    environ = environment_or(None)
    push = read_settings(limits, environ)
    seen = _seen(pattern)
    # What modules of the app print when they are imported is no part of the report.
    with redirect_stdout(sys.stderr):
        taken = inventory.take_inventory(
            path,
            folders=folders,
            pattern=pattern,
            surroundings=inventory.Surroundings(
                push_timeout_seconds=push_timeout_ms / 1000,
                push_max_bytes=push.max_bytes,
                push_max_delay_seconds=push.max_delay_seconds,
                ledger=seen is not None,
                ledger_key=read_settings(LedgerSettings, environ).key is not None,
            ),
            seen={name: inventory.Seen(**_fields(one)) for name, one in (seen or {}).items()},
        )
    data = {**inventory.as_data(taken), "ledger": seen is not None}
    if not data["tasks"]:
        if pattern is not None:
            raise click.BadParameter(f"the app has no task like {pattern!r}.", param_hint="--task")
        raise ConfigurationError(f"The app {path} has no tasks: look at its include, imports and autodiscover_tasks.")
    if as_json:
        print_json(data)
    else:
        _print(data, ledger=seen is not None)
    sys.exit(ExitCode.FAILED if data["blocked"] else ExitCode.DONE)


def _seen(pattern: str | None) -> dict[str, Extremes] | None:
    ledger = optional_ledger()
    if ledger is None:
        return None
    with closing(ledger):
        return task_extremes(ledger.executions, task=pattern)


def _fields(extremes: Extremes) -> dict[str, Any]:
    return {name: getattr(extremes, name) for name in ("dispatches", "longest_ms", "largest_bytes", "cut")}


_COLUMNS = ("task", "verdict", "blockers", "decisions", "edits", "uses", "calls", "longest seen", "largest seen")


def _print(data: dict[str, Any], *, ledger: bool) -> None:
    app = data["app"]
    click.echo(f"App {app['name']} ({app['path']}): broker {app['broker']}, results {app['result_backend'] or 'none'}")
    click.echo(f"{data['files_read']} files read, {len(data['unread'])} not. {_summary(data['counts'])}.")
    click.echo()
    print_table(_COLUMNS, [_row(task) for task in data["tasks"]])
    if not ledger:
        click.echo("Longest and largest are not tracked: QUEUEBRIDGE_LEDGER names no ledger.")
    if data["findings"]:
        _heading("The app as a whole")
        _print_findings(data["findings"])
    for task in data["tasks"]:
        _heading(f"{task['name']}: {task['verdict']}")
        click.echo(f"  {task['where'] or 'its source is not at hand'}")
        click.echo(f"  uses: {'; '.join(_uses(task)) or 'nothing in particular'}")
        _print_findings(task["findings"])


def _summary(counts: dict[str, int]) -> str:
    return "; ".join(f"{verdict}: {count}" for verdict, count in counts.items() if count)


def _row(task: dict[str, Any]) -> list[object]:
    severities = [finding["severity"] for finding in task["findings"]]
    seen = task["uses"]["seen"] or {}
    longest, largest = seen.get("longest_ms"), seen.get("largest_bytes")
    return [
        task["name"],
        task["verdict"],
        severities.count("blocker") or None,
        severities.count("decision") or None,
        severities.count("edit") or None,
        ", ".join(_features(task)) or None,
        len(task["calls"]) or None,
        f"{longest / 1000:.1f} s" if longest is not None else None,
        "over 10000 B" if seen.get("cut") else f"{largest} B" if largest is not None else None,
    ]


def _features(task: dict[str, Any]) -> list[str]:
    """Return what a task uses in few words, for the table."""
    uses = task["uses"]
    found = [name for name in uses["serializers"] if name != "json"]
    found += uses["canvas"]
    found += ["schedule"] if uses["schedules"] else []
    found += ["limits"] if uses["limits"] else []
    found += ["results"] if uses["results"] else []
    return found


def _uses(task: dict[str, Any]) -> list[str]:
    """Return what a task uses, in words."""
    uses = task["uses"]
    found = []
    if uses["arguments"]:
        found.append("arguments " + ", ".join(_parameter(one) for one in uses["arguments"]))
    for title, values in (("options", uses["options"]), ("route", uses["route"])):
        if values:
            found.append(f"{title} " + ", ".join(f"{name}={value}" for name, value in values.items()))
    if uses["call_options"]:
        found.append("at calls " + ", ".join(_option(*one) for one in uses["call_options"].items()))
    found += [f"{title} " + ", ".join(uses[title]) for title in ("canvas", "results") if uses[title]]
    if uses["schedules"]:
        found.append("schedules " + ", ".join(f"{one['name']} ({one['when']})" for one in uses["schedules"]))
    return found


def _option(name: str, texts: list[str]) -> str:
    values = " or ".join(texts)
    return values if name == "**" else f"{name}={values}"


def _parameter(parameter: dict[str, Any]) -> str:
    annotation = parameter["annotation"]
    return f"{parameter['name']}: {annotation}" if annotation is not None else str(parameter["name"])


def _heading(text: str) -> None:
    click.echo()
    Console(highlight=False, soft_wrap=True).print(text, style="bold", markup=False)


def _print_findings(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        where = finding["where"]
        places = ", ".join(where[:_PLACES]) + (f" and {len(where) - _PLACES} more" if len(where) > _PLACES else "")
        click.echo(f"  {finding['severity']} [{finding['rule']}] {finding['what']}{f' ({places})' if places else ''}")
        if finding["severity"] != "note":
            click.echo(f"      why: {finding['why']}")
        click.echo(f"      do: {finding['do']}")
