"""A destination on the loopback that answers 200 and says what came in, when, and how much of it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from destinations import Answer, Arrival, serving

DEADLINE = 30.0


@dataclass
class CountingDestination:
    """What arrived so far. While `hold` is set requests to `/held` are not answered; others take `work_seconds`."""

    base_url: str = ""
    work_seconds: float = 0.0
    requests: list[Arrival] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return self.base_url + path

    def wait_for(self, count: int) -> list[Arrival]:
        """Return all requests as soon as there are that many, answered or not."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.requests) >= count, DEADLINE)
            assert arrived, f"{len(self.requests)} of {count} requests arrived"
            return list(self.requests)

    def take(self, arrival: Arrival) -> Answer:
        """Count a request, and answer it when it is time."""
        with self._changed:
            self.requests.append(arrival)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()
        if arrival.path == "/held":
            self.let_go.wait(DEADLINE)
        elif self.work_seconds:
            time.sleep(self.work_seconds)
        with self._changed:
            self.in_flight -= 1
        return 200, {}, b"ok"


@contextmanager
def counting_destination() -> Iterator[CountingDestination]:
    """Run a destination for the time of the context."""
    found = CountingDestination()
    with serving(found) as found.base_url:
        try:
            yield found
        finally:
            found.let_go.set()
