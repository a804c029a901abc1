"""From a job and its stage to the copies that are to be written."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from queuebridge.backend import Backend, Publication, check_capabilities
from queuebridge.envelope import Envelope, PayloadReference
from queuebridge.errors import PayloadTooLarge, QueueBridgeError
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.parking import SHADOW_EPOCH
from queuebridge.publishing.draft import Draft
from queuebridge.stages import Role, Side, StagePlan

# A safety copy waits this much longer at most, as a share of the hedge, so that the copies of an outage spread.
_JITTER = 0.2
_SAMPLE_STEPS = 1_000_000


@dataclass(kw_only=True, slots=True)
class PlannedCopy:
    """One copy that a stage wants written.

    Attributes:
        side, role: Where it goes and what it is for.
        backend: What writes it.
        publication: What to write.
        held_until_ms: The ledger holds it back until then, on the producer's clock; None writes it at once.
        problem: Why it cannot be written at all; only for copies that the job does not need.
    """

    side: Side
    role: Role
    backend: Backend
    publication: Publication
    held_until_ms: int | None = None
    problem: Exception | None = None


@dataclass(kw_only=True, slots=True)
class Prepared:
    """A checked job with its copies.

    Attributes:
        draft: The job.
        plan: What its stage does.
        copies: The copies to write, by side.
        stored: The envelope that the ledger keeps.
        body: The same encoded, and sealed if it must not be stored in clear; None if the job is not recorded.
        aside: Arguments that are too long for a transport, to be kept by the ledger; None if there are none.
    """

    draft: Draft
    plan: StagePlan
    copies: dict[Side, PlannedCopy] = field(default_factory=dict)
    stored: Envelope
    body: bytes | None = None
    aside: bytes | None = None

    @property
    def envelope(self) -> Envelope:
        """Return the dispatch."""
        return self.draft.envelope

    def has_alternative(self) -> bool:
        """Return whether the job can run although its preferred write failed."""
        return self.plan.needs_ledger or self.plan.fallback is not None


class CopyPlanner:
    """Decides what to write for a job.

    Args:
        backends: The backend of each side.
        settings: How long safety copies are held, and which share is shadowed.
        has_ledger: Whether there is a ledger, which keeps long arguments and knows idempotency keys.
        clock: The time in Unix seconds.
        spread: A random number from 0 to 1.
    """

    def __init__(
        self,
        backends: Mapping[Side, Backend],
        settings: LedgerSettings,
        *,
        has_ledger: bool,
        clock: Callable[[], float],
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._backends = backends
        self._settings = settings
        self._has_ledger = has_ledger
        self._clock = clock
        self._spread = spread

    def plan(self, draft: Draft, plan: StagePlan) -> Prepared:
        """Return the copies of a job, checked as far as that goes without I/O.

        Raises:
            OptionNotSupported, InvalidOption, PayloadTooLarge: A side that may have to run the job cannot honour it.
        """
        prepared = Prepared(draft=draft, plan=plan, stored=draft.envelope)
        for side, role in plan.copies.items():
            if role is Role.SHADOW and not self._is_sampled(draft.envelope.job_id):
                continue
            try:
                prepared.copies[side] = self.copy(prepared, side, role)
            except QueueBridgeError as error:
                if role is not Role.SHADOW:
                    raise
                # The caller must not notice that a copy which never runs cannot be made.
                prepared.copies[side] = self.unwritable(prepared, side, role, error)
        return prepared

    def copy(self, prepared: Prepared, side: Side, role: Role) -> PlannedCopy:
        """Return one copy of a job.

        Raises:
            QueueBridgeError: The side cannot honour it.
        """
        draft = prepared.draft
        backend = self._backends[side]
        role_on_wire = role if prepared.plan.needs_ledger or role is Role.SHADOW else None
        epoch = SHADOW_EPOCH if role is Role.SHADOW else draft.envelope.epoch
        envelope = draft.envelope.model_copy(update={"role": role_on_wire, "epoch": epoch})
        held_until = self._held_until_ms(envelope) if role is Role.SAFETY else None
        in_ledger = side is Side.LEGACY and held_until is not None
        publication = self._publication(draft, side, envelope, held_until_ms=None if in_ledger else held_until)
        self._check(backend, publication)
        try:
            backend.check(publication)
        except PayloadTooLarge:
            if not self._has_ledger:
                raise
            publication = self._by_reference(prepared, side, envelope, publication)
            backend.check(publication)
        return PlannedCopy(
            side=side,
            role=role,
            backend=backend,
            publication=publication,
            held_until_ms=held_until if in_ledger else None,
        )

    def unwritable(self, prepared: Prepared, side: Side, role: Role, problem: Exception) -> PlannedCopy:
        """Return a copy that is never written, so that ledger and receipt can say why."""
        return PlannedCopy(
            side=side,
            role=role,
            backend=self._backends[side],
            publication=self._publication(prepared.draft, side, prepared.envelope),
            problem=problem,
        )

    def _publication(
        self, draft: Draft, side: Side, envelope: Envelope, *, held_until_ms: int | None = None
    ) -> Publication:
        return Publication(
            envelope=envelope,
            retry=draft.retry,
            options=draft.options.get(self._backends[side].name, {}),
            held_until_ms=held_until_ms,
            counted_by_ledger=self._has_ledger,
        )

    def _check(self, backend: Backend, publication: Publication) -> None:
        # The ledger knows which dispatches there are, whatever the backend knows.
        known = replace(backend.capabilities, deduplication=True) if self._has_ledger else None
        check_capabilities(backend, publication, known)

    def _by_reference(
        self, prepared: Prepared, side: Side, envelope: Envelope, publication: Publication
    ) -> Publication:
        body = prepared.draft.envelope.encode()
        sha256 = hashlib.sha256(body).hexdigest()
        # Not the dispatch: another enqueue under its idempotency key has another body, and must not replace this one.
        reference = PayloadReference(key=sha256, sha256=sha256, size=len(body))
        shorter = {"args": [], "kwargs": {}, "message": {}, "payload_ref": reference}
        prepared.aside = body
        prepared.stored = prepared.draft.envelope.model_copy(update=shorter)
        return self._publication(
            prepared.draft, side, envelope.model_copy(update=shorter), held_until_ms=publication.held_until_ms
        )

    def hold_ms(self, envelope: Envelope) -> int:
        """Return for how long a safety copy of a job would be held back, from now."""
        return max(0, self._held_until_ms(envelope) - int(self._clock() * 1000))

    def _held_until_ms(self, envelope: Envelope) -> int:
        now_ms = int(self._clock() * 1000)
        start = max(now_ms, envelope.not_before_ms or 0)
        hold = self._settings.hedge_seconds * 1000 * (1 + _JITTER * self._spread())
        if envelope.expires_at_ms is not None:
            hold = min(hold, (envelope.expires_at_ms - start) / 2)
        return start + int(hold)

    def _is_sampled(self, job_id: str) -> bool:
        share = int.from_bytes(hashlib.sha256(f"shadow:{job_id}".encode()).digest()[:8], "big") % _SAMPLE_STEPS
        return share < self._settings.shadow_percent / 100 * _SAMPLE_STEPS
