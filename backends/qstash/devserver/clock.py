"""Unix time as the server sees it: the machine's, or one that a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Unix seconds. It can be stopped and moved; deliveries are signed by the machine's time all the same."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._offset = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        """Return the time."""
        return self._source() + self._offset if self._stopped_at is None else self._stopped_at

    def of_machine(self) -> float:
        """Return the machine's time, by which others name theirs."""
        return self._source()

    @property
    def stopped(self) -> bool:
        """Whether the time stands still until it is moved."""
        return self._stopped_at is not None

    def stop(self) -> None:
        """Let the time stand still."""
        self._stopped_at = self()

    def resume(self) -> None:
        """Let the time go on from where it stands."""
        if self._stopped_at is not None:
            self._offset = self._stopped_at - self._source()
            self._stopped_at = None

    def move_to(self, moment: float) -> None:
        """Set the time, in Unix seconds; whether it stands still or runs stays as it is."""
        if self._stopped_at is not None:
            self._stopped_at = moment
        else:
            self._offset = moment - self._source()
