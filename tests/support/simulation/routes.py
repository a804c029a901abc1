"""The stages of a simulated world, which somebody changes all the time."""

from __future__ import annotations

import random

from simulation.witness import RETRIES, Witness

from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import ORDER, Stage

_PERCENTS = (1.0, 10.0, 25.0, 50.0, 75.0, 100.0)
_USERS = tuple(f"user-{number}" for number in range(20))


class Routes:
    """A rule per task, each at some stage for some per cent of the users."""

    def __init__(self, rng: random.Random, witness: Witness) -> None:
        self._rng = rng
        self._witness = witness
        self._rules = {name: StageRule(task=name, stage=rng.choice(ORDER), key="user_id") for name in RETRIES}

    @property
    def settings(self) -> StageSettings:
        """Return what producers go by."""
        return StageSettings(default=StageRule(stage=Stage.LEGACY), rules=tuple(self._rules.values()))

    def change(self) -> StageSettings:
        """Change the rule of one task, or of all, and return the new settings."""
        names = [self._rng.choice(list(self._rules))] if self._rng.random() < 0.7 else list(self._rules)
        how = self._rng.choice(("forth", "back", "more", "legacy", "any"))
        for name in names:
            before = self._rules[name]
            self._rules[name] = after = self._changed(before, how)
            self._check(before, after)
        return self.settings

    def _changed(self, rule: StageRule, how: str) -> StageRule:
        rng = self._rng
        stage, percent = rule.stage, rng.choice(_PERCENTS)
        if how == "forth":
            stage = rule.stage.after or rule.stage
        elif how == "back":
            stage = rule.stage.before or rule.stage
        elif how == "more":
            percent = rng.choice([p for p in _PERCENTS if p >= rule.percent])
        elif how == "legacy":
            stage = Stage.LEGACY
        else:
            stage = rng.choice(ORDER)
        return StageRule(
            task=rule.task, stage=stage, key="user_id", percent=100.0 if stage is Stage.LEGACY else percent
        )

    def _check(self, before: StageRule, after: StageRule) -> None:
        """See that nobody moves back when a per cent is raised, nor when a stage follows for as many."""
        if ORDER.index(after.stage) < ORDER.index(before.stage) or after.percent < before.percent:
            return
        for user in _USERS:
            was = ORDER.index(before.decide("a-job", {"user_id": user}).stage)
            now = ORDER.index(after.decide("a-job", {"user_id": user}).stage)
            if now < was:
                self._witness.blame("P5", user, f"moved out, from {before} to {after}")

    def __str__(self) -> str:
        return ", ".join(f"{name} {rule.stage.value} {rule.percent:g} %" for name, rule in self._rules.items())
