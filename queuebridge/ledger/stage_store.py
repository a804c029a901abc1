"""Stage settings that live in the ledger: numbered revisions, and which processes have seen which."""

from __future__ import annotations

import abc
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """One change of the stage settings.

    Attributes:
        number: Counted from 1.
        settings: The settings as JSON text.
        author, reason: Who changed them and why.
        forced: Whether the change was made against the evidence.
        at_ms: When, in Unix milliseconds on the store's clock.
    """

    number: int
    settings: str
    author: str
    reason: str
    forced: bool
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSeen:
    """A process that reads the stage settings.

    Attributes:
        process_id: Host, process id and a random part.
        kind: What it does: `producer`, `receiver`, `worker`, `reconcile`.
        revision: The number of the revision that it goes by, 0 for none.
        seen_at_ms: When it last said so, on the store's clock.
    """

    process_id: str
    kind: str
    revision: int
    seen_at_ms: int


class StageStore(abc.ABC):
    """Where stage settings are kept. Each method is atomic, and raises LedgerUnavailable without the store."""

    @abc.abstractmethod
    def current(self) -> Revision | None:
        """Return the latest revision, None if there was never one."""

    @abc.abstractmethod
    def add(self, settings: str, *, after: int, author: str, reason: str, forced: bool = False) -> Revision:
        """Add a revision.

        Args:
            settings: The new settings as JSON text.
            after: The number of the revision that they were made from, 0 for none.
            author, reason, forced: As in `Revision`.

        Raises:
            RevisionConflict: Somebody else has added one meanwhile; nothing was changed.
        """

    @abc.abstractmethod
    def history(self, limit: int) -> list[Revision]:
        """Return the latest revisions, the newest first."""

    @abc.abstractmethod
    def report_process(self, process_id: str, kind: str, revision: int) -> Revision | None:
        """Say which revision a process goes by, and return the latest, in one round trip."""

    @abc.abstractmethod
    def forget_process(self, process_id: str) -> None:
        """Say that a process has ended."""

    @abc.abstractmethod
    def processes(self, *, within_ms: int) -> list[ProcessSeen]:
        """Return the processes that reported within this time, the latest first; older ones are forgotten."""
