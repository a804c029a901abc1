"""Kills at random moments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from queuebridge.demo.services import Service
from queuebridge.demo.steps import SERVER

# How long what was killed stays away, in seconds; nothing but the server can do without for long.
_AWAY = {SERVER: (1.5, 3.0)}
_AWAY_OTHERS = (0.0, 0.5)
# Not at the very beginning of a step, when nothing is under way yet, and not at its end.
_FROM, _TO = 0.15, 0.85


class Chaos:
    """Kills services while jobs are under way, and starts them anew.

    The caller asks it to act from time to time; it has no thread of its own.

    Args:
        services: What may be killed.
        seed: Decides what is killed when.
        note: Is told what was done.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        seed: int,
        *,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._note = note
        self._clock = clock
        self._plan: list[tuple[float, str]] = []
        self._back: dict[str, float] = {}

    def plan(self, names: Sequence[str], seconds: float) -> None:
        """Kill each of these once within the coming seconds."""
        now = self._clock()
        moments = [(now + seconds * self._random.uniform(_FROM, _TO), name) for name in names]
        self._plan = sorted(moments)

    def act(self) -> None:
        """Do what is due."""
        now = self._clock()
        for name, at in list(self._back.items()):
            if at <= now:
                del self._back[name]
                self._services[name].start()
        while self._plan and self._plan[0][0] <= now:
            _, name = self._plan.pop(0)
            self._kill(name)

    def calm(self, *names: str) -> None:
        """Kill nothing more (of these names; all if there are none), and have everything ready again."""
        self._plan = [(at, name) for at, name in self._plan if names and name not in names]
        for name in names or self._services:
            self._back.pop(name, None)
            self._services[name].wait_until_ready()

    def _kill(self, name: str) -> None:
        service = self._services[name]
        if not service.running:
            return
        service.kill()
        low, high = _AWAY.get(name, _AWAY_OTHERS)
        away = self._random.uniform(low, high)
        self._back[name] = self._clock() + away
        self._note(f"killed the {name}" + (f", for {away:.1f} s" if name in _AWAY else ""))
