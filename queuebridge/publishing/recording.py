"""Put jobs into the ledger: before they are published, or when their transport gives them up."""

from __future__ import annotations

from collections.abc import Sequence

from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidOption
from queuebridge.ledger import Copy, Ledger, NewDispatch, WriteMark, WriteState
from queuebridge.ledger.custody import Custody
from queuebridge.ledger.facts import facts_of
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.stages import Role, side_of


def new_dispatch(
    envelope: Envelope,
    copies: Sequence[Copy],
    *,
    body: bytes,
    payload: str,
    settings: LedgerSettings,
    check_in_ms: int,
) -> NewDispatch:
    """Return a job as the ledger records it.

    Args:
        envelope: The job.
        copies: Its copies.
        body, payload: What custody makes of it.
        settings: After how long it counts as lost.
        check_in_ms: When reconcile is to look at it, from now.
    """
    facts = facts_of(envelope, settings, body=body, payload=payload)
    return NewDispatch(**facts, copies=tuple(copies), check_in_ms=check_in_ms)


def take_back(
    envelope: Envelope,
    backend: str,
    *,
    ledger: Ledger,
    custody: Custody,
    settings: LedgerSettings,
    names: Sequence[str] = (),
) -> None:
    """Have reconcile publish a job anew whose transport gave it up.

    The ledger may not know it: if it was away when the job was enqueued, and whenever it was delivered.

    Raises:
        LedgerUnavailable: The ledger cannot be reached.
    """
    try:
        body = custody.store(envelope, envelope.encode(), names)
    except InvalidOption:
        # A secret that must not be stored; then only a job that the ledger has already can be published again.
        body = b""
    copy = Copy(side=side_of(backend), backend=backend, role=envelope.role or Role.PREFERRED, state=WriteState.WRITTEN)
    payload = custody.payload(envelope, names)
    ledger.record([new_dispatch(envelope, [copy], body=body, payload=payload, settings=settings, check_in_ms=0)])
    # It did have it: resent under an epoch that it knows, it would be dropped as a resend.
    written = WriteMark(
        dispatch_id=envelope.dispatch_id, side=copy.side, backend=backend, role=copy.role, state=copy.state
    )
    ledger.mark([written], check_in_ms=0)
    # One that runs or waits keeps its check when it is marked.
    ledger.check_in(envelope.dispatch_id, 0)
