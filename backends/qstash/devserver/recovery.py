"""Taking over what a store held when the server starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.limits import FifoQueue
from queuebridge.backends.qstash.devserver.messages import Document, Message, Recovered
from queuebridge.backends.qstash.devserver.records import decode_queue
from queuebridge.backends.qstash.devserver.workflow.runs import RECORD_KIND, RUN_KIND

logger = logging.getLogger(__name__)


def _restore_queue(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].queues[document.key] = FifoQueue(decode_queue(document))


def _restore_run(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].runs.restore_run(document)


def _restore_record(engine: Engine, document: Document) -> None:
    engine.accounts[document.account].runs.restore_record(document)
    engine.continue_after(document.data["seq"])


# By the kind of a document.
_RESTORE: Final[Mapping[str, Callable[[Engine, Document], None]]] = {
    "queue": _restore_queue,
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
    for publish in recovered.deduplication:
        if publish.account in accounts:
            accounts[publish.account].deduplication[publish.key] = publish
    for letter in recovered.dead_letters:
        engine.continue_after(letter.message.seq)
        if letter.message.account in accounts:
            accounts[letter.message.account].restore_dead_letter(letter)
    for message in recovered.messages:
        engine.continue_after(message.seq)
    messages = [message for message in recovered.messages if message.account in accounts]
    for message in messages:
        account = accounts[message.account]
        account.messages[message.id] = message
        # Before any message is admitted: a callback keeps its source's slot over the restart.
        if message.hold is not None:
            engine.queue_for(account, message.hold[0]).hold(message.hold[1])
    _go_on(engine, messages)


def _go_on(engine: Engine, messages: list[Message]) -> None:
    for message in messages:
        engine.take_back(message)
    for account in engine.accounts.values():
        account.runs.note_idle(engine.clock())
    if messages:
        logger.info("recovered undelivered messages: count=%d", len(messages))
