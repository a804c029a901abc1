"""The working memory of one user: messages, queues, flow-control keys, dead letters, workflow runs, log."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Final

from queuebridge.backends.qstash.devserver.history import History
from queuebridge.backends.qstash.devserver.limits import FifoQueue, FlowKey
from queuebridge.backends.qstash.devserver.messages import (
    DeadLetter,
    Deduplication,
    FlowControl,
    LogState,
    Message,
    Phase,
    SigningKeys,
    UrlGroup,
)
from queuebridge.backends.qstash.devserver.schedules import Schedule
from queuebridge.backends.qstash.devserver.store import Store
from queuebridge.backends.qstash.devserver.timetable import Alarm
from queuebridge.backends.qstash.devserver.workflow.runs import Runs
from queuebridge.backends.qstash.protocol import DEDUPLICATION_WINDOW_SECONDS, DevUser

RingAt = Callable[[float, Callable[[float], None]], Alarm]

# An idle key can still be read for a while, as in the hosted service, if there are not too many of them.
_IDLE_FLOW_SECONDS: Final = 600.0
_MAX_IDLE_FLOWS: Final = 10_000


class Account:
    """One user's data and the decision which of its due messages may start.

    Due messages stand in one line. A message with a flow-control key waits with its key, and the key
    stands in the line once: keys and messages without one take turns.
    """

    def __init__(
        self,
        user: DevUser,
        store: Store,
        *,
        max_parallelism: int,
        ring_at: RingAt,
        cancel_alarm: Callable[[Alarm], None],
    ) -> None:
        self.user = user
        self.keys = SigningKeys(user.current_signing_key, user.next_signing_key)
        self.messages: dict[str, Message] = {}
        self.queues: dict[str, FifoQueue] = {}
        self.groups: dict[str, UrlGroup] = {}
        self.flows: dict[str, FlowKey] = {}
        self.schedules: dict[str, Schedule] = {}
        self.dead_letters: dict[str, DeadLetter] = {}
        self.deduplication: dict[str, Deduplication] = {}
        self.history = History()
        self.runs = Runs(store)
        self.active = 0
        self.usage = (0, 0)  # a day since 1970, and the messages published on it; see quotas.py
        self.max_parallelism = max_parallelism
        self._ring_at = ring_at
        self._cancel_alarm = cancel_alarm
        self._line: deque[Message | FlowKey] = deque()
        self._last_dlq: tuple[int, int] = (0, -1)

    def earlier_publish(self, key: str, now: float) -> str | None:
        """Return the id of the message published under a deduplication key within the window."""
        record = self.deduplication.get(key)
        return record.message_id if record is not None and record.expires_at > now else None

    def remember_publish(self, key: str, message_id: str, now: float) -> Deduplication:
        """Remember a publish for the deduplication window."""
        record = Deduplication(
            account=self.user.name,
            key=key,
            message_id=message_id,
            expires_at=now + DEDUPLICATION_WINDOW_SECONDS,
        )
        # Taken out first: the order of the dict is the order of expiry.
        self.deduplication.pop(key, None)
        self.deduplication[key] = record
        return record

    def forget_publish(self, message_id: str) -> Deduplication | None:
        """Forget the publish of a message that was not accepted after all."""
        for key, record in reversed(self.deduplication.items()):
            if record.message_id == message_id:
                return self.deduplication.pop(key)
        return None

    def take_expired_publishes(self, now: float, limit: int) -> list[Deduplication]:
        """Forget and return at most `limit` publishes whose window is over."""
        oldest = itertools.islice(self.deduplication.values(), limit)
        expired = [record for record in oldest if record.expires_at <= now]
        for record in expired:
            del self.deduplication[record.key]
        return expired

    def configure_flow(self, setting: FlowControl, now: float) -> None:
        """Let a new message's flow-control setting replace the key's (protocol 11)."""
        flow = self.flows.get(setting.key)
        if flow is None:
            self.flows[setting.key] = FlowKey(setting, now)
            return
        flow.used_at = now
        if flow.setting != setting and flow.configure(setting):
            self.list_flow(flow)

    def make_ready(self, message: Message, now: float) -> None:
        """Put a due message in line, or aside while its queue is paused."""
        message.phase = Phase.READY
        if message.spec.queue is not None and self._set_aside(message):
            return
        setting = message.spec.flow
        if setting is None:
            self._line.append(message)
            return
        flow = self.flows.get(setting.key)
        if flow is None:
            flow = self.flows[setting.key] = FlowKey(setting, now)
        flow.waiting.append(message)
        self.list_flow(flow)

    def list_flow(self, flow: FlowKey) -> None:
        """Put a key for which something may have changed in line, if a message waits for it."""
        if not flow.listed and flow.waiting:
            flow.listed = True
            self._line.append(flow)

    def start_ready(self, now: float, started: list[Message]) -> None:
        """Start what the limits allow, appending to `started`."""
        line = self._line
        while line and self.active < self.max_parallelism:
            item = line.popleft()
            if isinstance(item, FlowKey):
                message = self._start_of_flow(item, now)
            else:
                message = item if item.phase is Phase.READY else None
                if message is not None and message.spec.queue is not None and self._set_aside(message):
                    continue
            if message is not None:
                message.phase = Phase.ACTIVE
                self.active += 1
                self.history.add(int(now * 1000), LogState.ACTIVE, message)
                started.append(message)

    def attempt_ended(self, message: Message) -> None:
        """Give back what an active message held of the limits."""
        self.active -= 1
        if message.spec.flow is not None:
            flow = self.flows.get(message.spec.flow.key)
            if flow is not None:
                flow.active -= 1
                self.list_flow(flow)

    def forget_idle_flows(self, now: float, limit: int) -> int:
        """Look at `limit` keys, in turn, and drop those whose memory has no effect; return how many."""
        forgotten = 0
        for key in list(itertools.islice(self.flows, limit)):
            flow = self.flows.pop(key)
            crowded = len(self.flows) >= _MAX_IDLE_FLOWS
            if flow.idle(now) and (crowded or now >= flow.used_at + _IDLE_FLOW_SECONDS):
                forgotten += 1
            else:
                self.flows[key] = flow
        return forgotten

    def dead_letters_before(self, moment_ms: int, limit: int) -> list[DeadLetter]:
        """Return at most `limit` of the oldest dead letters that entered at or before a time."""
        oldest = itertools.islice(self.dead_letters.values(), limit)
        return list(itertools.takewhile(lambda letter: letter.entered_ms <= moment_ms, oldest))

    def new_dlq_id(self, now_ms: int) -> str:
        """Return an id of the form `<unix ms>-<sequence>`, greater than all before it."""
        last_ms, last = self._last_dlq
        self._last_dlq = (now_ms, 0) if now_ms > last_ms else (last_ms, last + 1)
        return f"{self._last_dlq[0]}-{self._last_dlq[1]}"

    def restore_dead_letter(self, letter: DeadLetter) -> None:
        """Take back an entry from the store."""
        self.dead_letters[letter.dlq_id] = letter
        milliseconds, _, sequence = letter.dlq_id.partition("-")
        self._last_dlq = max(self._last_dlq, (int(milliseconds), int(sequence)))

    def _set_aside(self, message: Message) -> bool:
        queue = self.queues.get(message.spec.queue or "")
        if queue is None or not queue.record.paused:
            return False
        queue.set_aside(message)
        return True

    def _start_of_flow(self, flow: FlowKey, now: float) -> Message | None:
        flow.listed = False
        if not flow.may_start(now):
            if flow.rate_limited() and not flow.paused:
                self._wake_at_window_end(flow)
            return None
        message = flow.waiting.take()
        while message is not None and message.spec.queue is not None and self._set_aside(message):
            message = flow.waiting.take()
        if message is not None:
            flow.start(now)
        self.list_flow(flow)
        return message

    def _wake_at_window_end(self, flow: FlowKey) -> None:
        due = flow.window_end
        if flow.timer is not None:
            if flow.timer_due == due:
                return
            self._cancel_alarm(flow.timer)  # the period or the window changed meanwhile

        def wake(_now: float) -> None:
            flow.timer = None
            self.list_flow(flow)

        flow.timer = self._ring_at(due, wake)
        flow.timer_due = due
