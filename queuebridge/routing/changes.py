"""How stage settings change: setting a rule, going a stage further, going back. Pure: settings in, settings out."""

from __future__ import annotations

from dataclasses import replace

from queuebridge.errors import StageRefused
from queuebridge.routing.rules import StageRule, StageSettings, pattern_covers
from queuebridge.stages import ORDER, Stage

_WILDCARDS = "*?["


def governing(settings: StageSettings, task: str, queue: str) -> StageRule:
    """Return the rule with exactly these patterns; if there is none, what holds there now, as a rule of its own."""
    wanted = StageRule(stage=settings.default.stage, task=task, queue=queue)
    for rule in settings.all_rules:
        if rule.covers(wanted):
            return replace(rule, task=task, queue=queue)
    return wanted


def with_rule(settings: StageSettings, rule: StageRule) -> StageSettings:
    """Return the settings with a rule in place of the one with the same patterns.

    A new one is put before the first that would hide it, or else at the end.
    """
    if rule.is_general:
        return replace(settings, default=rule)
    rules = list(settings.rules)
    for position, other in enumerate(rules):
        if (other.task, other.queue) == (rule.task, rule.queue):
            rules[position] = rule
            break
        if other.covers(rule):
            rules.insert(position, rule)
            break
    else:
        rules.append(rule)
    return replace(settings, rules=tuple(rules))


def advanced(rule: StageRule) -> StageRule:
    """Return a rule that brings the same tasks to the next stage, all keys at once.

    Raises:
        StageRefused: They are in the last stage.
    """
    following = rule.stage.after
    if following is None:
        raise StageRefused(f"Advancing {rule.label}", [f"Stage {rule.stage.value} is the last one."])
    return _all_in(rule, following)


def skipped_by_some(rule: StageRule) -> str | None:
    """Return why some keys would skip a stage if all of the rule's went to the next one, None if none would."""
    if rule.everybody_is_in:
        return None
    who = f"Only {rule.percent:g} % of the keys are in" if rule.percent < 100 else "Some keys are excluded from"
    return (
        f"{who} stage {rule.stage.value}, the others would skip it: bring them in first with "
        f"`queuebridge stage set {rule.stage.value} --percent 100 --exclude ''`."
    )


def rolled_back(settings: StageSettings, task: str, to: Stage | None) -> StageSettings:
    """Return the settings with tasks one stage further back, or in stage `to`.

    It takes in every rule for the tasks that `task` matches, and with `*` the default too. A rule that is at `to`, or
    before it, stays as it is.

    Raises:
        StageRefused: Nothing would change.
    """
    changed = settings
    probe = governing(settings, task, "*")
    lowered = _lowered(probe, to)
    if lowered != probe:
        changed = with_rule(changed, lowered)
    for rule in settings.rules:
        if pattern_covers(task, rule.task):
            changed = with_rule(changed, _lowered(rule, to))
    if changed == settings:
        target = f"beyond stage {to.value}" if to is not None else f"beyond stage {ORDER[0].value}"
        raise StageRefused(f"The rollback of {probe.label}", [f"None of these tasks is {target}."])
    return changed


def untouched(settings: StageSettings, changed: StageSettings, rule: StageRule) -> list[StageRule]:
    """Return the rules that a change left as they were, and that decide for some jobs which `rule` matches too."""
    return [
        other
        for other in changed.rules
        if other in settings.rules
        and (other.task, other.queue) != (rule.task, rule.queue)
        and _may_overlap(other.task, rule.task)
        and _may_overlap(other.queue, rule.queue)
        and not other.covers(rule)
    ]


def _lowered(rule: StageRule, to: Stage | None) -> StageRule:
    # With a per cent of 0 all are in the stage before already, and that is where the way back begins.
    now = rule.stages[-1]
    target = to if to is not None else now.before
    if target is None or ORDER.index(now) <= ORDER.index(target):
        return rule
    return _all_in(rule, target)


def _all_in(rule: StageRule, stage: Stage) -> StageRule:
    # The lists say who is in another stage; who is routed by which key stays.
    return replace(rule, stage=stage, percent=100.0, include=frozenset(), exclude=frozenset())


def _may_overlap(one: str, other: str) -> bool:
    first, second = _literal_start(one), _literal_start(other)
    return first.startswith(second) or second.startswith(first)


def _literal_start(pattern: str) -> str:
    return next((pattern[:i] for i, c in enumerate(pattern) if c in _WILDCARDS), pattern)
