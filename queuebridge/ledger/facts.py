"""What the ledger keeps of a dispatch, read from its envelope."""

from __future__ import annotations

from typing import Any

from queuebridge.envelope import Envelope
from queuebridge.ledger.settings import LedgerSettings


def facts_of(
    envelope: Envelope, settings: LedgerSettings, *, body: bytes, payload: str, delivered: bool = False
) -> dict[str, Any]:
    """Return the fields of `DispatchFacts`, for any of the records that extend it.

    Args:
        envelope: The dispatch.
        settings: After how long it counts as lost.
        body, payload: What custody makes of it.
        delivered: Whether it has come to an executor, so that it need not wait for its time any more.
    """
    return {
        "dispatch_id": envelope.dispatch_id,
        "job_id": envelope.job_id,
        "task": envelope.task,
        "queue": envelope.queue,
        "stage": envelope.stage.value if envelope.stage is not None else None,
        "body": body,
        "payload": payload,
        "user_id": _text_or_none(envelope.metadata.get("user_id")),
        "organization_id": _text_or_none(envelope.metadata.get("organization_id")),
        "enqueued_at_ms": envelope.enqueued_at_ms,
        "not_before_ms": envelope.not_before_ms,
        "expires_at_ms": envelope.expires_at_ms,
        "max_attempts": envelope.retry.max_attempts,
        "deadline_in_ms": _deadline_in_ms(envelope, settings, delivered=delivered),
    }


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)[:200]


def _deadline_in_ms(envelope: Envelope, settings: LedgerSettings, *, delivered: bool) -> int:
    wait = 0
    if not delivered and envelope.not_before_ms is not None:
        wait = max(0, envelope.not_before_ms - envelope.enqueued_at_ms)
    return wait + round(settings.lost_after_seconds * 1000)
