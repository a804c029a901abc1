"""The values the engine works on: what was published, where it stands, and what came of an attempt."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from queuebridge.backends.qstash.devserver.workflow.part import Role, WorkflowPart
from queuebridge.backends.qstash.protocol import (
    DEFAULT_FLOW_PERIOD_SECONDS,
    DEFAULT_METHOD,
    DEFAULT_RETRIES,
    HEADER_NON_RETRYABLE,
    NON_RETRYABLE_STATUS,
)

HeaderPairs = tuple[tuple[str, str], ...]

_BASE58: Final = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_TEXT: Final = _BASE58.decode("ascii")
# Maps a random byte to a letter in one C call; the slight bias does not matter for an opaque id.
_TO_BASE58: Final = bytes(_BASE58[value % 58] for value in range(256))
_MESSAGE_ID_LENGTH: Final = 53
_SIGNING_KEY_LENGTH: Final = 28


def new_message_id() -> str:
    """Return a fresh `msg_...` id of the hosted service's length (57 characters)."""
    return "msg_" + os.urandom(_MESSAGE_ID_LENGTH).translate(_TO_BASE58).decode("ascii")


def new_signing_key() -> str:
    """Return a fresh `sig_...` key of the published form (32 characters); its letters are equally probable."""
    return "sig_" + "".join(secrets.choice(_BASE58_TEXT) for _ in range(_SIGNING_KEY_LENGTH))


@lru_cache(maxsize=4096)
def canonical_header_name(name: str) -> str:
    """Return a header name in canonical MIME case: `x-my-header` becomes `X-My-Header`."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowControl:
    """The flow-control setting of one message: limits of a key; None means not limited that way."""

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period_seconds: int = DEFAULT_FLOW_PERIOD_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What the API shows only as a hash: the body, all headers, or some (lower-case names)."""

    body: bool = False
    all_headers: bool = False
    headers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSpec:
    """Everything a publisher asked for, except body and time; also the form of a callback.

    `headers` are the forwarded headers plus `Content-Type`, in canonical case; nothing else of the
    publish request is kept. `timeout_seconds` None means the plan's maximum. `topic` and `endpoint` are
    the names of the URL group and of the endpoint in it, for a message that was published to a group.
    `workflow` is set for messages of workflow runs only.
    """

    url: str
    method: str = DEFAULT_METHOD
    headers: HeaderPairs = ()
    max_retries: int = DEFAULT_RETRIES
    retry_delay: str | None = None
    timeout_seconds: int | None = None
    callback: MessageSpec | None = None
    failure_callback: MessageSpec | None = None
    flow: FlowControl | None = None
    labels: tuple[str, ...] = ()
    redaction: Redaction | None = None
    queue: str | None = None
    caller_ip: str = ""
    topic: str | None = None
    endpoint: str | None = None
    schedule_id: str | None = None
    workflow: WorkflowPart | None = None


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys of one user: deliveries are signed with `current`, and `next` follows it (protocol 10)."""

    current: str
    next: str


class Phase(Enum):
    """Where a message stands inside the engine; finer than the states shown in the log."""

    STAGED = "staged"  # accepted, its commit not yet confirmed
    QUEUED = "queued"  # behind others in a FIFO queue
    WAITING = "waiting"  # until a time: delay or retry
    READY = "ready"  # due, until a parallelism or rate limit lets it start
    ASIDE = "aside"  # due, until its queue, which has admitted it, is resumed
    ACTIVE = "active"  # request in flight
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELED = "canceled"


FINISHED: Final = frozenset({Phase.DELIVERED, Phase.FAILED, Phase.CANCELED})


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent instead of a message's body, and with which headers besides its own."""

    body: bytes
    headers: HeaderPairs


@dataclass(slots=True, eq=False, kw_only=True)
class Message:
    """One message on its way. Only the engine changes it.

    `seq` orders messages by acceptance over all accounts. `due` is in Unix seconds. `hold` names the
    queue and the message on whose behalf a callback keeps a queue's slot (protocol 13.8).
    """

    seq: int
    id: str
    account: str
    spec: MessageSpec
    body: bytes
    created_ms: int
    not_before_ms: int
    due: float
    retried: int = 0
    phase: Phase = Phase.STAGED
    cancel_requested: bool = False
    hold: tuple[str, str] | None = None
    finished_at: float = 0.0
    content: Content | None = None  # of the attempt in flight, where it is not just the body

    @property
    def sent_body(self) -> bytes:
        """What the attempt in flight sends."""
        return self.body if self.content is None else self.content.body

    @property
    def finished(self) -> bool:
        """Whether no attempt will follow."""
        return self.phase in FINISHED


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a publish: the message's id, and whether an earlier publish is meant by it."""

    message_id: str
    url: str
    deduplicated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt brought. `status` is 0 and `error` set when there was no HTTP response."""

    status: int = 0
    headers: HeaderPairs = ()
    body: bytes = b""
    error: str | None = None
    timed_out: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the destination took the message: any 2xx (13.2)."""
        return 200 <= self.status < 300

    @property
    def retryable(self) -> bool:
        """Whether a failed attempt may be repeated: all but 489 with its header (13.2)."""
        if self.status != NON_RETRYABLE_STATUS:
            return True
        wanted = HEADER_NON_RETRYABLE.lower()
        return not any(
            name.lower() == wanted and value.strip().lower() == "true" for name, value in self.headers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An entry of the dead letter queue: the message and its last failed attempt."""

    dlq_id: str
    message: Message
    outcome: Outcome
    entered_ms: int

    @property
    def can_be_retried(self) -> bool:
        """False for a step of a workflow: its run has failed with it."""
        part = self.message.spec.workflow
        return part is None or part.role is Role.FAILURE_CALL


class LogState(str, Enum):
    """The states of a log entry, in the SDKs' spelling (protocol 9.2)."""

    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    ERROR = "ERROR"
    RETRY = "RETRY"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCELED = "CANCELED"


@dataclass(slots=True, kw_only=True, eq=False)
class LogEntry:
    """One line of a message's history. Times are Unix milliseconds."""

    seq: int
    time_ms: int
    state: LogState
    message: Message
    outcome: Outcome | None = None
    next_delivery_ms: int | None = None


@dataclass(slots=True, kw_only=True)
class Recovered:
    """What a store held when it was opened; every list in order of acceptance."""

    messages: list[Message] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    deduplication: list[Deduplication] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplication:
    """The memory of one publish: until `expires_at` (Unix seconds) `key` means this message."""

    account: str
    key: str
    message_id: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What is neither a message nor a memory of one, such as the settings of a queue.

    `account`, `kind` and `key` name it; `data` is what JSON has, with names as keys.
    """

    account: str
    kind: str
    key: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRecord:
    """A queue's settings. Times are Unix milliseconds."""

    account: str
    name: str
    parallelism: int
    created_ms: int
    updated_ms: int
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlGroup:
    """A URL group: its endpoints in order, each URL with its name or None. Times are Unix milliseconds.

    `headers` are the default headers of every publish to it.
    """

    account: str
    name: str
    created_ms: int
    updated_ms: int
    endpoints: dict[str, str | None]
    headers: HeaderPairs = ()
