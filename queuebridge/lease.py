"""Keep claims alive while task bodies run, and notice when one was lost."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from queuebridge.errors import LeaseLost, LedgerUnavailable

logger = logging.getLogger(__name__)

# A claim is renewed when a third of its lease has passed, so that two renewals may fail.
_RENEWALS_PER_LEASE = 3


class Lease:
    """The claim of one execution, as its task sees it.

    Attributes:
        token: The fencing token.
    """

    def __init__(self, dispatch_id: str, token: int, seconds: float) -> None:
        self.dispatch_id = dispatch_id
        self.token = token
        self.seconds = seconds
        self._lost = threading.Event()

    @property
    def lost(self) -> bool:
        """Return whether another execution may have taken over."""
        return self._lost.is_set()

    def mark_lost(self) -> None:
        """Note that the token is stale, or that the claim has ended without a renewal."""
        self._lost.set()

    def mark_held(self) -> None:
        """Note that the claim holds: it has been renewed."""
        self._lost.clear()

    def check(self) -> None:
        """Raise if the claim was lost.

        Raises:
            LeaseLost: Another execution may run this job by now.
        """
        if self.lost:
            raise LeaseLost(
                "The claim on this job has ended and may have been taken over: what is still done may be done twice."
            )


@dataclass(slots=True)
class _Kept:
    """A lease that is being renewed; times on the keeper's clock. `gone` ones never come back."""

    lease: Lease
    renew_at: float
    ends_at: float
    gone: bool = False


class LeaseKeeper:
    """Renews leases in one thread per process, which exists while there are leases to renew.

    Args:
        renew: Renews the claim of a dispatch with a token; false if the token is stale.
        clock: Monotonic seconds.
    """

    def __init__(self, renew: Callable[[Lease], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._renew = renew
        self._clock = clock
        self._wake = threading.Condition()
        self._leases: dict[int, _Kept] = {}
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()

    @contextmanager
    def kept(self, lease: Lease) -> Iterator[None]:
        """Renew a lease for as long as the block runs."""
        if self._owner != os.getpid():
            # After a fork the parent's thread is not here, and its lock may be held for ever.
            self.__init__(self._renew, clock=self._clock)  # type: ignore[misc]
        key = id(lease)
        with self._wake:
            now = self._clock()
            self._leases[key] = _Kept(lease, now + lease.seconds / _RENEWALS_PER_LEASE, now + lease.seconds)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="queuebridge-leases", daemon=True)
                self._thread.start()
            self._wake.notify()
        try:
            yield
        finally:
            with self._wake:
                self._leases.pop(key, None)

    def renew_due(self) -> None:
        """Renew what is due."""
        with self._wake:
            now = self._clock()
            due = [kept for kept in self._leases.values() if kept.renew_at <= now]
        for kept in due:
            self._renew_one(kept)

    def _renew_one(self, kept: _Kept) -> None:
        lease = kept.lease
        pause = lease.seconds / _RENEWALS_PER_LEASE
        asked_at = self._clock()
        try:
            if self._renew(lease):
                kept.ends_at = asked_at + lease.seconds
                lease.mark_held()
            else:
                kept.gone = True
                lease.mark_lost()
                logger.error(
                    "The claim on dispatch %s was lost while its task ran: another execution may have taken over.",
                    lease.dispatch_id,
                    extra={"event": "lease_lost", "dispatch_id": lease.dispatch_id},
                )
        except LedgerUnavailable as error:
            # There is time for another try before the lease ends.
            pause /= _RENEWALS_PER_LEASE
            logger.warning("The claim on dispatch %s could not be renewed yet: %s", lease.dispatch_id, error)
        except Exception:
            logger.exception("The claim on dispatch %s could not be renewed.", lease.dispatch_id)
        now = self._clock()
        if now >= kept.ends_at:
            # Only this process may be cut off from the ledger: others may claim the dispatch from now on.
            lease.mark_lost()
        with self._wake:
            kept.renew_at = now + pause
            if kept.gone:
                self._leases.pop(id(lease), None)

    def _run(self) -> None:
        while True:
            self.renew_due()
            with self._wake:
                if not self._leases:
                    # A thread that waits for ever would keep nobody waiting, but be one more thing in every process.
                    if not self._wake.wait(timeout=5.0) and not self._leases:
                        self._thread = None
                        return
                else:
                    pause = min(kept.renew_at for kept in self._leases.values()) - self._clock()
                    if pause > 0:
                        self._wake.wait(timeout=pause)
