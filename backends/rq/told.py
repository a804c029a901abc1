"""Which dispatches RQ's Redis was told of: it tells a job that was deleted from one whose record Redis has lost.

A job's record and the note of its dispatch are written in one transaction, so that what loses the one loses the other:
a flush, a restart without persistence, a failover to a replica that was behind. Whoever deletes a job, by whatever
class or tool, or lets its ttl pass, leaves the note. It is needed as long as the dispatch may be delivered.
"""

from __future__ import annotations

import time
from typing import Any

_KEY = "rq:queuebridge:told"
# Longer than any transport goes on delivering.
_KEEP_SECONDS = 30 * 86_400


def note_told(pipeline: Any, dispatch_id: str, not_before_ms: int | None) -> None:
    """Note a dispatch whose job's record is written in the same transaction."""
    now = time.time()
    pipeline.zremrangebyscore(_KEY, "-inf", now)
    pipeline.zadd(_KEY, {dispatch_id: max(now, (not_before_ms or 0) / 1000) + _KEEP_SECONDS})


def was_told(connection: Any, dispatch_id: str) -> bool:
    """Return whether Redis was told of a dispatch, and has not lost that."""
    return connection.zscore(_KEY, dispatch_id) is not None


def forget_told(connection: Any, dispatch_id: str) -> None:
    """Forget a dispatch that has ended."""
    connection.zrem(_KEY, dispatch_id)
