"""`queuebridge stage`: which stage tasks are in, and bringing them to another one."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from queuebridge.cli.ledgers import optional_ledger
from queuebridge.cli.legacy_workers import unclaiming_workers
from queuebridge.cli.reading import clock, json_option, print_json
from queuebridge.cli.stages import (
    STAGE_NAMES,
    Kept,
    add_revision,
    author_option,
    kept_of,
    open_ledger,
    show_plan,
    which_tasks,
)
from queuebridge.errors import ConfigurationError, StageRefused
from queuebridge.ledger import Ledger, Revision
from queuebridge.reporting.evidence import judge_advance
from queuebridge.routing import RoutingSettings, StageRule, create_source
from queuebridge.routing.changes import advanced, governing, skipped_by_some, with_rule
from queuebridge.routing.codec import as_data, render, rule_data
from queuebridge.routing.reach import reach_of, stage_since
from queuebridge.settings import Settings
from queuebridge.stages import ORDER, Stage


@click.group("stage")
def command() -> None:
    """Show and change the stages of a migration."""


@command.command("show")
@click.option("--task", help="Explain the stage of this task.")
@click.option("--queue", help="On this queue. Default: QUEUEBRIDGE_DEFAULT_QUEUE.")
@click.option("--key", help="And of this value of the routing key: a user, an organization, a job id.")
@json_option
def show(task: str | None, queue: str | None, key: str | None, as_json: bool) -> None:
    """Show the stages that processes with this environment go by."""
    if key is not None and task is None:
        raise click.UsageError("--key explains the stage of a task: name it with --task.")
    source, kept = _in_force()
    answer: dict[str, Any] = {"source": source, "revision": kept.number, "settings": as_data(kept.settings)}
    lines = [f"Revision {kept.number} in the ledger:" if source == "ledger" else f"From the {source}:"]
    lines.append(render(kept.settings))
    if task is not None:
        rule = kept.settings.rule_for(task, queue or Settings.from_environment().default_queue)
        answer["rule"] = rule_data(rule)
        lines += ["", f"{task}: the rule {rule.label} decides."]
        if key is not None:
            decision = rule.decide(key, {rule.key.removeprefix("metadata."): key})
            answer["decision"] = {
                "stage": decision.stage.value,
                "key_name": decision.key_name,
                "key": decision.key,
                "bucket": decision.bucket,
                "reason": decision.reason,
            }
            lines.append(f"Stage {decision.stage.value}: {decision.reason}.")
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(lines))


@command.command("set")
@click.argument("stage", type=click.Choice(STAGE_NAMES))
@which_tasks
@click.option("--percent", type=float, default=100.0, show_default=True, help="The share of keys that are in.")
@click.option("--key", help="What the share goes by: job_id, user_id, organization_id or metadata.<name>.")
@click.option("--include", multiple=True, help="A key that is always in; repeatable. '' empties the list.")
@click.option("--exclude", multiple=True, help="A key that is never in; repeatable. '' empties the list.")
@click.option("--reason", required=True, help="Why, for the history.")
@author_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Go on although workers would run jobs without claiming them.")
def set_stage(
    stage: str,
    task: str,
    queue: str,
    percent: float,
    key: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    reason: str,
    author: str | None,
    yes: bool,
    force: bool,
) -> None:
    """Bring tasks to STAGE, by a new revision in the ledger. No evidence is asked for: see `stage advance`.

    Stages in which two copies may run are refused while workers take jobs without claiming them.

    Key and lists stay as they are if they are not given; the lists only as long as the stage stays.
    """
    with open_ledger() as ledger:
        kept = kept_of(ledger.stages.current())
        now = governing(kept.settings, task, queue)
        same = now.stage is Stage(stage)
        try:
            rule = StageRule(
                stage=Stage(stage),
                task=task,
                queue=queue,
                percent=percent,
                key=key or now.key,
                include=_members(include, now.include if same else frozenset()),
                exclude=_members(exclude, now.exclude if same else frozenset()),
            )
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from None
        changed = with_rule(kept.settings, rule)
        if changed == kept.settings:
            raise StageRefused(f"Setting {rule.label}", ["It is like that already."])
        against = unclaiming_workers(rule)
        if against and not force:
            raise StageRefused(f"Setting {rule.label} to {rule.stage.value}", against)
        show_plan(kept, changed, rule)
        for warning in _warnings(ledger, now, rule):
            click.echo(f"Warning: {warning}", err=True)
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("Nobody is there to be asked: add --yes.")
            click.confirm("Change it?", abort=True, err=True)
        add_revision(ledger, kept, changed, author=author, reason=reason, forced=bool(against))


@command.command("advance")
@which_tasks
@click.option("--reason", help="Why, for the history. Default: the evidence.")
@author_option
@click.option("--force", is_flag=True, help="Go on whatever speaks against it. The history shows that.")
def advance(task: str, queue: str, reason: str | None, author: str | None, force: bool) -> None:
    """Bring tasks to the next stage, if the present one has shown that it is safe.

    It is refused if jobs were lost, late or too few, if some keys would skip a stage, or if a living process does not
    go by the present revision yet.
    """
    with open_ledger() as ledger:
        kept = kept_of(ledger.stages.current())
        now = governing(kept.settings, task, queue)
        rule = advanced(now)
        verdict = judge_advance(
            ledger.executions,
            task=None if task == "*" else task,
            stage=now.stage,
            now_ms=ledger.now_ms(),
            since_ms=stage_since(ledger.stages, now),
        )
        against = [*_obstacles(ledger, now), *unclaiming_workers(rule), *(() if verdict.ready else verdict.reasons)]
        if against and not force:
            raise StageRefused(f"Advancing {rule.label} from {now.stage.value} to {rule.stage.value}", against)
        for text in against:
            click.echo(f"Forced: {text}", err=True)
        changed = with_rule(kept.settings, rule)
        show_plan(kept, changed, rule)
        why = reason or f"{rule.label} to {rule.stage.value}. " + " ".join(against or verdict.reasons)
        add_revision(ledger, kept, changed, author=author, reason=why, forced=bool(against))


@command.command("history")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many revisions.")
@json_option
def history(limit: int, as_json: bool) -> None:
    """List the latest revisions of the stages, the newest first."""
    with open_ledger() as ledger:
        revisions = ledger.stages.history(limit)
    if as_json:
        print_json({"revisions": [revision_data(revision) for revision in revisions]})
        return
    if not revisions:
        click.echo("No revisions yet: every task is in stage legacy.", err=True)
    for revision in revisions:
        forced = " (forced)" if revision.forced else ""
        click.echo(f"{revision.number}  {clock(revision.at_ms)}  {revision.author}{forced}: {revision.reason}")


def revision_data(revision: Revision) -> dict[str, Any]:
    """Return a revision as plain data."""
    return {
        "number": revision.number,
        "author": revision.author,
        "reason": revision.reason,
        "forced": revision.forced,
        "at_ms": revision.at_ms,
        "settings": json.loads(revision.settings),
    }


def _in_force() -> tuple[str, Kept]:
    routing = RoutingSettings.from_environment()
    ledger = optional_ledger()
    try:
        if ledger is not None and (routing.from_ledger or not routing.active):
            return "ledger", kept_of(ledger.stages.current())
        if not routing.active:
            raise ConfigurationError(
                "There is no migration: name the old backend in QUEUEBRIDGE_LEGACY, celery or rq, and the stage in "
                "QUEUEBRIDGE_STAGE."
            )
        settings = create_source(routing, ledger, kind="producer").settings()
        return ("file" if routing.from_file else "environment"), Kept(number=0, settings=settings)
    finally:
        if ledger is not None:
            ledger.close()


def _members(given: tuple[str, ...], present: frozenset[str]) -> frozenset[str]:
    return frozenset(value for value in given if value) if given else present


def _warnings(ledger: Ledger, now: StageRule, rule: StageRule) -> list[str]:
    found = []
    first, last = ORDER.index(now.stages[0]), ORDER.index(rule.stage)
    if skipped := [stage.value for stage in ORDER[first + 1 : last]]:
        found.append(f"this skips {', '.join(skipped)}, and the evidence of it.")
    if rule.key != now.key and not now.everybody_is_in:
        found.append(f"by {rule.key} in place of {now.key} other jobs are in than before.")
    return [*found, *_not_reached(ledger)]


def _obstacles(ledger: Ledger, now: StageRule) -> list[str]:
    skipped = skipped_by_some(now)
    return [*([skipped] if skipped else []), *_not_reached(ledger)]


def _not_reached(ledger: Ledger) -> list[str]:
    reach = reach_of(ledger.stages)
    if not reach.behind or reach.latest is None:
        return []
    first = reach.behind[0]
    text = (
        f"{len(reach.behind)} of {len(reach.processes)} processes do not go by revision {reach.latest.number} yet; the "
        f"first is {first.process_id} ({first.kind}), at revision {first.revision}. See `queuebridge status`."
    )
    return [text]
