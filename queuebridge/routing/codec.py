"""Stage settings as JSON, TOML and text, and back."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from typing import Any

from queuebridge.errors import ConfigurationError
from queuebridge.routing.rules import JOB_ID, StageRule, StageSettings
from queuebridge.stages import ORDER, Stage

# The form of the settings that a revision in the ledger keeps.
VERSION = 1

_FIELDS = ("task", "queue", "stage", "percent", "key", "include", "exclude")


def parse_stage(text: str) -> Stage:
    """Return the stage of this name.

    Raises:
        ConfigurationError: There is none; suggests one. The text is not repeated: it may be a secret that was pasted
            into the wrong place.
    """
    try:
        return Stage(text.strip().lower())
    except ValueError:
        names = [stage.value for stage in ORDER]
        close = difflib.get_close_matches(text.strip().lower(), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(f"it is not a stage.{hint} There are: {', '.join(names)}.") from None


def parse_rules(text: str, *, key: str = JOB_ID) -> tuple[StageRule, ...]:
    """Return rules written as `mail.*=live:25, reports.*=shadow`: task pattern, stage, per cent.

    Raises:
        ConfigurationError: The text is wrong; says which rule, and what is wrong with it.
    """
    rules = []
    for number, part in enumerate((part.strip() for part in text.split(",") if part.strip()), 1):
        pattern, equals, rest = (piece.strip() for piece in part.partition("="))
        if not equals or not pattern:
            raise ConfigurationError(f"rule {number}: it is not of the form pattern=stage or pattern=stage:percent.")
        stage, colon, percent = rest.partition(":")
        data: dict[str, Any] = {"task": pattern, "stage": stage.strip(), "key": key}
        if colon:
            data["percent"] = _percent(percent, number, pattern)
        rules.append(_rule(data, f"rule {number} ({pattern})"))
    return tuple(rules)


def parse_toml(text: str) -> StageSettings:
    """Return the settings that a TOML file holds: `[default]`, and a `[[rule]]` for each rule, in order.

    Raises:
        ConfigurationError: It is no TOML, or a value is wrong; says in which rule and field.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"it is not TOML: {error}.") from None
    _refuse_unknown(data, ("default", "rule"), "the file")
    return _settings(data.get("default", {"stage": Stage.LEGACY.value}), data.get("rule", []))


def to_json(settings: StageSettings) -> str:
    """Return the text that a revision in the ledger keeps. Equal settings give the same text."""
    return json.dumps(as_data(settings), sort_keys=True)


def from_json(text: str) -> StageSettings:
    """Return the settings of a revision.

    Raises:
        ConfigurationError: It was written by a newer version, or is damaged.
    """
    try:
        data = json.loads(text)
    except ValueError:
        raise ConfigurationError("the stage settings are not JSON.") from None
    if not isinstance(data, dict):
        raise ConfigurationError("the stage settings are not a JSON object.")
    if data.get("version") != VERSION:
        raise ConfigurationError(
            f"the stage settings have version {data.get('version')!r}, this installation of queuebridge knows "
            f"{VERSION}. Upgrade it."
        )
    _refuse_unknown(data, ("version", "default", "rules"), "the stage settings")
    return _settings(data.get("default", {}), data.get("rules", []))


def as_data(settings: StageSettings) -> dict[str, Any]:
    """Return the settings as plain data, as they are in JSON."""
    return {
        "version": VERSION,
        "default": {
            name: value for name, value in rule_data(settings.default).items() if name not in ("task", "queue")
        },
        "rules": [rule_data(rule) for rule in settings.rules],
    }


def rule_data(rule: StageRule) -> dict[str, Any]:
    """Return a rule as plain data."""
    return {
        "task": rule.task,
        "queue": rule.queue,
        "stage": rule.stage.value,
        "percent": rule.percent,
        "key": rule.key,
        "include": sorted(rule.include),
        "exclude": sorted(rule.exclude),
    }


def describe(rule: StageRule) -> str:
    """Return a rule in one readable line."""
    before = rule.stage.before
    text = f"{rule.label}: {rule.stage.value}"
    if rule.percent < 100 and before is not None:
        text += f" for {rule.percent:g} % by {rule.key}, {before.value} for the others"
    if rule.include:
        text += f"; always in: {', '.join(sorted(rule.include))}"
    if rule.exclude and before is not None:
        text += f"; never in ({before.value}): {', '.join(sorted(rule.exclude))}"
    return text


def render(settings: StageSettings) -> str:
    """Return the settings as readable lines, in the order in which the rules are tried."""
    return "\n".join(describe(rule) for rule in settings.all_rules)


def _settings(default: Any, rules: Any) -> StageSettings:
    if not isinstance(rules, list):
        raise ConfigurationError("rule: it is not a list of tables; write [[rule]] above each one.")
    parsed = []
    for number, data in enumerate(rules, 1):
        task = data.get("task") if isinstance(data, dict) else None
        parsed.append(_rule(data, f"rule {number} ({task})" if isinstance(task, str) else f"rule {number}"))
    return StageSettings(default=_rule(default, "default"), rules=tuple(parsed))


def _rule(data: Any, where: str) -> StageRule:
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{where}: it is not a table of settings.")
    _refuse_unknown(data, _FIELDS, where)
    if "stage" not in data:
        raise ConfigurationError(f"{where}: stage: it is missing.")
    values: dict[str, Any] = {}
    for name, value in data.items():
        try:
            values[name] = _value(name, value)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {name}: {error}") from None
    try:
        return StageRule(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _value(name: str, value: Any) -> Any:
    if name == "percent":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError("it is not a number from 0 to 100.")
        return float(value)
    if name in ("include", "exclude"):
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, str | int) for v in value):
            raise ConfigurationError("it is not a list of texts.")
        return frozenset(str(v) for v in value)
    if not isinstance(value, str):
        raise ConfigurationError("it is not a text.")
    return parse_stage(value) if name == "stage" else value


def _percent(text: str, number: int, pattern: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        raise ConfigurationError(f"rule {number} ({pattern}): percent: it is not a number from 0 to 100.") from None


def _refuse_unknown(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(known)}."
            raise ConfigurationError(f"{where}: {name!r} is not a setting.{hint}")
