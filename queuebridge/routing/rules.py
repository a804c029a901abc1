"""Rules that say which stage a job is written by, and the stable share of a per cent. Nothing here reads or waits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from queuebridge.errors import ConfigurationError
from queuebridge.stages import Stage

JOB_ID = "job_id"
_METADATA = "metadata."
# Routing keys that have a name of their own, and are in a job's metadata under it.
_NAMED_KEYS = ("user_id", "organization_id")

# Changing any of these moves keys in and out of every migration that is under way.
_SALT = "queuebridge-stage"
_BUCKETS = 1_000_000


def bucket_of(key_name: str, key: str) -> float:
    """Return where a routing key stands: a number from 0 up to, and without, 100, in steps of 0.0001.

    It depends on nothing but the key, so that a key stays in when a per cent is raised, when a rule is split off from
    another one, and in the next stage; and so that it stands alike for all tasks.
    """
    text = f"{_SALT}:{len(key_name)}:{key_name}:{key}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % _BUCKETS / (_BUCKETS / 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRule:
    """The stage of the jobs that it matches.

    Attributes:
        stage: The stage of the keys that are in; the others are in the stage before it.
        task, queue: Patterns as in a shell, in which `*` matches all. Case matters.
        percent: The share of routing keys that are in, from 0 to 100.
        key: What the share goes by: `job_id`, `user_id`, `organization_id` or `metadata.<name>`. A job that has no
            such key goes by its job id.
        include, exclude: Values of the key that are always in, or never, whatever the per cent.

    Raises:
        ConfigurationError: A value is impossible; the message begins with the field.
    """

    stage: Stage
    task: str = "*"
    queue: str = "*"
    percent: float = 100.0
    key: str = JOB_ID
    include: frozenset[str] = field(default=frozenset())
    exclude: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        for name in ("task", "queue"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name}: it is empty; `*` matches all.")
        if not 0 <= self.percent <= 100 or math.isnan(self.percent):
            raise ConfigurationError("percent: it is not a number from 0 to 100.")
        if self.stage.before is None and (self.percent < 100 or self.exclude):
            name = "percent" if self.percent < 100 else "exclude"
            raise ConfigurationError(
                f"{name}: there is no stage before {self.stage.value} for those who are not in. Name a later stage."
            )
        object.__setattr__(self, "key", _checked_key(self.key))
        if both := self.include & self.exclude:
            raise ConfigurationError(f"include, exclude: {min(both)!r} is in both.")

    @property
    def is_general(self) -> bool:
        """Return whether it matches every job."""
        return self.task == "*" and self.queue == "*"

    @property
    def everybody_is_in(self) -> bool:
        """Return whether no key is left in the stage before."""
        return self.percent == 100 and not self.exclude

    @property
    def label(self) -> str:
        """Return what it matches, in words."""
        if self.is_general:
            return "default"
        return self.task if self.queue == "*" else f"{self.task} on queue {self.queue}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages that jobs may get by this rule."""
        before = self.stage.before
        if before is None or self.everybody_is_in:
            return (self.stage,)
        return (before, self.stage) if self.percent or self.include else (before,)

    def matches(self, task: str, queue: str) -> bool:
        """Return whether a job of this task on this queue goes by the rule."""
        return (self.task == "*" or fnmatchcase(task, self.task)) and (
            self.queue == "*" or fnmatchcase(queue, self.queue)
        )

    def covers(self, other: StageRule) -> bool:
        """Return whether it certainly matches all that `other` matches. It is not certain of every such pair."""
        return pattern_covers(self.task, other.task) and pattern_covers(self.queue, other.queue)

    def decide(self, job_id: str, metadata: Mapping[str, Any]) -> Decision:
        """Return the stage of a job that the rule matches."""
        name, key = self._routing_key(job_id, metadata)
        if self.everybody_is_in or (name == self.key and key in self.include):
            inside = True
        elif name == self.key and key in self.exclude:
            inside = False
        else:
            inside = bucket_of(name, key) < self.percent
        stage = self.stage if inside else self.stage.before or self.stage
        return Decision(stage=stage, rule=self, key_name=name, key=key)

    def _routing_key(self, job_id: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
        if self.key != JOB_ID:
            value = metadata.get(self.key.removeprefix(_METADATA))
            if value is not None and value != "":
                return self.key, str(value)
        return JOB_ID, job_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The stage of one job, and why.

    Attributes:
        stage: The stage.
        rule: The rule that decided.
        key_name, key: The routing key that was used; the job id if the job lacks the one that the rule names.
    """

    stage: Stage
    rule: StageRule
    key_name: str
    key: str

    @property
    def bucket(self) -> float:
        """Return where the key stands; it is in if this is less than the per cent."""
        return bucket_of(self.key_name, self.key)

    @property
    def reason(self) -> str:
        """Return why, in words."""
        named = self.key_name == self.rule.key
        key = f"{self.key_name} {self.key!r}"
        if named and self.key in self.rule.include:
            return f"{key} is always in"
        if named and self.key in self.rule.exclude:
            return f"{key} is never in"
        if self.rule.everybody_is_in:
            return "everybody is in"
        inside = "in" if self.stage is self.rule.stage else "not in"
        because = "" if named else f" (the job has no {self.rule.key})"
        return f"{key} stands at {self.bucket:g}, so at {self.rule.percent:g} % it is {inside}{because}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """The stages of all tasks: the first rule that matches a job decides, or else the default.

    Attributes:
        default: The rule for jobs that no other one matches. Its patterns match all.
        rules: The other rules, in order.

    Raises:
        ConfigurationError: The default has a pattern, or a rule could never decide.
    """

    default: StageRule
    rules: tuple[StageRule, ...] = ()

    def __post_init__(self) -> None:
        if not self.default.is_general:
            raise ConfigurationError("default: it matches every job, and takes neither task nor queue.")
        for number, rule in enumerate(self.rules, 1):
            for earlier_number, earlier in enumerate(self.rules[: number - 1], 1):
                if earlier.covers(rule):
                    raise ConfigurationError(
                        f"rule {number} ({rule.label}): it is never reached, because rule {earlier_number} "
                        f"({earlier.label}) comes first and matches the same. Put it before that one, or drop it."
                    )

    @property
    def all_rules(self) -> tuple[StageRule, ...]:
        """Return the rules in the order in which they are tried, the default last."""
        return (*self.rules, self.default)

    def rule_for(self, task: str, queue: str) -> StageRule:
        """Return the rule that decides for jobs of this task on this queue."""
        for rule in self.rules:
            if rule.matches(task, queue):
                return rule
        return self.default

    def stage_for(self, task: str, queue: str, job_id: str, metadata: Mapping[str, Any]) -> Decision:
        """Return the stage that a job is written by. The same job always gets the same answer."""
        return self.rule_for(task, queue).decide(job_id, metadata)


def pattern_covers(general: str, special: str) -> bool:
    """Return whether a pattern certainly matches all that another one matches. It is not certain of every pair."""
    if general in ("*", special):
        return True
    prefix = general[:-1]
    return general.endswith("*") and not any(c in "*?[" for c in prefix) and special.startswith(prefix)


def _checked_key(key: str) -> str:
    name = key.removeprefix(_METADATA)
    if name in _NAMED_KEYS:
        return name
    if key == JOB_ID or (key.startswith(_METADATA) and name):
        return key
    raise ConfigurationError(f"key: it is none of {JOB_ID}, {', '.join(_NAMED_KEYS)} and metadata.<name>.")
