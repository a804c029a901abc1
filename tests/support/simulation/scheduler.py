"""Virtual time: actors that run one at a time, and a heap that says who comes next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

import greenlet

# Where the worlds begin, in Unix seconds; any time would do.
BEGINNING = 1_800_000_000.0


class Killed(BaseException):
    """The process of the actor has died. No code of the product may stop it."""


class Actor(greenlet.greenlet):
    """Something that happens while time passes; it gives way only in `Scheduler.pause`.

    Attributes:
        run_: The execution that it is about, for executors.
        busy: The ledger has said that the job is busy, and nobody has seen to it that it comes again.
    """

    run_: Any = None
    busy = False


class Scheduler:
    """The clock and the order of events. Two runs with the same actors are the same."""

    def __init__(self) -> None:
        self.now = BEGINNING
        self.alive = 0
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = count()
        self._hub = greenlet.getcurrent()

    def call_at(self, at: float, act: Callable[[], object]) -> None:
        """Call `act`, which must not pause, at a time."""
        heapq.heappush(self._heap, (max(at, self.now), next(self._serial), act))

    def spawn(self, act: Callable[[], object], *, after: float = 0.0) -> None:
        """Start an actor."""
        actor = Actor(lambda: self._live(act), parent=self._hub)
        self.alive += 1
        self.call_at(self.now + after, actor.switch)

    def _live(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Killed:
            pass
        finally:
            self.alive -= 1

    def pause(self, seconds: float) -> None:
        """Let the calling actor wait."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._serial), greenlet.getcurrent().switch))
        self._hub.switch()

    def run_until(self, end: float) -> None:
        """Let everything happen that happens before a time."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, act = heapq.heappop(heap)
            act()
        self.now = end
