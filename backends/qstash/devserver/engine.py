"""The message state machine: what happens to a message, and when, without doing any of it.

No sockets, no tasks, no sleeping: a driver asks `start_due` for the messages to send now and reports
each attempt with `finish`. Time comes from the injected clock, durability from the store port.
States and their order are those of protocol sections 9.2 and 13.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.backoff import next_wait
from queuebridge.backends.qstash.devserver.callback import callback_body
from queuebridge.backends.qstash.devserver.clock import Clock
from queuebridge.backends.qstash.devserver.limits import FifoQueue
from queuebridge.backends.qstash.devserver.messages import (
    Accepted,
    DeadLetter,
    LogState,
    Message,
    MessageSpec,
    Outcome,
    Phase,
    QueueRecord,
    new_message_id,
)
from queuebridge.backends.qstash.devserver.records import encode_queue
from queuebridge.backends.qstash.devserver.schedules import Schedules
from queuebridge.backends.qstash.devserver.settings import EngineSettings
from queuebridge.backends.qstash.devserver.store import Store
from queuebridge.backends.qstash.devserver.timetable import Alarm, Timetable
from queuebridge.backends.qstash.devserver.workflow.delivering import callback_fields, content, settle
from queuebridge.backends.qstash.devserver.workflow.part import Role
from queuebridge.backends.qstash.devserver.workflow.runs import Run
from queuebridge.backends.qstash.protocol import FINISHED_MESSAGE_READABLE_SECONDS

logger = logging.getLogger(__name__)


class Engine:
    """All accounts' messages, the heap of waiting ones, and every change of state.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self, clock: Clock, store: Store, settings: EngineSettings | None = None) -> None:
        self.clock = clock
        self.settings = settings or EngineSettings()
        self.store = store
        parallelism = self.settings.max_parallelism or self.settings.plan.max_parallelism
        self.accounts = {
            user.name: Account(
                user,
                store,
                max_parallelism=parallelism,
                ring_at=self.ring_at,
                cancel_alarm=self.cancel_alarm,
            )
            for user in self.settings.users
        }
        self.schedules = Schedules(self)
        self._timetable = Timetable()
        self._next_seq = 1
        self._finished: deque[Message] = deque()

    # Accepting

    def accept(
        self,
        account: Account,
        spec: MessageSpec,
        body: bytes,
        *,
        not_before: float,
        dedup_key: str | None = None,
    ) -> tuple[Accepted, Message | None]:
        """Stage a message; the driver commits and then calls `release`, or `discard` if that failed.

        Args:
            not_before: Unix seconds of the first attempt; a past time means at once.
            dedup_key: what an equal publish within ten minutes is recognised by, or None.

        Returns:
            The answer, and the new message, which is None for a duplicate.
        """
        now = self.clock()
        if dedup_key is not None:
            earlier = account.earlier_publish(dedup_key, now)
            if earlier is not None:
                return Accepted(earlier, spec.url, deduplicated=True), None
        if spec.queue is not None:
            self.queue_for(account, spec.queue)
        message = self._new_message(account, spec, body, not_before=not_before)
        if dedup_key is not None:
            self.store.add_deduplication(account.remember_publish(dedup_key, message.id, now))
        return Accepted(message.id, spec.url), message

    def release(self, message: Message) -> None:
        """Let an accepted message go on its way: into its queue, to its time, or in line."""
        if message.phase is not Phase.STAGED:
            return
        account = self.accounts[message.account]
        if message.spec.flow is not None:
            account.configure_flow(message.spec.flow, self.clock())
        if message.spec.queue is None:
            self._wait_until(message, message.due)
            return
        queue = self.queue_for(account, message.spec.queue)
        queue.append(message)
        self.admit(queue)

    def discard(self, message: Message) -> None:
        """Undo `accept`: the publish failed and must leave nothing behind."""
        account = self.accounts[message.account]
        account.messages.pop(message.id, None)
        message.phase = Phase.CANCELED
        account.history.forget_message(message)
        self.store.remove_message(message)
        if message.spec.workflow is not None:
            account.runs.undo(message)
        record = account.forget_publish(message.id)
        if record is not None:
            self.store.remove_deduplication(record)

    def queue_for(self, account: Account, name: str) -> FifoQueue:
        """Return a queue, created with parallelism 1 if absent."""
        queue = account.queues.get(name)
        if queue is None:
            now_ms = int(self.clock() * 1000)
            record = QueueRecord(
                account=account.user.name, name=name, parallelism=1, created_ms=now_ms, updated_ms=now_ms
            )
            queue = account.queues[name] = FifoQueue(record)
            self.store.put_document(encode_queue(record))
        return queue

    def admit(self, queue: FifoQueue) -> None:
        """Let the next messages of a queue go, as many as have a slot now."""
        while (message := queue.admit()) is not None:
            self._wait_until(message, message.due)

    # Driving

    def start_due(self) -> list[Message]:
        """Return the messages to send now; each is active until `finish` is called for it."""
        now = self.clock()
        for item in self._timetable.take_due(now):
            if isinstance(item, Alarm):
                item.ring(now)
            else:
                self.accounts[item.account].make_ready(item, now)
        started: list[Message] = []
        for account in self.accounts.values():
            account.start_ready(now, started)
        for message in started:
            if message.spec.workflow is not None:
                message.content = content(message, self.accounts[message.account].runs.of(message))
        return started

    def ring_at(self, due: float, ring: Callable[[float], None]) -> Alarm:
        """Call a function with the time when `due`, in Unix seconds, has come; return what can be cancelled."""
        alarm = Alarm(ring)
        self._timetable.add(due, alarm)
        return alarm

    def cancel_alarm(self, alarm: Alarm) -> None:
        """Have an alarm that has not rung yet not called."""
        alarm.cancel()
        self._timetable.note_cancelled()

    def next_due(self) -> float | None:
        """Return the Unix time of the next timed event, or None when nothing waits for a time."""
        return self._timetable.next_due()

    def finish(self, message: Message, outcome: Outcome) -> None:
        """Take the outcome of an attempt: delivered, to be retried, failed, or cancelled meanwhile."""
        now = self.clock()
        now_ms = int(now * 1000)
        account = self.accounts[message.account]
        account.attempt_ended(message)
        part = message.spec.workflow
        settled = outcome.delivered
        if part is not None:
            message.content = None
            settled, outcome = settle(message, account.runs.of(message), outcome)
        if not outcome.delivered:
            account.history.add(now_ms, LogState.ERROR, message, outcome=outcome)
        if settled:
            account.history.add(now_ms, LogState.DELIVERED, message, outcome=outcome)
            self._call_back(account, message, message.spec.callback, outcome)
            self._end(account, message, Phase.DELIVERED, now)
            return
        if message.cancel_requested:
            account.history.add(now_ms, LogState.CANCELED, message)
            self._end(account, message, Phase.CANCELED, now)
            return
        if message.retried < message.spec.max_retries and outcome.retryable:
            if part is None or part.role is not Role.TO_CALLBACK:  # a run waits for the final outcome only
                self._call_back(account, message, message.spec.callback, outcome)
            self._retry(account, message, outcome, now)
            return
        self._fail(account, message, outcome, now)

    def forget_finished(self, limit: int) -> int:
        """Forget at most `limit` messages that finished long enough ago; return how many."""
        finished = self._finished
        latest = self.clock() - FINISHED_MESSAGE_READABLE_SECONDS
        forgotten = 0
        while forgotten < limit and finished and finished[0].finished_at <= latest:
            message = finished.popleft()
            self.accounts[message.account].messages.pop(message.id, None)
            forgotten += 1
        return forgotten

    # Commands

    def cancel(self, account: Account, message: Message) -> bool:
        """Cancel a message; return False when it is finished or was already asked to stop.

        A message in flight keeps its request and is cancelled when that fails; any other ends at once.
        """
        if message.finished or message.cancel_requested:
            return False
        now = self.clock()
        message.cancel_requested = True
        account.history.add(int(now * 1000), LogState.CANCEL_REQUESTED, message)
        if message.phase is Phase.ACTIVE:
            self.store.update_message(message)
            return True
        account.history.add(int(now * 1000), LogState.CANCELED, message)
        phase = message.phase
        self._end(account, message, Phase.CANCELED, now)
        if phase is Phase.WAITING:
            self._timetable.note_cancelled()
        elif phase is Phase.READY and message.spec.flow is not None:
            account.flows[message.spec.flow.key].waiting.note_cancelled()
        elif phase is Phase.QUEUED and message.spec.queue in account.queues:
            account.queues[message.spec.queue].note_cancelled()
        return True

    def end_run(self, account: Account, run: Run) -> None:
        """End a workflow run, however it went: nothing of it is sent any more, requests in flight excepted."""
        account.runs.remove(run)
        for message in run.pending.values():
            if message.phase is Phase.ACTIVE:
                self.store.remove_message(message)  # its outcome does not matter any more
            else:
                self.cancel(account, message)

    def remove_dead_letter(self, account: Account, letter: DeadLetter) -> None:
        """Drop an entry of the dead letter queue."""
        del account.dead_letters[letter.dlq_id]
        self.store.remove_dead_letter(letter)

    def retry_dead_letter(
        self, account: Account, letter: DeadLetter, spec: MessageSpec, *, not_before: float
    ) -> Message:
        """Stage a new message for a dead letter and drop the entry, in one transaction.

        The driver commits and then releases the message, as after `accept`.
        """
        if spec.queue is not None:
            self.queue_for(account, spec.queue)
        message = self._new_message(account, spec, letter.message.body, not_before=not_before)
        self.remove_dead_letter(account, letter)
        return message

    def take_back(self, message: Message) -> None:
        """Go on with a message found in the store; one that was in flight is due again at once."""
        account = self.accounts[message.account]
        if message.cancel_requested or not account.runs.adopt(message):
            now = self.clock()
            account.history.add(int(now * 1000), LogState.CANCELED, message)
            self._end(account, message, Phase.CANCELED, now)
        else:
            self.release(message)

    def continue_after(self, seq: int) -> None:
        """Give later messages greater sequence numbers than this one."""
        self._next_seq = max(self._next_seq, seq + 1)

    # Steps

    def _new_message(
        self,
        account: Account,
        spec: MessageSpec,
        body: bytes,
        *,
        not_before: float,
        hold: tuple[str, str] | None = None,
    ) -> Message:
        now = self.clock()
        due = max(now, not_before)
        message = Message(
            seq=self._next_seq,
            id=new_message_id(),
            account=account.user.name,
            spec=spec,
            body=body,
            created_ms=int(now * 1000),
            not_before_ms=int(due * 1000),
            due=due,
            hold=hold,
        )
        self._next_seq += 1
        account.messages[message.id] = message
        account.history.add(message.created_ms, LogState.CREATED, message)
        self.store.add_message(message)
        return message

    def _wait_until(self, message: Message, due: float) -> None:
        message.due = due
        now = self.clock()
        if due <= now:
            self.accounts[message.account].make_ready(message, now)
            return
        message.phase = Phase.WAITING
        self._timetable.add(due, message)

    def _retry(self, account: Account, message: Message, outcome: Outcome, now: float) -> None:
        wait = next_wait(
            retried=message.retried,
            expression=message.spec.retry_delay,
            response_headers=outcome.headers,
            now=self.clock.of_machine(),
        )
        message.retried += 1
        due = now + wait / self.settings.time_scale
        account.history.add(int(now * 1000), LogState.RETRY, message, next_delivery_ms=int(due * 1000))
        self._wait_until(message, due)
        self.store.update_message(message)

    def _fail(self, account: Account, message: Message, outcome: Outcome, now: float) -> None:
        now_ms = int(now * 1000)
        letter = DeadLetter(
            dlq_id=account.new_dlq_id(now_ms), message=message, outcome=outcome, entered_ms=now_ms
        )
        account.dead_letters[letter.dlq_id] = letter
        account.history.add(now_ms, LogState.FAILED, message)
        failure_callback = message.spec.failure_callback
        run = account.runs.of(message)  # a failure callback has none: it has ended
        if run is not None:
            failure_callback = failure_callback or run.failure
        self._call_back(account, message, message.spec.callback, outcome)
        self._call_back(account, message, failure_callback, outcome, dlq_id=letter.dlq_id)
        self._end(account, message, Phase.FAILED, now)
        self.store.add_dead_letter(letter)
        if run is not None:
            self.end_run(account, run)
        logger.info("moved to the dead letter queue: message=%s dlq=%s", message.id, letter.dlq_id)

    def _call_back(
        self,
        account: Account,
        source: Message,
        spec: MessageSpec | None,
        outcome: Outcome,
        *,
        dlq_id: str | None = None,
    ) -> None:
        if spec is None or (spec.workflow is not None and not account.runs.awaits(spec.workflow)):
            return
        limit = self.settings.plan.max_message_bytes
        run = account.runs.of(source)
        fields = None if run is None else callback_fields(source, run, spec)
        body = callback_body(source, outcome, dlq_id=dlq_id, max_body_bytes=limit, run=fields)
        hold = source.hold
        if source.spec.queue is not None:
            hold = (source.spec.queue, source.id)
        queue = None if hold is None else account.queues.get(hold[0])
        if hold is None or queue is None or not queue.holds(hold[1]):  # the queue was deleted meanwhile
            hold = queue = None
        message = self._new_message(account, spec, body, not_before=0.0, hold=hold)
        if hold is not None and queue is not None:
            queue.hold(hold[1])
        account.runs.adopt(message)
        self.release(message)

    def _end(self, account: Account, message: Message, phase: Phase, now: float) -> None:
        held = message.phase is not Phase.QUEUED and message.phase is not Phase.STAGED
        message.phase = phase
        message.finished_at = now
        self._finished.append(message)
        self.store.remove_message(message)
        if message.spec.schedule_id is not None:
            self.schedules.message_ended(message)
        if message.spec.workflow is not None:
            account.runs.finished(message, now)
        slot = message.hold or ((message.spec.queue, message.id) if message.spec.queue and held else None)
        queue = None if slot is None else account.queues.get(slot[0])
        if slot is not None and queue is not None:
            queue.release(slot[1])
            self.admit(queue)
