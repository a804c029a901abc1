"""Worker classes that a program might make of ours."""

from __future__ import annotations

import rq

from queuebridge.backends.rq import ClaimingMixin


class Spawning(ClaimingMixin, rq.SpawnWorker):
    """RQ's worker that spawns its work horses, with claims."""
