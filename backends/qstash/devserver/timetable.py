"""What waits for a time: one heap for all accounts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Final

from queuebridge.backends.qstash.devserver.limits import FlowKey
from queuebridge.backends.qstash.devserver.messages import Message, Phase

_COMPACT_ABOVE: Final = 1000


class Timetable:
    """Messages and rate windows by the Unix time they are due; equal times in order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, Message | FlowKey]] = []
        self._order = itertools.count()
        self._stale = 0

    def __len__(self) -> int:
        """Return how many entries are kept, those of cancelled messages included."""
        return len(self._heap)

    def add(self, due: float, account_name: str, item: Message | FlowKey) -> None:
        """Remember an item until `due`."""
        heapq.heappush(self._heap, (due, next(self._order), account_name, item))

    def take_due(self, now: float) -> Iterator[tuple[str, Message | FlowKey]]:
        """Remove and return what is due, with its account's name, passing over cancelled messages."""
        while self._heap and self._heap[0][0] <= now:
            _, _, account_name, item = heapq.heappop(self._heap)
            if isinstance(item, FlowKey) or item.phase is Phase.WAITING:
                yield account_name, item
            else:
                self._stale -= 1

    def next_due(self) -> float | None:
        """Return the earliest time, or None."""
        return self._heap[0][0] if self._heap else None

    def note_cancelled(self) -> None:
        """Count a waiting message that was just cancelled.

        The heap is rebuilt when most of it is such: a year's delay must not keep a body that long.
        """
        self._stale += 1
        if self._stale > _COMPACT_ABOVE and self._stale * 2 > len(self._heap):
            self._heap = [
                entry
                for entry in self._heap
                if isinstance(entry[3], FlowKey) or entry[3].phase is Phase.WAITING
            ]
            heapq.heapify(self._heap)
            self._stale = 0
