"""RQ's `@job`, whose functions enqueue through our queue."""

from __future__ import annotations

from typing import Any

import rq
import rq.decorators

from queuebridge.backends.rq.queue import Queue


class job(rq.decorators.job):  # noqa: N801 - RQ's name
    """Add `enqueue` to a function; see RQ. A queue that is given by its name is one of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.queue_class is rq.Queue:
            self.queue_class = Queue
