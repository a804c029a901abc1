"""Stage settings in Redis."""

from __future__ import annotations

import json

from queuebridge.errors import RevisionConflict
from queuebridge.ledger import ProcessSeen, Revision, StageStore
from queuebridge.storage.redis.connection import Connection


class RedisStages(StageStore):
    """The stage settings of a ledger in Redis."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._run = connection.run

    def current(self) -> Revision | None:
        return next(iter(self.history(1)), None)

    def add(self, settings: str, *, after: int, author: str, reason: str, forced: bool = False) -> Revision:
        text = json.dumps({"settings": settings, "author": author, "reason": reason, "forced": forced})
        added, number, at_ms = self._run("add_revision", after, text)
        if not added:
            raise RevisionConflict(after, int(number))
        return Revision(
            number=int(number), settings=settings, author=author, reason=reason, forced=forced, at_ms=int(at_ms)
        )

    def history(self, limit: int) -> list[Revision]:
        if limit < 1:
            return []
        (items,) = self._connection.read_many([("LRANGE", self._connection.keys.of("REVISIONS"), -limit, -1)])
        return [_read(item) for item in reversed(items)]

    def report_process(self, process_id: str, kind: str, revision: int) -> Revision | None:
        item = self._run("report_process", process_id, f"{revision} {kind}", repeat=True)
        return None if item is None else _read(item)

    def forget_process(self, process_id: str) -> None:
        self._run("forget_process", process_id, repeat=True)

    def processes(self, *, within_ms: int) -> list[ProcessSeen]:
        seen = []
        for process_id, seen_at_ms, said in self._run("processes", within_ms, repeat=True):
            revision, kind = said.decode().split(" ", 1)
            seen.append(
                ProcessSeen(
                    process_id=process_id.decode(), kind=kind, revision=int(revision), seen_at_ms=int(seen_at_ms)
                )
            )
        return seen


def _read(item: bytes) -> Revision:
    number, at_ms, text = item.decode().split(" ", 2)
    return Revision(number=int(number), at_ms=int(at_ms), **json.loads(text))
