"""Stop trying a backend that keeps failing, and try it again now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from queuebridge.errors import BackendUnavailable

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 10.0


class Breaker:
    """Counts failures in a row of one backend. Safe to use from several threads.

    Closed, it lets everything through. After so many failures in a row it opens: nothing is tried for a while. Then
    it is half open: one call is let through as a probe; its success closes the breaker, its failure opens it again.

    Args:
        backend: The name, for the error.
        clock: Monotonic seconds.
    """

    def __init__(self, backend: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until: float | None = None
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """Return whether calls are refused at the moment."""
        with self._lock:
            return self._open_until is not None and self._clock() < self._open_until

    def enter(self) -> None:
        """Ask whether a call may be tried; whoever does has to report its end.

        Raises:
            BackendUnavailable: It may not.
        """
        with self._lock:
            if self._open_until is None:
                return
            now = self._clock()
            if now < self._open_until:
                raise BackendUnavailable(
                    self._backend,
                    f"it is not tried for another {self._open_until - now:.0f} s, because the last {self._failures} "
                    f"writes failed ({self._reason})",
                )
            # This call is the probe. Others wait for its end, but not for ever: it may never report one.
            self._open_until = now + OPEN_SECONDS

    def succeeded(self) -> None:
        """Report that the backend answered."""
        with self._lock:
            self._failures = 0
            self._open_until = None

    def failed(self, reason: str) -> None:
        """Report that the backend could not be reached, or did not answer."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            if self._failures >= FAILURES_TO_OPEN:
                self._open_until = self._clock() + OPEN_SECONDS
