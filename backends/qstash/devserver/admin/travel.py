"""Moving the server's time, one event after another."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from queuebridge.backends.qstash.devserver.dispatcher import Dispatcher
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request
from queuebridge.backends.qstash.devserver.store import StoreError

MAX_STEPS: Final = 100_000
# 1 January 3000: calendars end at the year 9999, and cron expressions are looked for ahead.
LATEST: Final = 32_503_680_000.0


class Traveller:
    """Stops, resumes and advances the server's time.

    While it advances, the time stands at each moment at which something is due until what was started there
    has ended. So retries, callbacks and schedules of the period all take place, in order.
    """

    def __init__(self, engine: Engine, dispatcher: Dispatcher, *, max_steps: int = MAX_STEPS) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._max_steps = max_steps
        self._journey: asyncio.Task[int] | None = None

    @property
    def travelling(self) -> bool:
        """Whether the time is being advanced."""
        return self._journey is not None

    def stop(self) -> None:
        """Let the time stand still.

        Raises:
            Refusal: 409 while it is advanced.
        """
        self._refuse_while_travelling()
        if not self._engine.clock.stopped:
            self._engine.clock.stop()

    def resume(self) -> None:
        """Let the time go on from where it stands.

        Raises:
            Refusal: 409 while it is advanced.
        """
        self._refuse_while_travelling()
        self._engine.clock.resume()
        self._dispatcher.wake()

    def cancel(self) -> bool:
        """Have an advance end where it is; return whether there was one. Deliveries in flight go on."""
        if self._journey is None:
            return False
        self._journey.cancel()
        return True

    async def travel(self, target: float, *, timeout_seconds: float) -> int:
        """Advance the time to `target` (Unix seconds); return at how many moments before that something was due.

        Whether the time stands still or runs afterwards is as before.

        Args:
            target: Unix seconds.
            timeout_seconds: How long it may take, in real seconds.

        Raises:
            Refusal: 400 for a time that is past or too far away; 409 if the time is being advanced already, if
                that was cancelled, or if it took too long or too many steps. The time stays where it got.
        """
        self._refuse_while_travelling()
        clock = self._engine.clock
        if target < clock():
            raise bad_request(f"the time cannot go backwards: it is {clock():.3f}, and you asked for {target:.3f}")
        if not target <= LATEST:
            raise bad_request(f"the time must stay before the year 3000, Unix time {LATEST:.0f}")
        ran = not clock.stopped
        if ran:
            clock.stop()
        self._journey = asyncio.create_task(self._go(target))
        try:
            done, _ = await asyncio.wait({self._journey}, timeout=timeout_seconds)
            if not done:
                raise self._ended_early(f"not done within {timeout_seconds:g} s")
            if self._journey.cancelled():
                raise self._ended_early("cancelled")
            return self._journey.result()
        finally:
            await self._end_journey()
            if ran:
                clock.resume()
            self._dispatcher.wake()

    async def wait_until_idle(self, *, timeout_seconds: float) -> None:
        """Wait until nothing is in flight and nothing is due; what waits for a later time does not count.

        Raises:
            Refusal: 409 if that takes longer, in real seconds.
        """
        try:
            await asyncio.wait_for(self._settle(), timeout_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                409, f"not idle within {timeout_seconds:g} s: {self._dispatcher.in_flight} deliveries in flight"
            ) from None

    async def _go(self, target: float) -> int:
        clock = self._engine.clock
        steps = 0
        await self._settle()
        while (due := self._engine.next_due()) is not None and due <= target:
            if steps == self._max_steps:
                raise self._ended_early(f"something was due at {steps} moments")
            clock.move_to(max(due, clock()))
            await self._settle()
            steps += 1
        clock.move_to(target)
        return steps

    async def _settle(self) -> None:
        """Return when nothing is in flight, nothing is due, and no commit is under way that could change that."""
        idle = False
        while not idle:
            await self._dispatcher.settle()
            with contextlib.suppress(StoreError):  # whoever waits for the commit is told
                await self._engine.store.commit()
            # What waited for that commit goes on before us.
            await asyncio.sleep(0)
            due = self._engine.next_due()
            idle = not self._dispatcher.busy and (due is None or due > self._engine.clock())

    async def _end_journey(self) -> None:
        journey = self._journey
        if journey is None:
            return
        try:
            journey.cancel()
            await asyncio.wait({journey})
        finally:
            self._journey = None

    def _ended_early(self, why: str) -> Refusal:
        in_flight = self._dispatcher.in_flight
        return Refusal(
            409, f"the time got to {self._engine.clock():.3f} only: {why}; deliveries in flight: {in_flight}"
        )

    def _refuse_while_travelling(self) -> None:
        if self._journey is not None:
            raise Refusal(409, 'the time is being advanced; POST {"cancel": true} ends that')
