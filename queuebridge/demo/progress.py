"""Who is told how far a demo is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told how far a part of the demo is: a backend, or a step of the migration."""

    def start(self, part: str, jobs: int) -> None:
        """A part is about to get this many jobs."""

    def sent(self, part: str, count: int) -> None:
        """So many of its jobs were accepted so far."""

    def done(self, part: str, count: int) -> None:
        """So many of its jobs took effect so far."""

    def note(self, text: str) -> None:
        """Something happened that people may want to know."""
