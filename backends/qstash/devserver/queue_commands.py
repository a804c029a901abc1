"""What is done to a whole queue: its settings, pausing, deletion (protocol section 5)."""

from __future__ import annotations

from dataclasses import replace

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.limits import FifoQueue
from queuebridge.backends.qstash.devserver.messages import Phase
from queuebridge.backends.qstash.devserver.records import encode_queue


def change_queue(
    engine: Engine, account: Account, name: str, *, parallelism: int | None = None, paused: bool | None = None
) -> FifoQueue:
    """Set what is not None of a queue, created if absent, and let go what may go now; stages the change."""
    queue = engine.queue_for(account, name)
    old, now = queue.record, engine.clock()
    record = queue.record = replace(
        old,
        parallelism=old.parallelism if parallelism is None else parallelism,
        paused=old.paused if paused is None else paused,
        updated_ms=max(int(now * 1000), old.created_ms),
    )
    engine.store.put_document(encode_queue(record))
    if not record.paused:
        for message in queue.take_aside():
            account.make_ready(message, now)
        engine.admit(queue)
    return queue


def delete_queue(engine: Engine, account: Account, name: str) -> None:
    """Delete a queue, if it is there, and cancel its messages; one in flight keeps its request."""
    if account.queues.pop(name, None) is None:
        return
    engine.store.remove_document(account.user.name, "queue", name)
    for message in list(account.messages.values()):
        # A message not yet confirmed comes after the deletion and creates the queue anew.
        if message.spec.queue == name and message.phase is not Phase.STAGED:
            engine.cancel(account, message)
