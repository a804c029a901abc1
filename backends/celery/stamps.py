"""Stamps that are revoked, as receivers hear of them: through the ledger.

Workers keep such stamps in their memory, and are told by a broadcast that no receiver gets.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from queuebridge.errors import InvalidOption

if TYPE_CHECKING:
    from queuebridge.ledger import Ledger

# As long as workers remember which ids are revoked.
_SECONDS = 3 * 3600


def note_revoked_stamps(ledger: Ledger, headers: Any) -> None:
    """Have receivers discard jobs with one of these stamps, for three hours at least and for six at most.

    Args:
        ledger: The ledger of the receivers.
        headers: As in `revoke_by_stamped_headers`: a value or several for each name, or texts such as `name=value`.

    Raises:
        InvalidOption: It is neither.
        LedgerUnavailable: The ledger cannot be reached.
    """
    # A ledger keeps a body for a time at least, and forgets it when somebody tidies up: the key itself has the time.
    for key in _keys(_pairs(headers), _period()):
        ledger.put_payload(key, b"revoked", keep_ms=2 * _SECONDS * 1000)


def is_revoked_by_stamps(ledger: Ledger, stamps: Mapping[str, Any]) -> bool:
    """Return whether one of the stamps of a job is revoked.

    Raises:
        LedgerUnavailable: The ledger cannot be reached.
    """
    now = _period()
    return any(
        ledger.get_payload(key) is not None for period in (now, now - 1) for key in _keys(stamps.items(), period)
    )


def _period() -> int:
    return int(time.time() // _SECONDS)


def _pairs(headers: Any) -> list[tuple[str, Any]]:
    if isinstance(headers, Mapping):
        return list(headers.items())
    texts = [headers] if isinstance(headers, str) else list(headers or ())
    pairs = [tuple(text.split("=", 1)) for text in texts]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise InvalidOption("headers", "stamps are revoked by a dictionary, or by texts such as tenant=acme.")
    return pairs


def _keys(stamps: Iterable[tuple[str, Any]], period: int) -> Iterator[str]:
    for name, value in stamps:
        for one in value if isinstance(value, list | tuple | set | frozenset) else [value]:
            # Not the stamp itself: nobody knows what it says.
            text = json.dumps([period, name, one], default=str)
            yield f"revoked-stamp-{hashlib.sha256(text.encode()).hexdigest()}"
