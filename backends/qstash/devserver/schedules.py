"""Schedules: what makes messages by the clock (protocol section 6).

No I/O, like the engine. A trigger stages its messages and the schedule's next time together, so that one
commit makes both durable; the driver takes the messages with `take_staged`, commits, and lets them go.
"""

from __future__ import annotations

import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from queuebridge.backends.qstash.devserver.cron import CronError, parse_cron
from queuebridge.backends.qstash.devserver.errors import Refusal, check_queue_count
from queuebridge.backends.qstash.devserver.groups import resolve
from queuebridge.backends.qstash.devserver.messages import Document, Message, MessageSpec, Phase
from queuebridge.backends.qstash.devserver.records import decode_spec, encode_spec
from queuebridge.backends.qstash.devserver.timetable import Alarm

if TYPE_CHECKING:
    from queuebridge.backends.qstash.devserver.account import Account
    from queuebridge.backends.qstash.devserver.engine import Engine

logger = logging.getLogger(__name__)

KIND: Final = "schedule"
# Sorts behind the definition it belongs to, and is restored after it.
PROGRESS_KIND: Final = "schedule_progress"
_STATES: Final = {Phase.DELIVERED: "SUCCESS", Phase.FAILED: "FAIL", Phase.CANCELED: "FAIL"}


def new_schedule_id() -> str:
    """Return a fresh `scd_...` id."""
    return "scd_" + os.urandom(15).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What the creator of a schedule asked for.

    `destination` is a URL or the name of a URL group; the URL in `spec` is replaced by that of each endpoint.
    """

    cron: str
    destination: str
    spec: MessageSpec
    body: bytes
    delay_seconds: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Schedule:
    """One schedule. `next_due` is in Unix seconds, and None while it is paused; `states` are by message id.

    `states` and `error` are those of the last trigger, which was due at `last_ms`.
    """

    account: str
    id: str
    definition: Definition
    created_ms: int
    paused: bool = False
    next_due: float | None = None
    last_ms: int | None = None
    states: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    alarm: Alarm | None = None


class Schedules:
    """All accounts' schedules and their alarms. Every change is staged in the store; callers commit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._staged: list[Message] = []
        self._started_at = 0.0

    def put(self, account: Account, schedule_id: str, definition: Definition) -> Schedule:
        """Create a schedule, or replace the definition of one; creation time and pause stay as they were."""
        schedule = account.schedules.get(schedule_id)
        now = self._engine.clock()
        if schedule is None:
            schedule = Schedule(
                account=account.user.name, id=schedule_id, definition=definition, created_ms=int(now * 1000)
            )
            account.schedules[schedule_id] = schedule
        schedule.definition = definition
        schedule.error = None
        self._engine.store.put_document(encode_definition(schedule))
        self._plan_next(schedule, now)
        return schedule

    def remove(self, account: Account, schedule: Schedule) -> None:
        """Delete a schedule; messages it made go on."""
        account.schedules.pop(schedule.id, None)
        self._disarm(schedule)
        for kind in (KIND, PROGRESS_KIND):
            self._engine.store.remove_document(schedule.account, kind, schedule.id)

    def set_paused(self, schedule: Schedule, *, paused: bool) -> None:
        """Ignore triggers from now on, or take notice of them again; what was ignored is not made up for."""
        if schedule.paused != paused:
            schedule.paused = paused
            self._plan_next(schedule, self._engine.clock())

    def take_staged(self) -> list[Message]:
        """Return the messages of triggers since the last call: to be released after a commit."""
        staged, self._staged = self._staged, []
        return staged

    def message_ended(self, message: Message) -> None:
        """Take notice of the end of a scheduled message."""
        schedule_id = message.spec.schedule_id
        schedule = None
        if schedule_id is not None:
            schedule = self._engine.accounts[message.account].schedules.get(schedule_id)
        if schedule is not None and message.id in schedule.states:
            schedule.states[message.id] = _STATES[message.phase]
            self._engine.store.put_document(encode_progress(schedule))

    def restore(self, document: Document) -> None:
        """Take back a definition from the store; its progress follows."""
        schedule = decode_definition(document)
        self._engine.accounts[document.account].schedules[schedule.id] = schedule
        self._started_at = self._engine.clock()

    def restore_progress(self, document: Document) -> None:
        """Take back where a schedule stood; a trigger that was missed meanwhile happens now, once."""
        schedule = self._engine.accounts[document.account].schedules[document.key]
        data = document.data
        schedule.paused = data["paused"]
        schedule.last_ms, schedule.states, schedule.error = data["last"], data["states"], data["error"]
        self._arm(schedule, self._engine.clock(), missed=data["next"])

    def _plan_next(self, schedule: Schedule, after: float) -> None:
        self._disarm(schedule)
        self._arm(schedule, after)
        self._engine.store.put_document(encode_progress(schedule))

    def _arm(self, schedule: Schedule, after: float, *, missed: float | None = None) -> None:
        if schedule.paused:
            return
        try:
            due = parse_cron(schedule.definition.cron)(after)
        except CronError as error:  # it was checked, but time zones are not the same on every machine
            schedule.error = str(error)
            logger.warning("a schedule rests: schedule=%s error=%s", schedule.id, error)
            return
        if missed is not None:
            due = min(due, missed)  # not simply `missed`: the clock may have been ahead when that was stored
        schedule.next_due = due
        schedule.alarm = self._engine.ring_at(due, lambda _now: self._trigger(schedule, due))

    def _disarm(self, schedule: Schedule) -> None:
        schedule.next_due = None
        if schedule.alarm is not None:
            self._engine.cancel_alarm(schedule.alarm)
            schedule.alarm = None

    def _trigger(self, schedule: Schedule, due: float) -> None:
        """Stage the messages of one trigger and the time of the next.

        The next one is counted from the time this one was due, so that none is left out where the clock is moved;
        but what was due before the server started counts as one.
        """
        account = self._engine.accounts[schedule.account]
        schedule.alarm = None
        schedule.last_ms = int(due * 1000)
        schedule.error = None
        messages: list[Message] = []
        try:
            queue = schedule.definition.spec.queue
            if queue is not None and queue not in account.queues:
                check_queue_count(self._engine.settings.plan, len(account.queues))
            for spec in self._specs(account, schedule):
                not_before = due + schedule.definition.delay_seconds
                _, message = self._engine.accept(account, spec, schedule.definition.body, not_before=not_before)
                if message is not None:
                    messages.append(message)
        except Refusal as refusal:
            schedule.error = refusal.text
        schedule.states = {message.id: "IN_PROGRESS" for message in messages}
        self._staged += messages
        self._plan_next(schedule, max(due, self._started_at))

    def _specs(self, account: Account, schedule: Schedule) -> Iterator[MessageSpec]:
        definition = schedule.definition
        for endpoint in resolve(account, definition.destination):
            yield replace(
                definition.spec,
                schedule_id=schedule.id,
                url=endpoint.url,
                topic=endpoint.topic,
                endpoint=endpoint.name,
            )


def encode_definition(schedule: Schedule) -> Document:
    """Return the document of what a schedule's creator asked for."""
    definition = schedule.definition
    data: dict[str, Any] = {
        "cron": definition.cron,
        "destination": definition.destination,
        "spec": encode_spec(definition.spec),
        "body": b64encode(definition.body).decode("ascii"),
        "delay": definition.delay_seconds,
        "created": schedule.created_ms,
    }
    return Document(account=schedule.account, kind=KIND, key=schedule.id, data=data)


def decode_definition(document: Document) -> Schedule:
    """Return the schedule of a definition's document, without its progress."""
    data = document.data
    definition = Definition(
        cron=data["cron"],
        destination=data["destination"],
        spec=decode_spec(data["spec"]),
        body=b64decode(data["body"]),
        delay_seconds=data["delay"],
    )
    return Schedule(
        account=document.account, id=document.key, definition=definition, created_ms=data["created"]
    )


def encode_progress(schedule: Schedule) -> Document:
    """Return the document of where a schedule stands: apart, because the body need not be written again."""
    data = {
        "paused": schedule.paused,
        "next": schedule.next_due,
        "last": schedule.last_ms,
        "states": dict(schedule.states),
        "error": schedule.error,
    }
    return Document(account=schedule.account, kind=PROGRESS_KIND, key=schedule.id, data=data)
