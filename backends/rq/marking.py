"""RQ workers that claim say so in Redis, so that a stage with two copies can be refused while others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis
import rq

# A field of a worker's hash, which RQ ignores.
_FIELD = "queuebridge"
_CLAIMS = "claims"


class MarkingMixin:
    """For RQ worker classes: marks a worker that asks the ledger before it runs a job."""

    connection: Any
    key: str

    def claims(self) -> bool:
        """Return whether it does."""
        return True

    def register_birth(self) -> None:
        """Register as RQ does, with the mark."""
        super().register_birth()  # type: ignore[misc]
        if self.claims():
            self.connection.hset(self.key, _FIELD, _CLAIMS)


def unmarked_workers(connection: redis.Redis) -> Mapping[str, Sequence[str]]:
    """Return the queues of each living worker without the mark, by the worker's name."""
    keys = sorted(cast("set[bytes]", connection.smembers(rq.Worker.redis_workers_keys)))
    with connection.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hmget(key.decode(), "queues", "death", _FIELD)
        answers: list[list[bytes | None]] = pipe.execute()
    return {
        key.decode().removeprefix(rq.Worker.redis_worker_namespace_prefix): queues.decode().split(",")
        for key, (queues, death, mark) in zip(keys, answers, strict=True)
        # Without queues it has expired.
        if queues is not None and death is None and mark != _CLAIMS.encode()
    }
