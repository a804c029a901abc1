"""What holds a due message back: FIFO queues (13.8) and flow-control keys (13.9)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

from queuebridge.backends.qstash.devserver.messages import FlowControl, Message, Phase, QueueRecord
from queuebridge.backends.qstash.devserver.timetable import Alarm

_COMPACT_ABOVE: Final = 1000


class WaitingLine:
    """Messages in order, each in one phase as long as it waits; those cancelled meanwhile are passed over."""

    __slots__ = ("_cancelled", "_messages", "_phase")

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._messages: deque[Message] = deque()
        self._cancelled = 0

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._messages) - self._cancelled

    @property
    def kept(self) -> int:
        """How many messages are in memory, those cancelled included."""
        return len(self._messages)

    def append(self, message: Message) -> None:
        """Put a message at the end."""
        message.phase = self._phase
        self._messages.append(message)

    def take(self) -> Message | None:
        """Take the longest waiting message; None if none waits."""
        while self._messages:
            message = self._messages.popleft()
            if message.phase is self._phase:
                return message
            self._cancelled -= 1
        return None

    def note_cancelled(self) -> None:
        """Count a waiting message that was just cancelled; where nothing moves on many such must not be kept."""
        self._cancelled += 1
        if self._cancelled > _COMPACT_ABOVE and self._cancelled * 2 > len(self._messages):
            self._messages = deque(message for message in self._messages if message.phase is self._phase)
            self._cancelled = 0


class FifoQueue:
    """One queue: a message holds a slot from admission until it and its callbacks are finished.

    While the queue is paused none is admitted, and those that have a slot are set aside when they fall due.
    """

    __slots__ = ("_aside", "_holders", "_waiting", "record")

    def __init__(self, record: QueueRecord) -> None:
        self.record = record
        self._waiting = WaitingLine(Phase.QUEUED)
        self._holders: dict[str, int] = {}
        self._aside: list[Message] = []

    @property
    def lag(self) -> int:
        """How many messages are not delivered yet, those on their way included."""
        return len(self._waiting) + len(self._holders)

    def append(self, message: Message) -> None:
        """Put a message at the end."""
        self._waiting.append(message)

    def note_cancelled(self) -> None:
        """Count a message that was just cancelled before it was admitted."""
        self._waiting.note_cancelled()

    def holds(self, message_id: str) -> bool:
        """Whether a message, or a callback of it, has a slot."""
        return message_id in self._holders

    def set_aside(self, message: Message) -> None:
        """Keep a message that is due while the queue is paused."""
        message.phase = Phase.ASIDE
        self._aside.append(message)

    def take_aside(self) -> list[Message]:
        """Return the messages that were set aside, but for those cancelled meanwhile, and forget them."""
        aside, self._aside = self._aside, []
        return [message for message in aside if message.phase is Phase.ASIDE]

    def hold(self, message_id: str) -> None:
        """Count one more delivery (the message itself or a callback) on behalf of a message."""
        self._holders[message_id] = self._holders.get(message_id, 0) + 1

    def release(self, message_id: str) -> None:
        """Count one delivery less; the slot is free after the last."""
        left = self._holders.get(message_id, 0) - 1
        if left > 0:
            self._holders[message_id] = left
        else:
            self._holders.pop(message_id, None)

    def admit(self) -> Message | None:
        """Give the next message a slot and return it, or None when all are taken or none waits."""
        if self.record.paused or len(self._holders) >= self.record.parallelism:
            return None
        message = self._waiting.take()
        if message is not None:
            self.hold(message.id)
        return message


class FlowKey:
    """One flow-control key: its limits, who waits for it, how many calls are active, and the rate window.

    `setting` has the limits in force. Those that are pinned are not replaced by what messages bring.
    `timer` wakes the key at `timer_due`, when its rate window is over.
    """

    __slots__ = (
        "active", "count", "listed", "paused", "pinned_parallelism", "pinned_rate", "setting",
        "timer", "timer_due", "used_at", "waiting", "window_start",
    )  # fmt: skip

    def __init__(self, setting: FlowControl, now: float) -> None:
        self.setting = setting
        self.waiting = WaitingLine(Phase.READY)
        self.active = 0
        self.count = 0
        self.window_start = now
        self.listed = False
        self.paused = False
        self.pinned_parallelism = False
        self.pinned_rate = False
        self.timer: Alarm | None = None
        self.timer_due = 0.0
        self.used_at = now

    @property
    def window_end(self) -> float:
        """When the current rate window ends, Unix seconds."""
        return self.window_start + self.setting.period_seconds

    @property
    def kept(self) -> bool:
        """Whether somebody set something about this key that no message would bring back."""
        return self.paused or self.pinned_parallelism or self.pinned_rate

    def configure(self, wanted: FlowControl) -> bool:
        """Take the limits that a message brings, but for those pinned; return whether any changed."""
        if self.pinned_parallelism:
            wanted = replace(wanted, parallelism=self.setting.parallelism)
        if self.pinned_rate:
            wanted = replace(wanted, rate=self.setting.rate, period_seconds=self.setting.period_seconds)
        changed = wanted != self.setting
        self.setting = wanted
        return changed

    def may_start(self, now: float) -> bool:
        """Whether one more call may start now; opens a new rate window when the last is over."""
        if self.paused:
            return False
        setting = self.setting
        if now >= self.window_end or now < self.window_start:
            self.restart_window(now)
        if setting.parallelism is not None and self.active >= setting.parallelism:
            return False
        return setting.rate is None or self.count < setting.rate

    def restart_window(self, now: float) -> None:
        """Begin a rate window in which no call was made yet."""
        self.window_start, self.count = now, 0

    def rate_limited(self) -> bool:
        """Whether the current window's rate is used up."""
        return self.setting.rate is not None and self.count >= self.setting.rate

    def start(self, now: float) -> None:
        """Count one call that starts now; the first of a window opens it."""
        if not self.count:
            self.window_start = now
        self.active += 1
        self.count += 1
        self.used_at = now

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting this key."""
        busy = self.waiting or self.active or self.kept or self.timer is not None
        return not busy and now >= self.window_end
