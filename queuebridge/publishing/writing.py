"""Write copies to their backends: both sides at once, each behind a breaker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context

from queuebridge.backend import Backend, Publication
from queuebridge.breaker import Breaker
from queuebridge.errors import BackendUnavailable, PublishError, PublishOutcomeUnknown
from queuebridge.failures import redact
from queuebridge.outcome import describe
from queuebridge.receipt import Write
from queuebridge.stages import Side

Results = list[Write | Exception]
_WRITERS = 8


class Writer:
    """Writes to the backends of both sides.

    Args:
        backends: The backend of each side.
        make_breaker: Makes the breaker of a backend, from its name.
    """

    def __init__(self, backends: Mapping[Side, Backend], *, make_breaker: Callable[[str], Breaker] = Breaker) -> None:
        self._backends = backends
        self.breakers = {side: make_breaker(backend.name) for side, backend in backends.items()}
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def write(
        self, batches: Mapping[Side, Sequence[Publication]], *, guarded: Mapping[Side, bool]
    ) -> dict[Side, Results]:
        """Write a batch to each side, concurrently, and return the results in the order of each batch.

        Args:
            batches: What to write on each side.
            guarded: For which sides the breaker may refuse; the others are always tried.
        """
        sides = [side for side, batch in batches.items() if batch]
        if not sides:
            return {}
        # The last one here, the others in threads: the caller waits for the slowest, not for the sum.
        futures: dict[Side, Future[Results]] = {}
        for side in sides[:-1]:
            # Refused when the threads were ended meanwhile, or the interpreter is ending: then one after the other.
            with suppress(RuntimeError):
                futures[side] = self._executor().submit(
                    copy_context().run, self.write_side, side, batches[side], guarded[side]
                )
        results = {side: self.write_side(side, batches[side], guarded[side]) for side in sides if side not in futures}
        return {**{side: future.result() for side, future in futures.items()}, **results}

    def write_side(self, side: Side, batch: Sequence[Publication], guarded: bool) -> Results:
        """Write a batch to one side."""
        backend, breaker = self._backends[side], self.breakers[side]
        if guarded:
            try:
                breaker.enter()
            except BackendUnavailable as error:
                return [error] * len(batch)
        results: Results
        try:
            results = [backend.publish(batch[0])] if len(batch) == 1 else backend.publish_many(batch)
        except Exception as error:  # noqa: BLE001 - reported to the caller, with its job; the other side goes on
            results = [error] * len(batch)
        failure = next((r for r in results if isinstance(r, BackendUnavailable | PublishOutcomeUnknown)), None)
        if failure is None:
            breaker.succeeded()
        else:
            breaker.failed(failure.reason)
        return results

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self._owner == os.getpid():
            self._pool.shutdown(wait=True)
        self._pool = None

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._owner != os.getpid():
            # A forked process has none of its parent's threads.
            self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="queuebridge-write")
            self._owner = os.getpid()
        return self._pool


def one_line(error: Exception) -> str:
    """Return what went wrong with a write, without secrets."""
    return redact(str(error) if isinstance(error, PublishError) else describe(error))
