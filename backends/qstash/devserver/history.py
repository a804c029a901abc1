"""The log of one account: the newest entries within bounds of count and bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from queuebridge.backends.qstash.devserver.messages import LogEntry, LogState, Message, Outcome

MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 64 * 1024 * 1024
# Of the answer to a delivery; that of a failed attempt is kept whole, as the API shows it.
MAX_ANSWER_BYTES: Final = 64 * 1024
_ENTRY_BYTES: Final = 200


class History:
    """Log entries in order of arrival, held in memory; the oldest are dropped first."""

    __slots__ = ("_bytes", "_entries", "_max_bytes", "_max_entries", "_next")

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._entries: deque[LogEntry] = deque()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._next = 0

    def add(
        self,
        time_ms: int,
        state: LogState,
        message: Message,
        *,
        outcome: Outcome | None = None,
        next_delivery_ms: int | None = None,
    ) -> None:
        """Append an entry."""
        if outcome is not None and state is LogState.DELIVERED and len(outcome.body) > MAX_ANSWER_BYTES:
            outcome = replace(outcome, body=outcome.body[:MAX_ANSWER_BYTES])
        entry = LogEntry(
            seq=self._next,
            time_ms=time_ms,
            state=state,
            message=message,
            outcome=outcome,
            next_delivery_ms=next_delivery_ms,
        )
        self._next += 1
        self._entries.append(entry)
        self._bytes += _size(entry)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._bytes -= _size(self._entries.popleft())

    def forget_before(self, moment_ms: int, limit: int) -> int:
        """Drop at most `limit` of the oldest entries that were added at or before a time; return how many."""
        dropped = 0
        while dropped < limit and self._entries and self._entries[0].time_ms <= moment_ms:
            self._bytes -= _size(self._entries.popleft())
            dropped += 1
        return dropped

    def forget_message(self, message: Message) -> None:
        """Drop the entries of a message that was not accepted after all; they are among the newest."""
        others: list[LogEntry] = []
        while self._entries and self._entries[-1].time_ms >= message.created_ms:
            entry = self._entries.pop()
            if entry.message is message:
                self._bytes -= _size(entry)
            else:
                others.append(entry)
        self._entries.extend(reversed(others))

    def newest_first(self) -> Iterator[LogEntry]:
        """Return the entries, newest first; do not add while iterating."""
        return reversed(self._entries)

    def oldest_first(self) -> Iterator[LogEntry]:
        """Return the entries, oldest first; do not add while iterating."""
        return iter(self._entries)


def _size(entry: LogEntry) -> int:
    # A message's body is counted once, with its first entry; the others share it.
    body = len(entry.message.body) if entry.state is LogState.CREATED else 0
    if entry.outcome is None:
        return _ENTRY_BYTES + body
    headers = sum(len(name) + len(value) for name, value in entry.outcome.headers)
    return _ENTRY_BYTES + body + headers + len(entry.outcome.body)
