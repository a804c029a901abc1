"""The working memory of one user: messages, queues, flow-control keys, dead letters, workflow runs, log."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

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
)
from queuebridge.backends.qstash.devserver.store import Store
from queuebridge.backends.qstash.devserver.workflow.runs import Runs
from queuebridge.backends.qstash.protocol import DEDUPLICATION_WINDOW_SECONDS, DevUser

SetTimer = Callable[[float, FlowKey], None]


class Account:
    """One user's data and the decision which of its due messages may start.

    Due messages stand in one line. A message with a flow-control key waits with its key, and the key
    stands in the line once: keys and messages without one take turns.
    """

    def __init__(self, user: DevUser, store: Store, *, max_parallelism: int, set_timer: SetTimer) -> None:
        self.user = user
        self.keys = SigningKeys(user.current_signing_key, user.next_signing_key)
        self.messages: dict[str, Message] = {}
        self.queues: dict[str, FifoQueue] = {}
        self.flows: dict[str, FlowKey] = {}
        self.dead_letters: dict[str, DeadLetter] = {}
        self.deduplication: dict[str, Deduplication] = {}
        self.history = History()
        self.runs = Runs(store)
        self.active = 0
        self._max_parallelism = max_parallelism
        self._set_timer = set_timer
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
        elif flow.setting != setting:
            flow.setting = setting
            self._list(flow)

    def make_ready(self, message: Message, now: float) -> None:
        """Put a due message in line."""
        message.phase = Phase.READY
        setting = message.spec.flow
        if setting is None:
            self._line.append(message)
            return
        flow = self.flows.get(setting.key)
        if flow is None:
            flow = self.flows[setting.key] = FlowKey(setting, now)
        flow.waiting.append(message)
        self._list(flow)

    def wake_flow(self, flow: FlowKey) -> None:
        """Let a key whose rate window is over try again."""
        flow.timer_set = False
        self._list(flow)

    def start_ready(self, now: float, started: list[Message]) -> None:
        """Start what the limits allow, appending to `started`."""
        line = self._line
        while line and self.active < self._max_parallelism:
            item = line.popleft()
            if isinstance(item, FlowKey):
                message = self._start_of_flow(item, now)
            else:
                message = item if item.phase is Phase.READY else None
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
                self._list(flow)

    def forget_idle_flows(self, now: float, limit: int) -> int:
        """Look at `limit` keys, in turn, and drop those whose memory has no effect; return how many."""
        forgotten = 0
        for key in list(itertools.islice(self.flows, limit)):
            flow = self.flows.pop(key)
            if flow.idle(now):
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

    def _list(self, flow: FlowKey) -> None:
        if not flow.listed and flow.waiting:
            flow.listed = True
            self._line.append(flow)

    def _start_of_flow(self, flow: FlowKey, now: float) -> Message | None:
        flow.listed = False
        if not flow.may_start(now):
            if flow.rate_limited() and not flow.timer_set:
                flow.timer_set = True
                self._set_timer(flow.window_end, flow)
            return None
        message = flow.next_waiting()
        if message is not None:
            flow.start()
        self._list(flow)
        return message
