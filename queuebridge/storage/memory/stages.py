"""Stage settings in memory."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from queuebridge.errors import RevisionConflict
from queuebridge.ledger import ProcessSeen, Revision, StageStore


class MemoryStages(StageStore):
    """The stage settings of a memory ledger.

    Args:
        now_ms: Returns the store's time.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._lock = Lock()
        self._revisions: list[Revision] = []
        self._processes: dict[str, ProcessSeen] = {}

    def current(self) -> Revision | None:
        with self._lock:
            return self._latest()

    def add(self, settings: str, *, after: int, author: str, reason: str, forced: bool = False) -> Revision:
        with self._lock:
            latest = len(self._revisions)
            if after != latest:
                raise RevisionConflict(after, latest)
            revision = Revision(
                number=latest + 1,
                settings=settings,
                author=author,
                reason=reason,
                forced=forced,
                at_ms=self._now_ms(),
            )
            self._revisions.append(revision)
            return revision

    def history(self, limit: int) -> list[Revision]:
        with self._lock:
            return self._revisions[::-1][:limit]

    def report_process(self, process_id: str, kind: str, revision: int) -> Revision | None:
        with self._lock:
            self._processes[process_id] = ProcessSeen(
                process_id=process_id, kind=kind, revision=revision, seen_at_ms=self._now_ms()
            )
            return self._latest()

    def forget_process(self, process_id: str) -> None:
        with self._lock:
            self._processes.pop(process_id, None)

    def processes(self, *, within_ms: int) -> list[ProcessSeen]:
        with self._lock:
            since_ms = self._now_ms() - within_ms
            self._processes = {name: seen for name, seen in self._processes.items() if seen.seen_at_ms >= since_ms}
            return sorted(self._processes.values(), key=lambda seen: seen.seen_at_ms, reverse=True)

    def _latest(self) -> Revision | None:
        return self._revisions[-1] if self._revisions else None
