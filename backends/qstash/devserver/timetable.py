"""What waits for a time: one heap for all accounts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Final

from queuebridge.backends.qstash.devserver.messages import Message, Phase

_COMPACT_ABOVE: Final = 1000


class Alarm:
    """What is to be called at a time, once: the end of a rate window, the trigger of a schedule."""

    __slots__ = ("cancelled", "ring")

    def __init__(self, ring: Callable[[float], None]) -> None:
        self.ring = ring
        self.cancelled = False

    def cancel(self) -> None:
        """Have it not called; what it would have called is let go at once."""
        self.cancelled = True
        self.ring = _nothing


class Timetable:
    """Messages and alarms by the Unix time they are due; equal times in order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Message | Alarm]] = []
        self._order = itertools.count()
        self._stale = 0

    def __len__(self) -> int:
        """Return how many entries are kept, those of cancelled messages included."""
        return len(self._heap)

    def add(self, due: float, item: Message | Alarm) -> None:
        """Remember an item until `due`."""
        heapq.heappush(self._heap, (due, next(self._order), item))

    def take_due(self, now: float) -> Iterator[Message | Alarm]:
        """Remove and return what is due, passing over what was cancelled."""
        while self._heap and self._heap[0][0] <= now:
            _, _, item = heapq.heappop(self._heap)
            if _waits(item):
                yield item
            else:
                self._stale -= 1

    def next_due(self) -> float | None:
        """Return the earliest time, or None."""
        while self._heap and not _waits(self._heap[0][2]):
            heapq.heappop(self._heap)
            self._stale -= 1
        return self._heap[0][0] if self._heap else None

    def note_cancelled(self) -> None:
        """Count a waiting message or alarm that was just cancelled.

        The heap is rebuilt when most of it is such: a year's delay must not keep a body that long.
        """
        self._stale += 1
        if self._stale > _COMPACT_ABOVE and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if _waits(entry[2])]
            heapq.heapify(self._heap)
            self._stale = 0


def _nothing(_now: float) -> None:
    pass


def _waits(item: Message | Alarm) -> bool:
    return not item.cancelled if isinstance(item, Alarm) else item.phase is Phase.WAITING
