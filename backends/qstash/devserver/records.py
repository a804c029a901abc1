"""The stored form of messages, dead letters and queues: compact JSON beside the raw bytes of the bodies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

from queuebridge.backends.qstash.devserver.messages import (
    DeadLetter,
    Document,
    FlowControl,
    Message,
    MessageSpec,
    Outcome,
    Phase,
    QueueRecord,
    Redaction,
    SigningKeys,
)
from queuebridge.backends.qstash.devserver.workflow.part import WorkflowPart

_DEFAULTS: Final = {
    spec_field.name: spec_field.default for spec_field in fields(MessageSpec) if spec_field.name != "url"
}
# ASCII output: a header that was not valid UTF-8 must not make the row unwritable.
encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode_spec(spec: MessageSpec) -> dict[str, Any]:
    """Return the JSON form of a spec: only what differs from the defaults."""
    data: dict[str, Any] = {"url": spec.url}
    for name, default in _DEFAULTS.items():
        value = getattr(spec, name)
        if value == default:
            continue
        if isinstance(value, MessageSpec):
            value = encode_spec(value)
        elif isinstance(value, FlowControl):
            value = [value.key, value.parallelism, value.rate, value.period_seconds]
        elif isinstance(value, Redaction):
            value = [value.body, value.all_headers, sorted(value.headers)]
        elif isinstance(value, WorkflowPart):
            value = value.encode()
        data[name] = value
    return data


def decode_spec(data: dict[str, Any]) -> MessageSpec:
    """Return the spec of its JSON form."""
    values = dict(data)
    for name in ("callback", "failure_callback"):
        if name in values:
            values[name] = decode_spec(values[name])
    if "headers" in values:
        values["headers"] = _pairs(values["headers"])
    if "labels" in values:
        values["labels"] = tuple(values["labels"])
    if "flow" in values:
        key, parallelism, rate, period_seconds = values["flow"]
        values["flow"] = FlowControl(
            key=key, parallelism=parallelism, rate=rate, period_seconds=period_seconds
        )
    if "redaction" in values:
        body, all_headers, headers = values["redaction"]
        values["redaction"] = Redaction(body=body, all_headers=all_headers, headers=frozenset(headers))
    if "workflow" in values:
        values["workflow"] = WorkflowPart.decode(values["workflow"])
    return MessageSpec(**values)


# What is stored of a message: what never changes, in the order of its columns.
MessageRow = tuple[int, str, str, int, int, str, str | None, bytes]


def encode_message(message: Message) -> MessageRow:
    """Return the row of a message."""
    return (
        message.seq,
        message.id,
        message.account,
        message.created_ms,
        message.not_before_ms,
        _spec_text(message.spec),
        None if message.hold is None else encode_json(message.hold),
        message.body,
    )


def decode_message(row: Sequence[Any]) -> Message:
    """Return the message of a `MessageRow`, as it was when accepted."""
    seq, message_id, account, created_ms, not_before_ms, spec, hold, body = row
    return Message(
        seq=seq,
        id=message_id,
        account=account,
        spec=_spec_of_text(spec),
        body=body,
        created_ms=created_ms,
        not_before_ms=not_before_ms,
        due=not_before_ms / 1000,
        hold=None if hold is None else _pair(json.loads(hold)),
    )


# Most messages are published like many others before them.
@lru_cache(maxsize=1024)
def _spec_text(spec: MessageSpec) -> str:
    return encode_json(encode_spec(spec))


@lru_cache(maxsize=1024)
def _spec_of_text(text: str) -> MessageSpec:
    return decode_spec(json.loads(text))


def encode_dead_letter(letter: DeadLetter) -> str:
    """Return the JSON text of a dead letter, without the two bodies."""
    return encode_json(
        {
            "message": encode_message(letter.message)[:-1],
            "retried": letter.message.retried,
            "finished": letter.message.finished_at,
            "entered": letter.entered_ms,
            "status": letter.outcome.status,
            "headers": letter.outcome.headers,
            "error": letter.outcome.error,
        }
    )


def decode_dead_letter(dlq_id: str, text: str, body: bytes, response_body: bytes) -> DeadLetter:
    """Return the dead letter of its stored form."""
    data = json.loads(text)
    message = decode_message([*data["message"], body])
    message.retried = data["retried"]
    message.phase = Phase.FAILED
    message.finished_at = data["finished"]
    outcome = Outcome(
        status=data["status"],
        headers=_pairs(data["headers"]),
        body=bytes(response_body),
        error=data["error"],
    )
    return DeadLetter(dlq_id=dlq_id, message=message, outcome=outcome, entered_ms=data["entered"])


def encode_queue(record: QueueRecord) -> Document:
    """Return the document of a queue's settings."""
    data = {"parallelism": record.parallelism, "created": record.created_ms, "updated": record.updated_ms}
    if record.paused:
        data["paused"] = True
    return Document(account=record.account, kind="queue", key=record.name, data=data)


def decode_queue(document: Document) -> QueueRecord:
    """Return the settings of a queue's document."""
    data = document.data
    return QueueRecord(
        account=document.account,
        name=document.key,
        parallelism=data["parallelism"],
        created_ms=data["created"],
        updated_ms=data["updated"],
        paused=data.get("paused", False),
    )


def encode_keys(account: str, keys: SigningKeys) -> Document:
    """Return the document of an account's signing keys."""
    return Document(account=account, kind="keys", key="", data={"current": keys.current, "next": keys.next})


def decode_keys(document: Document) -> SigningKeys:
    """Return the signing keys of their document."""
    return SigningKeys(document.data["current"], document.data["next"])


def _pair(value: list[str]) -> tuple[str, str]:
    first, second = value
    return first, second


def _pairs(value: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple(_pair(item) for item in value)
