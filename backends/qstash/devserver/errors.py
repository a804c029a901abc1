"""The error of a refused request, and the known texts of the hosted service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from queuebridge.backends.qstash.protocol import PlanLimits

UNAUTHENTICATED: Final = "unable to authenticate: invalid token"
READ_ONLY: Final = "the token is read-only: it may read, but not publish, create, change or delete"
INVALID_SCHEME: Final = "invalid destination url: endpoint has invalid scheme, add http:// or https://"
COLON_IN_DEDUPLICATION_ID: Final = "DeduplicationId cannot contain ':'"


class Refusal(Exception):
    """Raised to answer a request with an HTTP status, `{"error": text}` and maybe some headers."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.text = text
        self.headers = headers
        super().__init__(f"{status}: {text}")


def bad_request(text: str) -> Refusal:
    """Return the refusal of malformed input (400)."""
    return Refusal(400, text)


def not_found(text: str) -> Refusal:
    """Return the refusal of a request for something unknown (404)."""
    return Refusal(404, text)


def over_quota(quota: str, limit: int | None = None) -> Refusal:
    """Return the refusal of a request beyond a plan's quota (412), in the hosted wording."""
    suffix = "" if limit is None else f", current limit: {limit}"
    return Refusal(412, f"quota {quota} exceeded{suffix}")


def check_queue_count(plan: PlanLimits, count: int) -> None:
    """Refuse one more queue when a user has as many as the plan allows.

    Raises:
        Refusal: 412.
    """
    if count >= plan.max_queues:
        raise over_quota("maxQueues", plan.max_queues)


def unsupported(what: str, status: int = 404) -> Refusal:
    """Return the refusal of a part of the protocol that this server does not have."""
    return Refusal(status, f"{what}: not supported by this development server yet")
