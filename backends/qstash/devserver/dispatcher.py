"""The driver: asks the engine what is due, sends it, reports back. One timer, no sleeping tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import Message, Outcome
from queuebridge.backends.qstash.devserver.store import StoreError

logger = logging.getLogger(__name__)

Attempt = Callable[[Message, str], Awaitable[Outcome]]

# A timer never sleeps longer than this, so that it follows a wall clock that is set meanwhile.
_LONGEST_SLEEP: Final = 30.0
_COMMIT_AGAIN_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 1.0
_SWEEP_SOON_SECONDS: Final = 0.02


class Dispatcher:
    """Runs the engine on an event loop. `attempt` sends one message and returns the outcome."""

    def __init__(self, engine: Engine, attempt: Attempt) -> None:
        self._engine = engine
        self._attempt = attempt
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._running = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to send what is due; call inside the running loop."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._sweep()
        self.wake()

    def wake(self) -> None:
        """Look for due messages in the next turn of the loop; several calls in one turn count once."""
        if self._soon is None and self._running and self._loop is not None:
            self._soon = self._loop.call_soon(self._tick)

    @property
    def in_flight(self) -> int:
        """How many messages are being sent."""
        return len(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether messages are being sent, or will be looked for in the next turn of the loop."""
        return bool(self._tasks) or self._soon is not None

    async def settle(self) -> None:
        """Send what is due and wait until nothing is in flight; what falls due meanwhile is sent as well."""
        self.wake()
        while self.busy and self._running:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                await asyncio.sleep(0)

    async def stop(self, *, grace_seconds: float) -> None:
        """Start nothing more, wait for requests in flight, then abandon the rest.

        With a durable store the abandoned messages are sent again at the next start.
        """
        self._running = False
        for handle in (self._timer, self._sweeper, self._soon):
            if handle is not None:
                handle.cancel()
        self._soon = None
        if not self._tasks:
            return
        _, abandoned = await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in abandoned:
            task.cancel()
        if abandoned:
            logger.info("stopped with requests in flight: count=%d", len(abandoned))
            await asyncio.wait(abandoned)

    def _tick(self) -> None:
        self._soon = None
        if not self._running or self._loop is None:
            return
        for message in self._engine.start_due():
            self._start(self._loop, self._send(message))
        triggered = self._engine.schedules.take_staged()
        if triggered:
            self._start(self._loop, self._release(triggered))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._engine.next_due()
        # Where time stands still nothing falls due until it is moved, and whoever moves it wakes us.
        if due is not None and not self._engine.clock.stopped:
            delay = min(max(due - self._engine.clock(), 0.0), _LONGEST_SLEEP)
            self._timer = self._loop.call_later(delay, self._tick)

    def _start(self, loop: asyncio.AbstractEventLoop, work: Coroutine[None, None, None]) -> None:
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _release(self, messages: list[Message]) -> None:
        """Let go what schedules made, once it is durable: sent before, it would be made again after a crash."""
        while True:
            try:
                await self._engine.store.commit()
                break
            except StoreError:
                await asyncio.sleep(_COMMIT_AGAIN_SECONDS)
        for message in messages:
            self._engine.release(message)
        self.wake()

    async def _send(self, message: Message) -> None:
        outcome = await self._attempt(message, self._engine.accounts[message.account].keys.current)
        if not outcome.delivered:
            logger.info(
                "attempt failed: message=%s attempt=%d status=%d error=%s",
                message.id,
                message.retried + 1,
                outcome.status,
                outcome.error or "-",
            )
        self._engine.finish(message, outcome)
        self.wake()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an attempt could not be recorded", exc_info=error)

    def _sweep(self) -> None:
        if not self._running or self._loop is None:
            return
        more = sweep(self._engine)
        self._sweeper = self._loop.call_later(_SWEEP_SOON_SECONDS if more else _SWEEP_SECONDS, self._sweep)
