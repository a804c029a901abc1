"""What is known of an app and its tasks before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from queuebridge.backends.celery.inventory.records import Place

# How `max_retries=None` is noted among options, where None would mean that nothing was said.
UNLIMITED = "unlimited"


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What lies outside the app and decides what can move.

    Attributes:
        push_timeout_seconds: How long QStash waits for the receiver at most.
        push_max_bytes: The largest body of a push message.
        push_max_delay_seconds: The longest delay of one push message; longer ones go in hops.
        ledger: Whether a ledger is configured.
        ledger_key: Whether it may store jobs that nobody can look into.
    """

    push_timeout_seconds: float = 900.0
    push_max_bytes: int = 1_000_000
    push_max_delay_seconds: float = 604_800.0
    ledger: bool = False
    ledger_key: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the ledger has seen of a task.

    Attributes:
        dispatches: How many dispatches it knows.
        longest_ms: The longest run; None if none has ended.
        largest_bytes: The largest arguments, as far as the ledger shows them; None if it shows none.
        cut: Whether there are larger ones, of which the ledger shows only the beginning.
    """

    dispatches: int
    longest_ms: int | None
    largest_bytes: int | None
    cut: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueFacts:
    """A declared queue.

    Attributes:
        name, exchange, exchange_type, routing_key: As declared.
        broadcast: Whether each worker gets each message.
        arguments: Its arguments at the broker, such as `x-max-priority`.
    """

    name: str
    exchange: str
    exchange_type: str
    routing_key: str
    broadcast: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleFacts:
    """An entry of `beat_schedule`.

    Attributes:
        name: The name of the entry.
        task: The task that it publishes.
        when: The schedule in words.
        options: Options of the publication.
    """

    name: str
    task: str
    when: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AppFacts:
    """An app.

    Attributes:
        name: Its name.
        path: How it was named, as `package.module:attribute`.
        broker: The broker's address, without its password.
        broker_kind: The scheme of that address.
        visibility_timeout_seconds: After how long a Redis broker delivers again; None for brokers that do not.
        result_backend: The result backend, without its password; None if there is none.
        accept_content: The serializers that workers and the receiver take, by name or content type.
        settings: Settings that are not the default of Celery, among those that matter here.
        queues: The declared queues, by name.
        schedules: What beat publishes.
        custom: Parts of Celery that the app replaces: what, and by what.
        own_sending: Whether it has a function of its own through which messages are sent.
    """

    name: str
    path: str
    broker: str
    broker_kind: str
    visibility_timeout_seconds: float | None
    result_backend: str | None
    accept_content: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    queues: Mapping[str, QueueFacts] = field(default_factory=dict)
    schedules: tuple[ScheduleFacts, ...] = ()
    custom: Mapping[str, str] = field(default_factory=dict)
    own_sending: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """A registered task.

    Attributes:
        name: Its name.
        module, qualname: Where it is defined.
        place: The same, as file and line; None if the source is not at hand.
        bound: Whether its function takes the task as its first argument.
        pydantic: Whether Celery turns its arguments into pydantic models.
        bases: Its base classes other than Celery's.
        request: The class of its requests, if it is not Celery's.
        strategy: Its execution strategy, if it is not Celery's.
        options: Options that are set, be it on the task or for all by the app.
        route: Where it is routed to by the app: `queue`, `exchange`, `routing_key`, `priority`, ...
        own_backend: Whether it has a result backend of its own.
    """

    name: str
    module: str
    qualname: str
    place: Place | None = None
    bound: bool = False
    pydantic: bool = False
    bases: tuple[str, ...] = ()
    request: str | None = None
    strategy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    route: Mapping[str, Any] = field(default_factory=dict)
    own_backend: bool = False
