"""Where accepted messages survive a restart: the port, and the store that keeps nothing.

The engine works on its own memory. A store is a journal of it: changes are staged in order, and one
`commit` makes all of them durable together.
"""

from __future__ import annotations

from typing import Protocol

from queuebridge.backends.qstash.devserver.messages import (
    DeadLetter,
    Deduplication,
    Document,
    Message,
    Recovered,
)


class Store(Protocol):
    """The port between engine and disk. All methods are called on the event loop's thread.

    The staging methods never block and never fail. Changes staged without a pause between them (no
    await) become durable in one transaction or not at all. A later change of the same thing
    replaces an earlier one. Changes nobody waits for become durable soon (tens of milliseconds).
    """

    async def load(self) -> Recovered:
        """Open the store and return what it held, in order of acceptance. Called once, first.

        Raises:
            ConfigurationError: the store cannot be opened, or another process has it open.
        """
        ...

    def add_message(self, message: Message) -> None:
        """Stage a new message with its body."""
        ...

    def update_message(self, message: Message) -> None:
        """Stage what changes in a message's life: retries so far, time due, cancellation."""
        ...

    def remove_message(self, message: Message) -> None:
        """Stage the removal of a message, finished or never accepted."""
        ...

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Stage a new entry of the dead letter queue."""
        ...

    def remove_dead_letter(self, letter: DeadLetter) -> None:
        """Stage the removal of an entry of the dead letter queue."""
        ...

    def add_deduplication(self, record: Deduplication) -> None:
        """Stage the memory of a publish; replaces one of the same account and key."""
        ...

    def remove_deduplication(self, record: Deduplication) -> None:
        """Stage forgetting a publish."""
        ...

    def put_document(self, document: Document) -> None:
        """Stage a document; replaces the one of the same account, kind and key."""
        ...

    def remove_document(self, account: str, kind: str, key: str) -> None:
        """Stage the removal of a document, which may be absent."""
        ...

    async def commit(self) -> None:
        """Return when everything staged before this call is durable.

        Raises:
            StoreError: it could not be written. It stays staged and is tried again with the next
                commit, so a caller that gives up must stage the undoing.
        """
        ...

    async def close(self) -> None:
        """Make what is staged durable and release the store. Idempotent."""
        ...


class StoreError(Exception):
    """Raised when staged changes could not be made durable (disk full, file gone)."""


class MemoryStore:
    """A store that keeps nothing: a restart starts empty, like the official development server."""

    async def load(self) -> Recovered:
        """Return nothing."""
        return Recovered()

    def add_message(self, message: Message) -> None:
        """Do nothing."""

    def update_message(self, message: Message) -> None:
        """Do nothing."""

    def remove_message(self, message: Message) -> None:
        """Do nothing."""

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Do nothing."""

    def remove_dead_letter(self, letter: DeadLetter) -> None:
        """Do nothing."""

    def add_deduplication(self, record: Deduplication) -> None:
        """Do nothing."""

    def remove_deduplication(self, record: Deduplication) -> None:
        """Do nothing."""

    def put_document(self, document: Document) -> None:
        """Do nothing."""

    def remove_document(self, account: str, kind: str, key: str) -> None:
        """Do nothing."""

    async def commit(self) -> None:
        """Return at once."""

    async def close(self) -> None:
        """Do nothing."""
