"""Queries over the ledger in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from queuebridge.ledger import DeliveryRecord, Execution, ExecutionFilter, ExecutionLog, State
from queuebridge.storage.redis.connection import Argument, Connection
from queuebridge.storage.redis.fields import EXECUTION_FIELDS, named_in_json, read_deliveries, read_execution

# How many are looked at in one go when most of them may not be wanted.
_SIEVED_AT_ONCE = 1000
_SIEVE_FIELDS = ("task", "state", "stage")
# A script keeps everybody else waiting.
_READ_AT_ONCE = 200


class RedisExecutions(ExecutionLog):
    """What a ledger in Redis knows of executions.

    There are indexes by time, by task and time, and by time of what is not done. Else states and stages are compared
    one by one, so that a query for a rare stage over a long time looks at everything in between.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    def get(self, dispatch_id: str) -> Execution | None:
        return next(iter(self._read([dispatch_id.encode()])), None)

    def of_job(self, job_id: str) -> list[Execution]:
        (dispatch_ids,) = self._connection.read_many([("ZRANGE", self._keys.of("JOB", job_id), 0, -1)])
        return self._read(dispatch_ids)

    def recent(self, wanted: ExecutionFilter, *, limit: int) -> list[Execution]:
        page = _SIEVED_AT_ONCE if wanted.states or wanted.stage is not None else max(limit, 1)
        return list(islice(self._walk(wanted, page=page, newest_first=True), limit))

    def deliveries(self, dispatch_ids: Sequence[str]) -> dict[str, list[DeliveryRecord]]:
        answers = self._connection.read_many(
            [("LRANGE", self._keys.of("DELIVERIES", dispatch_id), 0, -1) for dispatch_id in dispatch_ids]
        )
        return {
            dispatch_id: list(read_deliveries(items)) for dispatch_id, items in zip(dispatch_ids, answers, strict=True)
        }

    def scan(self, wanted: ExecutionFilter, *, page: int = 1000) -> Iterator[Execution]:
        return self._walk(wanted, page=page, newest_first=False)

    def _walk(self, wanted: ExecutionFilter, *, page: int, newest_first: bool) -> Iterator[Execution]:
        window = _Window.of(wanted)
        key = self._index(wanted)
        command = "ZREVRANGEBYSCORE" if newest_first else "ZRANGEBYSCORE"
        skip = 0  # how many with the time at which the page begins have been read
        while True:
            ends = (window.latest, window.earliest) if newest_first else (window.earliest, window.latest)
            (found,) = self._connection.read_many([(command, key, *ends, "WITHSCORES", "LIMIT", skip, page)])
            dispatch_ids, times = found[::2], found[1::2]
            for execution in self._read(self._sieve(dispatch_ids, wanted)):
                # Its state may have changed since it was sieved.
                if not wanted.states or execution.state in wanted.states:
                    yield execution
            if len(dispatch_ids) < page:
                return
            last = times[-1]
            skip = times.count(last) + (skip if last == ends[0] else 0)
            window = window._replace(latest=last) if newest_first else window._replace(earliest=last)

    def _index(self, wanted: ExecutionFilter) -> str:
        if wanted.states and State.DONE not in wanted.states:
            return self._keys.of("NOT_DONE")
        return self._keys.of("ACCEPTED") if wanted.task is None else self._keys.of("ACCEPTED_BY_TASK", wanted.task)

    def _sieve(self, dispatch_ids: Sequence[bytes], wanted: ExecutionFilter) -> list[bytes]:
        if not wanted.states and wanted.stage is None:
            return list(dispatch_ids)
        states = [state.value for state in wanted.states]
        return [
            dispatch_id
            for dispatch_id, known in self._fields(dispatch_ids, _SIEVE_FIELDS)
            if wanted.task in (None, known.get("task"))
            and wanted.stage in (None, known.get("stage"))
            and (not states or known.get("state") in states)
        ]

    def _read(self, dispatch_ids: Sequence[bytes]) -> list[Execution]:
        found = (
            read_execution(dispatch_id.decode(), values)
            for dispatch_id, values in self._fields(dispatch_ids, EXECUTION_FIELDS)
        )
        # Some may have been purged since their ids were read.
        return [execution for execution in found if execution is not None]

    def _fields(self, dispatch_ids: Sequence[bytes], names: Sequence[str]) -> Iterator[tuple[bytes, dict[str, str]]]:
        for start in range(0, len(dispatch_ids), _READ_AT_ONCE):
            some = dispatch_ids[start : start + _READ_AT_ONCE]
            answers = self._connection.run("read", len(names), *names, *some, repeat=True)
            yield from (
                (dispatch_id, named_in_json(names, answer)) for dispatch_id, answer in zip(some, answers, strict=True)
            )


class _Window(NamedTuple):
    """From when to when, as Redis takes it: microseconds, `(` excludes."""

    earliest: Argument
    latest: Argument

    @classmethod
    def of(cls, wanted: ExecutionFilter) -> _Window:
        return cls(
            "-inf" if wanted.since_ms is None else wanted.since_ms * 1000,
            "+inf" if wanted.until_ms is None else f"({wanted.until_ms * 1000}",
        )
