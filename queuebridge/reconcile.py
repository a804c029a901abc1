"""Publish what the ledger has and the backends have not: held, unpublished and abandoned jobs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from queuebridge.backend import Backend, Publication
from queuebridge.envelope import Envelope
from queuebridge.errors import LedgerUnavailable, PublishOutcomeUnknown, QueueBridgeError
from queuebridge.ledger import Copy, Due, Execution, Ledger, State, WriteMark, WriteState
from queuebridge.ledger.custody import Custody, referenced
from queuebridge.parking import ledger_epoch
from queuebridge.publishing.writing import one_line
from queuebridge.receipt import Write
from queuebridge.stages import Role, Side

logger = logging.getLogger(__name__)

_BATCH = 100
# Longer than publishing a batch takes; another reconciler then takes over what this one had in hand.
_IN_HAND_MS = 60_000
_AFTER_FAILURE_MS = 15_000
# A job published anew may have to wait behind others; it must not be published again and again meanwhile.
_AFTER_REDISPATCH_MS = 15 * 60_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciled:
    """What one look at the ledger brought.

    Attributes:
        released: Held copies that were due, and were written.
        published: Copies that were recorded and did not get to their backend, and were written.
        redispatched: Jobs whose executor, or whose delivery, was lost, and that were written again.
        failed: Writes that failed, to be tried again.
        skipped: Jobs that cannot be published from here.
    """

    released: int = 0
    published: int = 0
    redispatched: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """Return how many jobs were looked at."""
        return self.released + self.published + self.redispatched + self.failed + self.skipped

    def __add__(self, other: Reconciled) -> Reconciled:
        return Reconciled(
            released=self.released + other.released,
            published=self.published + other.published,
            redispatched=self.redispatched + other.redispatched,
            failed=self.failed + other.failed,
            skipped=self.skipped + other.skipped,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One write that a dispatch needs.

    Attributes:
        copy: Which copy to write.
        kind: The field of `Reconciled` that counts it.
        fresh_epoch: Whether it is a wanted republication, which no transport must take for a resend.
    """

    copy: Copy
    kind: str
    fresh_epoch: bool


_Result: TypeAlias = tuple[Due, Action, Write | Exception]


class Reconciler:
    """Looks after jobs that nobody else looks after. Several may run at once.

    Args:
        ledger: The ledger.
        backends: The backend of each side that can be written to from here.
        custody: How jobs are stored.
    """

    def __init__(self, ledger: Ledger, backends: Mapping[Side, Backend], custody: Custody) -> None:
        self._ledger = ledger
        self._backends = backends
        self._custody = custody

    def run_once(self) -> Reconciled:
        """Do what is due, and return what that was.

        Raises:
            LedgerUnavailable: The ledger cannot be reached.
        """
        done = Reconciled()
        while True:
            batch = self._ledger.take_due(_BATCH, lease_ms=_IN_HAND_MS)
            if batch:
                done += self._handle(batch)
            if len(batch) < _BATCH:
                return done

    def _handle(self, batch: Sequence[Due]) -> Reconciled:
        done = Reconciled()
        work: dict[Side, list[tuple[Due, Action, Publication]]] = {side: [] for side in self._backends}
        for due in batch:
            for action in actions_for(due.execution, due.now_ms, default_side=next(iter(self._backends))):
                publication = self._publication(due, action)
                if publication is None:
                    done += Reconciled(skipped=1)
                    self._ledger.check_in(due.execution.dispatch_id, _AFTER_REDISPATCH_MS)
                else:
                    work[action.copy.side].append((due, action, publication))
        results: list[_Result] = []
        for side, items in work.items():
            if items:
                answers = self._backends[side].publish_many([publication for _, _, publication in items])
                results += [(due, action, answer) for (due, action, _), answer in zip(items, answers, strict=True)]
        return done + self._note(results)

    def _publication(self, due: Due, action: Action) -> Publication | None:
        execution = due.execution
        changes: dict[str, object] = {"role": action.copy.role if len(execution.copies) > 1 else None}
        if action.fresh_epoch:
            changes["epoch"] = ledger_epoch(due.epoch)
        if action.copy.side not in self._backends:
            logger.warning("Job %s needs a %s backend, which is not configured.", execution.job_id, action.copy.backend)
            return None
        try:
            envelope = Envelope.decode(self._custody.open(due.body))
            if action.copy.side is Side.LEGACY and envelope.payload_ref is not None:
                # Only push copies travel by reference.
                kept = self._ledger.get_payload(envelope.payload_ref.key)
                envelope = referenced(envelope, self._custody.open(kept or b""))
            backend = self._backends[action.copy.side]
            publication = Publication(
                envelope=envelope.model_copy(update=changes),
                options=envelope.options.get(backend.name, {}),
                counted_by_ledger=True,
            )
            backend.check(publication)
        except LedgerUnavailable:
            raise
        except QueueBridgeError as error:
            logger.error("Job %s cannot be published from the ledger: %s", execution.job_id, error)
            return None
        return publication

    def _note(self, results: Sequence[_Result]) -> Reconciled:
        done = Reconciled()
        out = {due.execution.dispatch_id for due, _, result in results if isinstance(result, Write)}
        marks: dict[int | None, list[WriteMark]] = {}
        for due, action, result in results:
            marks.setdefault(_check_in_ms(due, action, out), []).append(self._mark(due, action, result))
            done += Reconciled(**{action.kind if isinstance(result, Write) else "failed": 1})
            self._log(due.execution, action, result)
        # With the marks, not after them: what nobody has must not be without a check even for a moment.
        for check_in_ms, together in marks.items():
            self._ledger.mark(together, check_in_ms=check_in_ms)
        for due, action, _ in results:
            check_in_ms = _check_in_ms(due, action, out)
            if due.execution.state is not State.ACCEPTED and check_in_ms is not None:
                # That of a dispatch which runs or waits is not set by marks.
                self._ledger.check_in(due.execution.dispatch_id, check_in_ms)
        return done

    def _mark(self, due: Due, action: Action, result: Write | Exception) -> WriteMark:
        state = WriteState.WRITTEN
        if action.kind == "released" and not isinstance(result, Write):
            # It stays the last resort, whatever has become of the other copy.
            state = WriteState.HELD
        elif isinstance(result, PublishOutcomeUnknown):
            state = WriteState.UNKNOWN
        elif isinstance(result, Exception):
            state = WriteState.FAILED
        return WriteMark(
            dispatch_id=due.execution.dispatch_id,
            side=action.copy.side,
            backend=self._backends[action.copy.side].name,
            role=action.copy.role,
            state=state,
            due_in_ms=_AFTER_FAILURE_MS if state is WriteState.HELD else None,
            message_id=result.message_id if isinstance(result, Write) else None,
            error=one_line(result) if isinstance(result, Exception) else None,
        )

    def _log(self, execution: Execution, action: Action, result: Write | Exception) -> None:
        written = isinstance(result, Write)
        logger.log(
            logging.INFO if written else logging.WARNING,
            "%s job=%s task=%s on %s%s",
            action.kind if written else "not published",
            execution.job_id,
            execution.task,
            self._backends[action.copy.side].name,
            f": {one_line(result)}" if isinstance(result, Exception) else "",
            extra={"event": "reconciled", "job_id": execution.job_id, "dispatch_id": execution.dispatch_id},
        )


def _check_in_ms(due: Due, action: Action, out: Collection[str]) -> int | None:
    """Return when to look again at a dispatch that was written; `out` are the dispatches that some backend took."""
    if due.execution.dispatch_id not in out:
        return _AFTER_FAILURE_MS
    if action.kind == "redispatched" or due.execution.state is not State.ACCEPTED:
        return _AFTER_REDISPATCH_MS
    return None


def actions_for(execution: Execution, now_ms: int, *, default_side: Side) -> list[Action]:
    """Return what has to be written for a dispatch whose check time has come.

    Args:
        execution: What the ledger knows of it.
        now_ms: The store's time.
        default_side: Where to write a job of which no copy is known.
    """
    copies = [copy for copy in execution.copies if copy.role is not Role.SHADOW]
    if not copies:
        copies = [Copy(side=default_side, backend="", role=Role.PREFERRED, state=WriteState.WRITTEN)]
    held = next((copy for copy in copies if copy.state is WriteState.HELD), None)
    abandoned = execution.state is not State.ACCEPTED
    written = any(copy.state is WriteState.WRITTEN for copy in copies)
    # One that comes up early although it was written has been given up by its transport.
    if held is not None and (abandoned or written or (held.due_at_ms or 0) <= now_ms):
        return [Action(copy=held, kind="released", fresh_epoch=True)]
    if not written:
        # Under the epoch of the first try: where that one did arrive after all, this one is a resend.
        return [
            Action(copy=copy, kind="published", fresh_epoch=False)
            for copy in copies
            if copy.state is not WriteState.HELD
        ]
    # Of the copies that were written none has brought the job to its end: an executor may have died with it.
    missing = [copy for copy in copies if copy.state in (WriteState.FAILED, WriteState.UNKNOWN)]
    actions = [Action(copy=copy, kind="published", fresh_epoch=True) for copy in missing]
    if missing and not abandoned:
        return actions
    present = [copy for copy in copies if copy not in missing]
    again = next((copy for copy in present if copy.role is Role.PREFERRED), present[0])
    return [Action(copy=again, kind="redispatched", fresh_epoch=True), *actions]
