"""The ledger's core: records, claims, and what has to be looked after."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from queuebridge.ledger.executions import ExecutionLog
from queuebridge.ledger.records import (
    Claim,
    ClaimRequest,
    Due,
    NewDispatch,
    Recorded,
    Settlement,
    ShadowNote,
    WriteMark,
)
from queuebridge.ledger.stage_store import StageStore


class Ledger(abc.ABC):
    """A store that all producers, receivers and workers share.

    Every method is one atomic act: two callers, in whatever threads, processes or machines, are as if one came
    after the other. Time is the store's clock. Implementations are safe to use from several threads and after a
    fork, and open connections at first use.

    Every method raises LedgerUnavailable if the store cannot be reached, and ConfigurationError if its schema is
    not the one that this version needs.

    Attributes:
        executions: What the store knows, for people.
        stages: Settings of the stages, and which processes have seen them.
    """

    executions: ExecutionLog
    stages: StageStore

    @abc.abstractmethod
    def record(self, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        """Record dispatches before they are published, in one round trip, all or none.

        A dispatch that is known already is left as it is. `check_in_ms` sets when reconcile looks at a new one; the
        due time of a held copy does, if it is earlier.
        """

    @abc.abstractmethod
    def mark(self, marks: Sequence[WriteMark], *, check_in_ms: int | None = None) -> None:
        """Note what became of writes, in one round trip.

        A copy that was WRITTEN stays so, whatever comes later, except for another WRITTEN with another message id.
        A copy that was not planned is added. Marks of an unknown dispatch are ignored, those of a settled one are
        noted and change nothing else.

        The next check of an ACCEPTED dispatch becomes `check_in_ms` from now, if given; else the due time of its held
        copy; else none. That of a dispatch in another state stays as it is.
        """

    @abc.abstractmethod
    def claim(self, request: ClaimRequest, *, grace_ms: int) -> Claim:
        """Ask for the right to run a dispatch now, and record the delivery, in one round trip.

        - Settled dispatch: Settled.
        - Its expiry has passed and nobody runs it: it is settled as EXPIRED; Settled with `first`.
        - A claim whose lease has not ended, or a retry time that has not come: Busy, with the next epoch.
        - As many attempts as allowed were granted, and the last one never settled: it is settled as QUARANTINED;
          Settled with `first`.
        - Otherwise granted: state RUNNING, one more attempt, a token that is max(the last token + 1, the store's time
          in microseconds), so that tokens grow even if the store was lost in between. Reconcile looks at it
          `grace_ms` after the lease ends.

        A dispatch that was never seen is created without copies first, so it is granted unless it has expired. What
        is known of a dispatch (expiry, attempts allowed) counts, whatever the request says.
        """

    @abc.abstractmethod
    def renew(self, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
        """Extend a claim to `lease_ms` from now. False if the token is not the current one, or it is not running.

        A lease that ended, and that nobody has claimed since, is extended.
        """

    @abc.abstractmethod
    def settle(self, dispatch_id: str, token: int, settlement: Settlement) -> bool:
        """Record the end of a dispatch, in one round trip. The body is forgotten.

        The current token may settle whether or not its lease has ended, and after a release too. True also if this
        very token has settled it in the same state before: the answer may have been lost. False, and counted as a
        stale settle, if the token is not the current one or the dispatch was settled otherwise. False if it is unknown.
        """

    @abc.abstractmethod
    def release(
        self, dispatch_id: str, token: int, *, retry_in_ms: int, grace_ms: int, error: str, traceback: str | None
    ) -> bool:
        """End a failed attempt that will be retried: state WAITING until `retry_in_ms` from now.

        Reconcile looks at it `grace_ms` after that. False, and counted as a stale settle, if the token is not the
        current one or the dispatch is settled or not running; True if this token has released it already.
        """

    @abc.abstractmethod
    def note_shadow(self, note: ShadowNote) -> None:
        """Record the arrival of a shadow copy. It changes no state.

        A dispatch never seen is created as ACCEPTED, without copies, and reconcile does not look at it.
        """

    @abc.abstractmethod
    def cancel(self, job_id: str) -> tuple[int, int]:
        """Settle as CANCELLED all dispatches of a job that nobody runs: a claim whose lease has ended is no obstacle.

        Returns:
            How many were cancelled, and how many run and were left alone.
        """

    @abc.abstractmethod
    def withdraw(self, dispatch_id: str) -> bool:
        """Forget a dispatch whose writes all failed, so that nobody publishes it later.

        It may be recorded anew, under an idempotency key. False, and nothing changes, if it was delivered after all
        (its state is not ACCEPTED any more), or given out by `take_due` (its epoch is not 0 any more), so that
        somebody may be writing it; true if the ledger does not know it.
        """

    @abc.abstractmethod
    def take_due(self, limit: int, *, lease_ms: int) -> list[Due]:
        """Return unsettled dispatches whose check time has come, the most urgent first.

        Each is given out once: its next check is put off by `lease_ms`, so that another caller does not take it,
        and one whose caller died is taken again. Each gets the next epoch. The most urgent is the one whose check time
        came first; one that is running comes up only when its lease has ended, and the grace has passed.
        """

    @abc.abstractmethod
    def check_in(self, dispatch_id: str, delay_ms: int | None) -> None:
        """Let reconcile look at an unsettled dispatch after `delay_ms`, or not any more; unknown ones are ignored."""

    @abc.abstractmethod
    def release_held(self) -> int:
        """Make every held copy of an unsettled dispatch due now. Returns how many there were.

        Reconcile looks at ACCEPTED ones at once; at those that run or wait, when it would anyway.
        """

    @abc.abstractmethod
    def put_payload(self, key: str, body: bytes, *, keep_ms: int) -> None:
        """Keep a body that is too large for a transport, for `keep_ms` at least. The same key is the same body.

        Kept again, it is kept for the longer of the two times.
        """

    @abc.abstractmethod
    def get_payload(self, key: str) -> bytes | None:
        """Return a kept body, None if there is none."""

    @abc.abstractmethod
    def purge(self, *, settled_before_ms: int, limit: int) -> int:
        """Forget up to `limit` dispatches that were settled before a time, with their deliveries.

        Payloads whose time has passed go too. Returns how many dispatches were forgotten.
        """

    @abc.abstractmethod
    def now_ms(self) -> int:
        """Return the store's time."""

    @abc.abstractmethod
    def ping(self) -> str:
        """Reach the store and return one line about it, without secrets."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up connections. The ledger may be used again; it then opens new ones."""
