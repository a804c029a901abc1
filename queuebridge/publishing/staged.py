"""Publish by the stage of a migration, with the ledger as the witness."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from queuebridge.backend import Backend, Publication
from queuebridge.errors import (
    AllWritesFailed,
    InvalidOption,
    LedgerRequired,
    LedgerUnavailable,
    PublishOutcomeUnknown,
    QueueBridgeError,
)
from queuebridge.ledger import Ledger, NewDispatch, Recorded, WriteMark
from queuebridge.ledger.custody import Custody
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.parking import HURRIED_EPOCH
from queuebridge.publishing.copies import CopyPlanner, PlannedCopy, Prepared
from queuebridge.publishing.draft import Draft
from queuebridge.publishing.recording import new_dispatch
from queuebridge.publishing.results import Job, is_incomplete, is_out, known_receipt, marks_of, planned, receipt_of
from queuebridge.publishing.writing import Results, Writer, one_line
from queuebridge.receipt import Receipt, Write
from queuebridge.stages import Role, Side, Stage, StagePlan

logger = logging.getLogger(__name__)

# After how long reconcile looks whether a recorded job was published: no publish takes longer.
CHECK_PUBLISHED_MS = 30_000
# When it looks again at a job that it is to publish itself.
SPOOLED_MS = 1_000
# How long arguments are kept for a job that was given up and may yet be replayed.
_KEEP_ASIDE_MS = 30 * 86_400_000


@runtime_checkable
class TransactionalLedger(Protocol):
    """A ledger that can record in a transaction of the caller's."""

    def record_on(self, transaction: Any, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        """Record dispatches through the caller's session or connection, without committing."""

    def on_commit(self, transaction: Any, act: Callable[[], bool]) -> bool:
        """Have `act` called after commits of the transaction until it returns true; false if that cannot be had."""


class StagedPublisher:
    """Writes the copies that the stage of each job wants.

    Args:
        backends: The backend of each side; one side only without a migration.
        ledger: Where jobs are recorded before they are published; None in stages that do without.
        settings: Hold-back, spool, and so on.
        custody: How jobs are stored; None without a ledger.
        clock: The time in Unix seconds.
        planner, writer: Replaced where time is simulated.
    """

    def __init__(
        self,
        backends: Mapping[Side, Backend],
        ledger: Ledger | None,
        settings: LedgerSettings,
        custody: Custody | None,
        *,
        clock: Callable[[], float] = time.time,
        planner: CopyPlanner | None = None,
        writer: Writer | None = None,
    ) -> None:
        self._backends = backends
        self._ledger = ledger
        self._settings = settings
        self._custody = custody
        self._planner = planner or CopyPlanner(backends, settings, has_ledger=ledger is not None, clock=clock)
        self.writer = writer or Writer(backends)
        self._single = StagePlan(
            copies=dict.fromkeys(list(backends)[:1], Role.PREFERRED), runs="", write_fails="", rollback=""
        )

    def prepare(self, draft: Draft) -> Prepared:
        """Check a job; see `Publisher.prepare`.

        Raises:
            LedgerRequired: Its stage writes two copies that may run, and there is no ledger.
        """
        plan = draft.stage.plan if draft.stage is not None else self._single
        if plan.needs_ledger and self._ledger is None:
            raise LedgerRequired(f"Stage {draft.stage.value if draft.stage else ''}")
        if draft.transaction is not None and not isinstance(self._ledger, TransactionalLedger):
            raise InvalidOption(
                "session/connection", "only a ledger in a SQL database can record a job in your own transaction."
            )
        prepared = self._planner.plan(draft, plan)
        if self._custody is not None and self._records(prepared):
            # Here, where nothing was sent yet: a job with secrets may have to be refused.
            prepared.body = self._custody.store(draft.envelope, prepared.stored.encode(), draft.parameter_names)
        return prepared

    def publish(self, prepared: Prepared) -> Receipt:
        """Publish one job; see `Publisher.publish`."""
        result = self.publish_many([prepared])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def publish_many(self, prepared: Sequence[Prepared]) -> list[Receipt | Exception]:
        """Publish several jobs; see `Publisher.publish_many`."""
        jobs = [Job(prepared=one) for one in prepared]
        answers: dict[int, Receipt | Exception] = {}
        self._record(jobs, answers)
        self._write(jobs, answers)
        done: list[Job] = []
        for index, job in enumerate(jobs):
            if index not in answers:
                answers[index] = self._conclude(job, done)
        self._mark_done(done)
        return [answers[index] for index in range(len(jobs))]

    def close(self) -> None:
        """End the threads."""
        self.writer.close()

    def wants_record(self, draft: Draft) -> bool:
        """Return whether a job is recorded before it is published, however long its arguments are."""
        if self._ledger is None:
            return False
        # Stage legacy is what the library alone does: one write, and nothing that anybody could have to repair.
        return (
            draft.stage is not Stage.LEGACY
            or draft.transaction is not None
            or draft.envelope.idempotency_key is not None
            or self._settings.on_publish_error == "spool"
        )

    def _records(self, prepared: Prepared) -> bool:
        # Arguments that are kept aside are in the ledger anyway.
        return prepared.aside is not None or self.wants_record(prepared.draft)

    def _record(self, jobs: Sequence[Job], answers: dict[int, Receipt | Exception]) -> None:
        ledger = self._ledger
        wanted = [index for index, job in enumerate(jobs) if self._records(job.prepared)]
        if ledger is None or not wanted:
            return
        together = []
        for index in wanted:
            job = jobs[index]
            try:
                self._keep_aside(ledger, job.prepared)
                if job.prepared.draft.transaction is not None:
                    answers[index] = self._record_in_transaction(ledger, job)
                else:
                    together.append(index)
            except QueueBridgeError as error:
                answers[index] = error
        if not together:
            return
        try:
            recorded = ledger.record([self._new_dispatch(jobs[index].prepared) for index in together])
        except LedgerUnavailable as error:
            logger.error(
                "The ledger cannot be reached (%s): %d jobs are published without being recorded first.",
                error,
                len(together),
                extra={"event": "ledger_down"},
            )
            for index in together:
                jobs[index].maybe_recorded = True
            return
        for index, record in zip(together, recorded, strict=True):
            jobs[index].recorded, jobs[index].new = True, record.new
            if _is_known(record):
                answers[index] = known_receipt(jobs[index].prepared, record)

    def _keep_aside(self, ledger: Ledger, prepared: Prepared) -> None:
        reference = prepared.stored.payload_ref
        if prepared.aside is None or reference is None or self._custody is None:
            return
        envelope = prepared.envelope
        wait = max(0, (envelope.not_before_ms or 0) - envelope.enqueued_at_ms)
        body = self._custody.store(envelope, prepared.aside, prepared.draft.parameter_names)
        ledger.put_payload(reference.key, body, keep_ms=wait + _KEEP_ASIDE_MS)

    def _record_in_transaction(self, ledger: Ledger, job: Job) -> Receipt:
        draft = job.prepared.draft
        if not isinstance(ledger, TransactionalLedger):
            raise InvalidOption("session/connection", "the ledger is not in a SQL database.")
        dispatch_id = draft.envelope.dispatch_id
        known = False

        def publish() -> bool:
            if known:
                return True
            try:
                if ledger.executions.get(dispatch_id) is None:
                    # A savepoint was released, or rolled back with the record in it.
                    return False
            except LedgerUnavailable as error:
                # An error here would look to the caller like one of the commit.
                logger.warning("Job %s is left to reconcile: %s", draft.envelope.job_id, error)
                return False
            later = Job(prepared=job.prepared, recorded=True, committed=True)
            done: list[Job] = []
            self._write([later], {})
            # If all writes fail the job stays with reconcile: the caller cannot be told any more.
            self._conclude(later, done)
            self._mark_done(done)
            return True

        told = ledger.on_commit(draft.transaction, publish)
        # Where nobody tells us of the commit, reconcile finds the job as soon as it can see it.
        check_in_ms = CHECK_PUBLISHED_MS if told else SPOOLED_MS
        (record,) = ledger.record_on(draft.transaction, [self._new_dispatch(job.prepared, check_in_ms=check_in_ms)])
        job.new = record.new
        known = _is_known(record)
        if known:
            return known_receipt(job.prepared, record)
        return receipt_of(job, recorded=True, pending_commit=True)

    def _write(self, jobs: Sequence[Job], answers: Mapping[int, object]) -> None:
        batches: dict[Side, list[Publication]] = {side: [] for side in self._backends}
        places: dict[Side, list[Job]] = {side: [] for side in self._backends}
        guarded = dict.fromkeys(self._backends, True)
        for index, job in enumerate(jobs):
            if index in answers:
                continue
            for side, copy in job.prepared.copies.items():
                if copy.problem is not None:
                    job.results[side] = copy.problem
                elif copy.held_until_ms is None:
                    batches[side].append(copy.publication)
                    places[side].append(job)
                    if copy.role is Role.PREFERRED and not job.prepared.has_alternative():
                        # Refused by a breaker, such a job would fail that might have been taken.
                        guarded[side] = False
        for side, results in self.writer.write(batches, guarded=guarded).items():
            for job, result in zip(places[side], results, strict=True):
                job.results[side] = result

    def _conclude(self, job: Job, done: list[Job]) -> Receipt | Exception:
        """Do what the stage says about failed writes, and return the answer to the caller."""
        prepared = job.prepared
        preferred = prepared.plan.preferred
        if not isinstance(job.results.get(preferred), Write):
            self._write_alternative(job, preferred)
        if not any(
            isinstance(result, Write) and prepared.copies[side].role is not Role.SHADOW
            for side, result in job.results.items()
        ):
            return self._refuse_or_spool(job)
        if job.recorded:
            done.append(job)
        return receipt_of(job, recorded=job.recorded)

    def _write_alternative(self, job: Job, preferred: Side) -> None:
        prepared = job.prepared
        failure = job.results.get(preferred)
        safety = next((copy for copy in prepared.copies.values() if copy.role is Role.SAFETY), None)
        if safety is not None and safety.held_until_ms is not None:
            # Held in the ledger: put it on the broker now, the job needs it.
            self._try(job, safety)
        elif safety is not None and isinstance(job.results.get(safety.side), Write):
            # Delayed at the backend already, where it cannot be hurried: one that is not delayed runs instead.
            self._hurry(job, safety)
        elif prepared.plan.fallback is not None:
            if isinstance(failure, PublishOutcomeUnknown) and self._ledger is None:
                # Two copies may exist then, and without claims both would run.
                return
            try:
                copy = self._planner.copy(prepared, prepared.plan.fallback, Role.PREFERRED)
            except QueueBridgeError as error:
                copy = self._planner.unwritable(prepared, prepared.plan.fallback, Role.PREFERRED, error)
            prepared.copies[copy.side] = copy
            self._try(job, copy)

    def _try(self, job: Job, copy: PlannedCopy) -> None:
        job.results[copy.side] = copy.problem or self.writer.write_side(copy.side, [copy.publication], True)[0]

    def _hurry(self, job: Job, safety: PlannedCopy) -> None:
        publication = safety.publication
        envelope = publication.envelope.model_copy(update={"epoch": HURRIED_EPOCH})
        sooner = Publication(
            envelope=envelope,
            retry=publication.retry,
            options=publication.options,
            counted_by_ledger=publication.counted_by_ledger,
        )
        result: Results = self.writer.write_side(safety.side, [sooner], True)
        if isinstance(result[0], Write):
            job.results[safety.side] = result[0]

    def _refuse_or_spool(self, job: Job) -> Receipt | Exception:
        failures = {
            self._backends[side].name: result
            for side, result in job.results.items()
            if isinstance(result, Exception) and job.prepared.copies[side].role is not Role.SHADOW
        }
        unknown = next((error for error in failures.values() if isinstance(error, PublishOutcomeUnknown)), None)
        if job.recorded and (job.committed or self._settings.on_publish_error == "spool"):
            self._mark(marks_of(job), SPOOLED_MS)
            logger.warning(
                "Job %s is kept in the ledger and published later: %s",
                job.prepared.envelope.job_id,
                "; ".join(one_line(error) for error in failures.values()),
                extra={"event": "spooled", "job_id": job.prepared.envelope.job_id},
            )
            return receipt_of(job, recorded=True, spooled=True)
        if unknown is not None:
            # It may run: it stays in the ledger as it is known, and nobody publishes it again.
            if job.recorded:
                self._mark(marks_of(job), None)
            return unknown
        # What an earlier enqueue under the same key has recorded is not ours to withdraw; what was, reconcile would
        # publish.
        kept = job.recorded and not job.new
        may_be_there = job.recorded or job.maybe_recorded
        if kept or (may_be_there and not self._withdraw(job.prepared.envelope.dispatch_id)):
            return PublishOutcomeUnknown(
                ", ".join(failures),
                "the writes failed, but the ledger keeps the job, so that it may be published later.",
                job.prepared.envelope.job_id,
            )
        if len(failures) == 1:
            return next(iter(failures.values()))
        return AllWritesFailed(failures)

    def _withdraw(self, dispatch_id: str) -> bool:
        if self._ledger is None:
            return True
        try:
            return self._ledger.withdraw(dispatch_id)
        except LedgerUnavailable:
            return False

    def _mark_done(self, jobs: Sequence[Job]) -> None:
        """Note what became of the writes of accepted jobs.

        Where one of two copies was not written, reconcile makes up for it when a safety copy would have been due: the
        one that was written may be all that there is, and its executor may die with it.
        """
        checks: dict[int | None, list[WriteMark]] = {}
        for job in jobs:
            check_in_ms = self._planner.hold_ms(job.prepared.envelope) if is_incomplete(job) else None
            checks.setdefault(check_in_ms, []).extend(marks_of(job))
        for check_in_ms, marks in checks.items():
            self._mark(marks, check_in_ms)

    def _mark(self, marks: Sequence[WriteMark], check_in_ms: int | None) -> None:
        if not marks or self._ledger is None:
            return
        try:
            self._ledger.mark(marks, check_in_ms=check_in_ms)
        except LedgerUnavailable as error:
            # Reconcile will find them unpublished, and publish them again under the same epoch: no harm is done.
            logger.warning("What became of %d writes could not be recorded: %s", len(marks), error)

    def _new_dispatch(self, prepared: Prepared, *, check_in_ms: int = CHECK_PUBLISHED_MS) -> NewDispatch:
        envelope = prepared.envelope
        if self._custody is None or prepared.body is None:
            raise LedgerRequired("Recording a job")
        return new_dispatch(
            envelope,
            [planned(copy) for copy in prepared.copies.values()],
            body=prepared.body,
            payload=self._custody.payload(envelope, prepared.draft.parameter_names),
            settings=self._settings,
            check_in_ms=check_in_ms,
        )


def _is_known(record: Recorded) -> bool:
    """Return whether an earlier enqueue under the same key has brought the job already."""
    return not record.new and (record.state.settled or any(is_out(copy) for copy in record.copies))
