"""Attempts as tests want them: with scripted faults, and recorded."""

from __future__ import annotations

import asyncio

from multidict import CIMultiDict

from queuebridge.backends.qstash.devserver.admin.faults import Faults, Script
from queuebridge.backends.qstash.devserver.admin.record import Record
from queuebridge.backends.qstash.devserver.clock import Clock
from queuebridge.backends.qstash.devserver.messages import Message, Outcome
from queuebridge.backends.qstash.devserver.sender import Sender


class Attempts:
    """Sends attempts, lets go wrong what is scripted, and records them.

    Args:
        sender: Sends.
        clock: The server's time, for the record.
    """

    def __init__(self, sender: Sender, clock: Clock) -> None:
        self.faults = Faults()
        self.record = Record()
        self._sender = sender
        self._clock = clock

    async def attempt(self, message: Message, signing_key: str) -> Outcome:
        """Send a message once and return what came of it; never raises but for cancellation."""
        script = self.faults.take(message) if self.faults else None
        if script is not None and script.fault == "duplicate":
            # The first answer decides; the second request is one too many.
            outcome = await self._once(message, signing_key, script)
            await self._once(message, signing_key, script)
            return outcome
        return await self._once(message, signing_key, script)

    async def _once(self, message: Message, signing_key: str, script: Script | None) -> Outcome:
        started = self._clock()
        headers = self._sender.headers(message, signing_key)
        if script is None:
            outcome = await self._sender.send(message, headers)
        else:
            outcome = await self._with_fault(message, headers, script)
        self.record.add(started, message, headers, outcome, None if script is None else script.fault)
        return outcome

    async def _with_fault(self, message: Message, headers: CIMultiDict[str], script: Script) -> Outcome:
        if script.fault == "drop":
            return Outcome(error="ConnectionError: dropped by a scripted fault")
        if script.outcome is not None:
            return script.outcome
        if script.fault == "delay":
            limit = self._sender.timeout_seconds(message)
            await asyncio.sleep(min(script.seconds, limit))
            if script.seconds >= limit:
                return Outcome(error=f"no answer within {limit} s", timed_out=True)
        outcome = await self._sender.send(message, headers)
        if script.fault == "lose_answer":
            return Outcome(error="ConnectionError: the answer was lost by a scripted fault")
        return outcome
