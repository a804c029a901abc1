"""Taking over what a store held when the server starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from queuebridge.backends.qstash.devserver import flow_control, schedules
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.groups import decode_group
from queuebridge.backends.qstash.devserver.history import MAX_ENTRIES
from queuebridge.backends.qstash.devserver.limits import FifoQueue
from queuebridge.backends.qstash.devserver.messages import Document, LogState, Message, Recovered
from queuebridge.backends.qstash.devserver.quotas import restore_usage
from queuebridge.backends.qstash.devserver.records import decode_keys, decode_queue
from queuebridge.backends.qstash.devserver.workflow.runs import RECORD_KIND, RUN_KIND
from queuebridge.backends.qstash.protocol import DEDUPLICATION_WINDOW_SECONDS

logger = logging.getLogger(__name__)


def _restore_queue(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].queues[document.key] = FifoQueue(decode_queue(document))


def _restore_keys(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].keys = decode_keys(document)


def _restore_flow(engine: Engine, document: Document) -> None:
    flow = flow_control.decode(document, engine.clock())
    engine.accounts[document.account].flows[document.key] = flow


def _restore_schedule(engine: Engine, document: Document) -> None:
    engine.schedules.restore(document)


def _restore_schedule_progress(engine: Engine, document: Document) -> None:
    engine.schedules.restore_progress(document)


def _restore_group(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].groups[document.key] = decode_group(document)


def _restore_run(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].runs.restore_run(document)


def _restore_record(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].runs.restore_record(document)
    engine.continue_after(document.data["seq"])


# By the kind of a document.
_RESTORE: Final[Mapping[str, Callable[[Engine, Document], None]]] = {
    "queue": _restore_queue,
    "keys": _restore_keys,
    flow_control.KIND: _restore_flow,
    schedules.KIND: _restore_schedule,
    schedules.PROGRESS_KIND: _restore_schedule_progress,
    "group": _restore_group,
    "usage": restore_usage,
    RUN_KIND: _restore_run,
    RECORD_KIND: _restore_record,
}


def recover(engine: Engine, recovered: Recovered) -> None:
    """Put everything where it was: messages keep their ids, and those in flight are sent again.

    What belongs to a user that this server does not know stays in the store, untouched.
    """
    accounts = engine.accounts
    for document in recovered.documents:
        if document.account in accounts:
            _RESTORE[document.kind](engine, document)
    # The time may have been ahead when a publish was remembered, as tests move it.
    latest = engine.clock() + DEDUPLICATION_WINDOW_SECONDS
    for publish in recovered.deduplication:
        if publish.account in accounts:
            remembered = replace(publish, expires_at=min(publish.expires_at, latest))
            accounts[publish.account].deduplication[publish.key] = remembered
    for letter in recovered.dead_letters:
        engine.continue_after(letter.message.seq)
        if letter.message.account in accounts:
            accounts[letter.message.account].restore_dead_letter(letter)
    for message in recovered.messages:
        engine.continue_after(message.seq)
    messages = [message for message in recovered.messages if message.account in accounts]
    if messages:
        _take_back(engine, messages)
        logger.info("recovered undelivered messages: count=%d", len(messages))
    for account in accounts.values():
        account.runs.note_idle(engine.clock())


def _take_back(engine: Engine, messages: list[Message]) -> None:
    accounts = engine.accounts
    for message in messages:
        account = accounts[message.account]
        account.messages[message.id] = message
        # Before any message is admitted: a callback keeps its source's slot over the restart.
        queue = None if message.hold is None else account.queues.get(message.hold[0])
        if message.hold is not None and queue is not None:
            queue.hold(message.hold[1])
    # The log would drop all but the newest.
    for message in messages[-MAX_ENTRIES:]:
        accounts[message.account].history.add(message.created_ms, LogState.CREATED, message)
    for message in messages:
        engine.take_back(message)
