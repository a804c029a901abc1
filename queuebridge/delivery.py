"""Deliveries: what an executor knows about the arrival of an envelope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One arrival of an envelope through one backend.

    Attributes:
        backend: The name of the backend.
        message_id: The backend's id of the message; the same for every delivery of it.
        attempt: Which execution of the job this would be, counted from 1.
        enforces_timeout: The transport stops a body that runs past its timeout; the runner need not.
    """

    backend: str
    message_id: str
    attempt: int
    enforces_timeout: bool = False


class DeliveryVerifier(Protocol):
    """Decides whether a pushed request can be trusted, before anything in it is parsed."""

    def verify(self, headers: Mapping[str, str], body: bytes, path: str) -> Delivery:
        """Return the facts of an authentic delivery.

        Args:
            headers: The request's headers, names in any case.
            body: The raw bytes of the body.
            path: The path and query string that the request was made to, percent-encoded as received.

        Raises:
            NotAuthentic: Signature, sender, time, address or body are wrong, or no keys are configured.
        """

    def problems(self) -> list[str]:
        """Return, in words for an operator, what is missing in the configuration; empty if nothing is."""
