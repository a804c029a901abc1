"""Workflow runs: the history of each, in memory and as documents of the store.

A record gets its place when its message is accepted, in the same transaction. The history delivered with
a message is the records up to its own, by sequence number: the same at every attempt and after a restart.
"""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from queuebridge.backends.qstash.devserver.messages import Document, Message, MessageSpec
from queuebridge.backends.qstash.devserver.records import decode_spec, encode_spec
from queuebridge.backends.qstash.devserver.store import Store
from queuebridge.backends.qstash.devserver.workflow.part import Role, WorkflowPart

RUN_KIND: Final = "run"
# Sorts behind the kind of runs, so that a run is restored before its records.
RECORD_KIND: Final = "runstep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of a history. `body` is in base64; None marks a call, which is known but not delivered.

    `key` is what a repeated submission of the same step is recognised by.
    """

    seq: int
    message_id: str
    key: str
    body: str | None

    @property
    def element(self) -> str:
        """The element of the delivered JSON array."""
        # Ids and base64 need no escaping.
        return f'{{"messageId":"{self.message_id}","callType":"step","body":"{self.body}"}}'


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """A run that has not ended.

    `first` is the sequence number of the message that began it: run ids may be used again, and an older
    message belongs to an earlier run. `failure` is the last failure callback that a message of the run
    named. `pending` holds its unfinished messages, but for the failure callback.
    """

    account: str
    id: str
    url: str
    created_ms: int
    first: int
    failure: MessageSpec | None = None
    records: dict[int, Record] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Message] = field(default_factory=dict)

    @property
    def payload(self) -> str:
        """The initial payload, in base64."""
        return self.records[self.first].body or ""

    def history(self, seq: int) -> bytes:
        """Return the JSON array of the records up to and including that of the message with this number."""
        elements = (
            record.element for record in self.records.values() if record.seq <= seq and record.body is not None
        )
        return f"[{','.join(elements)}]".encode("ascii")

    def add(self, record: Record) -> None:
        """Append a record."""
        self.records[record.seq] = record
        self.steps[record.key] = record.message_id


class Runs:
    """The live runs of one account. Every change is staged in the store; the caller commits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._live: dict[str, Run] = {}
        self._idle: dict[str, float] = {}  # since when nothing is pending, oldest first

    def __iter__(self) -> Iterator[Run]:
        """Return the live runs."""
        return iter(self._live.values())

    def get(self, run_id: str) -> Run | None:
        """Return a live run by its id."""
        return self._live.get(run_id)

    def of(self, message: Message) -> Run | None:
        """Return the live run that a message belongs to."""
        part = message.spec.workflow
        run = None if part is None else self._live.get(part.run_id)
        return run if run is not None and message.seq >= run.first else None

    def begin(self, message: Message) -> Run:
        """Make the run that an init message begins."""
        spec = message.spec
        if spec.workflow is None:
            raise ValueError("not a workflow message")
        run = Run(
            account=message.account,
            id=spec.workflow.run_id,
            url=spec.workflow.url or spec.url,
            created_ms=message.created_ms,
            first=message.seq,
            failure=spec.failure_callback,
        )
        self._live[run.id] = run
        self._store.put_document(_encode_run(run))
        self.append(run, message, "init")
        return run

    def append(self, run: Run, message: Message, key: str) -> None:
        """Give a message's record its place in the history."""
        spec = message.spec
        body = None
        if spec.workflow is not None and spec.workflow.role is Role.STEP:
            body = b64encode(message.body).decode("ascii")
        record = Record(seq=message.seq, message_id=message.id, key=key, body=body)
        run.add(record)
        self._store.put_document(_encode_record(run, record))
        self._note_pending(run, message)
        if spec.failure_callback is not None and spec.failure_callback != run.failure:
            run.failure = spec.failure_callback
            self._store.put_document(_encode_run(run))

    def adopt(self, message: Message) -> bool:
        """Count a callback or a restored message among the pending ones; False if its run has ended.

        A failure callback outlives its run and depends on none.
        """
        part = message.spec.workflow
        if part is None or part.role is Role.FAILURE_CALL:
            return True
        run = self.of(message)
        if run is not None:
            self._note_pending(run, message)
        return run is not None

    def awaits(self, part: WorkflowPart) -> bool:
        """Say whether a callback that plays this part is still of use."""
        return part.role is Role.FAILURE_CALL or part.run_id in self._live

    def undo(self, message: Message) -> None:
        """Take back what accepting a message did: it could not be made durable."""
        run = self.of(message)
        if run is None:
            return
        if message.seq == run.first:
            self.remove(run)
            return
        if run.pending.pop(message.id, None) is not None and not run.pending:
            self._idle[run.id] = message.created_ms / 1000
        record = run.records.pop(message.seq, None)
        if record is not None:
            run.steps.pop(record.key, None)
            self._store.remove_document(run.account, RECORD_KIND, _record_key(run, record.seq))

    def finished(self, message: Message, now: float) -> None:
        """Take a finished message off the pending ones of its run."""
        run = self.of(message)
        if run is not None and run.pending.pop(message.id, None) is not None and not run.pending:
            self._idle[run.id] = now

    def remove(self, run: Run) -> None:
        """Forget a run that has ended."""
        del self._live[run.id]
        self._idle.pop(run.id, None)
        self._store.remove_document(run.account, RUN_KIND, run.id)
        for seq in run.records:
            self._store.remove_document(run.account, RECORD_KIND, _record_key(run, seq))

    def abandoned(self, moment: float, limit: int) -> list[Run]:
        """Return at most `limit` runs for which nothing has been pending since before a time."""
        oldest = itertools.islice(self._idle.items(), limit)
        return [self._live[run_id] for run_id, since in oldest if since <= moment]

    def restore_run(self, document: Document) -> None:
        """Take back a run from the store."""
        self._live[document.key] = _decode_run(document)

    def restore_record(self, document: Document) -> None:
        """Take back a record of a restored run."""
        data = document.data
        run = self._live[data["run"]]
        run.add(Record(seq=data["seq"], message_id=data["message"], key=data["key"], body=data["body"]))

    def note_idle(self, now: float) -> None:
        """Begin to count the idle time of restored runs of which no message was left."""
        for run in self._live.values():
            if not run.pending:
                self._idle.setdefault(run.id, now)

    def _note_pending(self, run: Run, message: Message) -> None:
        run.pending[message.id] = message
        self._idle.pop(run.id, None)


def _record_key(run: Run, seq: int) -> str:
    # Padded: documents are read in the order of their keys.
    return f"{run.id}/{seq:016d}"


def _encode_run(run: Run) -> Document:
    data: dict[str, Any] = {"url": run.url, "created": run.created_ms, "first": run.first}
    if run.failure is not None:
        data["failure"] = encode_spec(run.failure)
    return Document(account=run.account, kind=RUN_KIND, key=run.id, data=data)


def _decode_run(document: Document) -> Run:
    data = document.data
    failure = data.get("failure")
    return Run(
        account=document.account,
        id=document.key,
        url=data["url"],
        created_ms=data["created"],
        first=data["first"],
        failure=None if failure is None else decode_spec(failure),
    )


def _encode_record(run: Run, record: Record) -> Document:
    return Document(
        account=run.account,
        kind=RECORD_KIND,
        key=_record_key(run, record.seq),
        data={
            "run": run.id,
            "seq": record.seq,
            "message": record.message_id,
            "key": record.key,
            "body": record.body,
        },
    )
