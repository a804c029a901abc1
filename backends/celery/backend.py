"""Publish envelopes through a Celery app."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlsplit

import celery
import kombu
from kombu import pools
from kombu.compression import get_encoder
from kombu.exceptions import KombuError, LimitExceeded, OperationalError
from kombu.transport import TRANSPORT_ALIASES
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from queuebridge.backend import Backend, Capabilities, Publication, read_options
from queuebridge.backends.celery.message import HEADER, NATIVE_HEADERS, encode_header
from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidOption,
    MissingExtra,
    OptionNotSupported,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
)
from queuebridge.failures import ping_failure, publish_failure, redact
from queuebridge.loading import import_attribute
from queuebridge.receipt import Write
from queuebridge.registry import TaskRegistry
from queuebridge.runner import Runner
from queuebridge.settings import Settings, read_settings

# The runner first raises inside the task, which ends as a time-out; only if that has no effect is it killed.
_KILL_AFTER_SECONDS = 10
_MAX_PRIORITY = 255
_WITH_PORT = ("amqp", "amqps", "pyamqp", "redis", "rediss", "sentinel")
# Names, because the libraries need not be installed: how a broker says that it does not want us.
_REFUSALS = frozenset({"AccessRefused", "NotAllowed", "AuthenticationError", "NoPermissionError"})


def _known_compression(name: str) -> str:
    try:
        get_encoder(name)
    except KeyError:
        raise ValueError("kombu knows no such compression here; gzip, bzip2 and lzma are always there") from None
    return name


class PublishRetryPolicy(BaseModel):
    """How a failed publish is tried again, within the publish timeout. As Celery's `retry_policy`."""

    model_config = ConfigDict(extra="forbid")

    max_retries: Annotated[int, Field(ge=0)] | None = None
    interval_start: Annotated[float, Field(ge=0)] = 0
    interval_step: Annotated[float, Field(ge=0)] = 0
    interval_max: Annotated[float, Field(ge=0)] = 0
    retry_errors: tuple[type[Exception], ...] | None = None


class CeleryOptions(BaseModel):
    """`options={"celery": {...}}`: what only Celery knows; the names are those of `apply_async`."""

    model_config = ConfigDict(extra="forbid")

    exchange: str | None = None
    routing_key: str | None = None
    compression: Annotated[str, AfterValidator(_known_compression)] | None = None
    shadow: str | None = None
    ignore_result: bool | None = None
    priority: Annotated[int, Field(ge=0, le=_MAX_PRIORITY)] | None = None
    retry_policy: PublishRetryPolicy | None = None


class CeleryBackend(Backend):
    """Publishes envelopes as messages of a Celery app.

    Args:
        app: The app.
        default_queue: The bridge's name for the app's own default queue; jobs on it are routed by the app.
        publish_timeout_seconds: How long one publish waits for the broker.
    """

    name = "celery"
    capabilities = Capabilities(
        delay=True,
        priority=True,
        publish_retry=True,
        reasons={
            "idempotency_key": "a broker does not know which jobs it had before. Use task_id= to recognise a job, "
            "and make the task itself repeatable."
        },
    )

    def __init__(
        self, app: celery.Celery, *, default_queue: str = "default", publish_timeout_seconds: float = 5.0
    ) -> None:
        self.app = app
        self._default_queue = default_queue
        self._timeout = publish_timeout_seconds

    def check(self, publication: Publication) -> None:
        """Refuse what Celery cannot carry; see `Backend.check`."""
        envelope = publication.envelope
        if publication.options and _options(publication).priority is not None and envelope.priority is not None:
            raise InvalidOption("options['celery'] priority", "give it or priority= (the task's included), not both.")
        if envelope.priority is not None and not 0 <= envelope.priority <= _MAX_PRIORITY:
            raise InvalidOption("priority", f"Celery knows 0 to {_MAX_PRIORITY}, not {envelope.priority}.")
        for name in envelope.headers:
            if name == HEADER or name in NATIVE_HEADERS:
                raise InvalidOption("headers", f"the name {name!r} is one that Celery and queuebridge use themselves.")
        if (
            self._longest_delay is not None
            and envelope.timeout_seconds is not None
            and envelope.timeout_seconds + _KILL_AFTER_SECONDS > self._longest_delay
        ):
            raise OptionNotSupported(
                self.name,
                "timeout",
                f"a Redis broker gives a job to a second worker after its visibility timeout of "
                f"{self._longest_delay:.0f} s, so that one of up to {envelope.timeout_seconds:.0f} s could run twice "
                "at once. Raise QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS (or visibility_timeout in the app's "
                "broker_transport_options).",
            )
        if envelope.not_before_ms is not None:
            delay = (envelope.not_before_ms - envelope.enqueued_at_ms) / 1000
            if self._longest_delay is not None and delay > self._longest_delay:
                raise OptionNotSupported(
                    self.name,
                    "countdown/eta",
                    f"a Redis broker delivers a message again that waits longer than its visibility timeout of "
                    f"{self._longest_delay:.0f} s, so that a delay of {delay:.0f} s would run the job several times. "
                    "Raise QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS (or visibility_timeout in the app's "
                    "broker_transport_options).",
                )

    def publish(self, publication: Publication) -> Write:
        """Send one message; see `Backend.publish`."""
        with self._producer() as producer:
            return self._send(publication, producer)

    def publish_many(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        """Send several messages over one connection; brokers have no batch interface.

        After one that found the broker unreachable, the rest is not tried.
        """
        results: list[Write | Exception] = []
        try:
            with self._producer() as producer:
                for publication in publications:
                    results.append(self._try_send(publication, producer))
                    if isinstance(results[-1], BackendUnavailable | PublishOutcomeUnknown):
                        break
        except BackendUnavailable as error:
            return [error] * len(publications)
        skipped = BackendUnavailable(
            self.name, "not sent, because the broker could not be reached with an earlier job."
        )
        return results + [skipped] * (len(publications) - len(results))

    def _try_send(self, publication: Publication, producer: Any) -> Write | Exception:
        try:
            return self._send(publication, producer)
        except Exception as error:  # noqa: BLE001 - each is reported to the caller, with its job
            return error

    def _send(self, publication: Publication, producer: Any) -> Write:
        envelope = publication.envelope
        more: dict[str, Any] = {}
        if envelope.queue != self._default_queue:
            more["queue"] = envelope.queue
        if publication.options:
            # Of the policy what was given and nothing else: Celery has defaults of its own.
            more.update(_options(publication).model_dump(exclude_unset=True))
        if envelope.priority is not None:
            more["priority"] = envelope.priority
        if envelope.not_before_ms is not None:
            more["eta"] = _datetime(envelope.not_before_ms)
        if envelope.expires_at_ms is not None:
            more["expires"] = _datetime(envelope.expires_at_ms)
        if envelope.timeout_seconds is not None:
            more["time_limit"] = envelope.timeout_seconds + _KILL_AFTER_SECONDS
        if publication.retry is not None:
            more["retry"] = publication.retry
        policy = {**(more.pop("retry_policy", None) or {}), "errback": _until(time.monotonic() + self._timeout)}
        try:
            self.app.send_task(
                envelope.task,
                args=envelope.args,
                kwargs=envelope.kwargs,
                task_id=envelope.job_id,
                headers={**envelope.headers, HEADER: encode_header(envelope)},
                producer=producer,
                retry_policy=policy,
                confirm_timeout=self._timeout,
                **more,
            )
        except _connection_errors() as error:
            # A connection that failed once is not used again.
            producer.connection.collect()
            raise _failure(error, envelope.job_id) from error
        return Write(backend=self.name, message_id=envelope.job_id)

    def ping(self) -> str:
        """Connect to the broker; see `Backend.ping`."""
        try:
            with self._connection() as connection:
                connection.ensure_connection(
                    errback=_until(time.monotonic() + self._timeout), max_retries=1, interval_start=0
                )
                return f"broker {redact(connection.as_uri())} answers"
        except _connection_errors() as error:
            raise ping_failure(_failure(error, "-")) from error

    def close(self) -> None:
        """Close the connections that were opened here; the app's own stay as they are."""
        producers = self.__dict__.pop("_producers", None)
        if producers is not None:
            producers.force_close_all()
            producers.connections.force_close_all()

    @cached_property
    def _producers(self) -> Any:
        # Not the app's own: only these connections wait no longer than the publish timeout.
        limit = self.app.conf.broker_pool_limit
        return pools.ProducerPool(connections=self._connection().Pool(limit), limit=limit)

    @contextmanager
    def _producer(self) -> Iterator[Any]:
        try:
            acquired = self._producers.acquire(block=True, timeout=self._timeout)
        except LimitExceeded as error:
            raise BackendUnavailable(
                self.name, f"all {error.args[0]} connections are in use; raise broker_pool_limit of the Celery app."
            ) from error
        with acquired as producer:
            yield producer

    def _connection(self) -> kombu.Connection:
        """Return a connection, not yet established, on which nothing waits longer than the publish timeout."""
        connection = self.app.connection_for_write(connect_timeout=self._timeout)
        own: dict[str, Any] = {}
        if connection.transport.driver_name == "py-amqp":
            # Without confirmation a message is accepted as soon as it has left this machine.
            own = {"confirm_publish": True, "read_timeout": self._timeout, "write_timeout": self._timeout}
        elif connection.transport.driver_type == "redis":
            own = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        configured = self.app.conf.broker_transport_options or {}
        return self.app.connection_for_write(connect_timeout=self._timeout, transport_options={**own, **configured})

    @cached_property
    def _longest_delay(self) -> float | None:
        return longest_delay(self.app)


def longest_delay(app: celery.Celery) -> float | None:
    """Return the visibility timeout of the app's broker in seconds, None for brokers that have none.

    A broker of this kind gives a message that waits longer in a worker to another one too.
    """
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    if not str(url).startswith(("redis", "rediss", "sentinel")):
        return None
    return float((app.conf.broker_transport_options or {}).get("visibility_timeout", 3600))


def make_app(settings: CelerySettings, *, default_queue: str) -> celery.Celery:
    """Return a Celery app for the configured broker.

    Raises:
        ConfigurationError: No broker is configured, or its address is none.
        MissingExtra: The broker is Redis, and its client library is not installed.
    """
    if settings.app is not None:
        app = import_attribute(settings.app, variable="QUEUEBRIDGE_CELERY_APP")
        if not isinstance(app, celery.Celery):
            raise ConfigurationError(
                f"QUEUEBRIDGE_CELERY_APP={settings.app!r} is a {type(app).__name__}, not a Celery app."
            )
        return app
    if settings.broker_url is None:
        raise ConfigurationError(
            "The celery backend needs CELERY_BROKER_URL (such as redis://localhost:6379/0 or "
            "amqp://user:password@localhost//), or QUEUEBRIDGE_CELERY_APP=package.module:app."
        )
    broker = settings.broker_url.get_secret_value()
    _check_address(broker)
    if broker.startswith(("redis", "sentinel")):
        try:
            import redis  # noqa: F401 - kombu's own error does not say what to install
        except ModuleNotFoundError as error:
            raise MissingExtra("A Redis broker", "redis", "redis") from error
    app = celery.Celery("queuebridge", broker=broker, backend=_secret(settings.result_backend), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        result_serializer="json",
        task_default_queue=default_queue,
        task_ignore_result=settings.result_backend is None,
        task_serializer="json",
        # Each job is acknowledged after it ran; with more than one reserved, others would wait behind a long one.
        worker_prefetch_multiplier=1,
    )
    if broker.startswith(("redis", "sentinel")):
        app.conf.broker_transport_options = {"visibility_timeout": settings.visibility_timeout_seconds}
    return app


def _check_address(broker: str) -> None:
    # Not by kombu: it imports the transport, whose library need not be installed.
    scheme = broker.partition("://")[0].partition("+")[0] if "://" in broker else "amqp"
    known = scheme in TRANSPORT_ALIASES or "." in scheme
    if scheme in _WITH_PORT:
        try:
            _ = urlsplit(broker.partition(";")[0]).port
        except ValueError:
            known = False
    if not known:
        # Not the value: it may hold a password.
        raise ConfigurationError(
            "CELERY_BROKER_URL is not the address of a broker, such as redis://localhost:6379/0 or "
            "amqp://user:password@localhost//."
        )


def create_backend(
    settings: Settings,
    environ: Mapping[str, str],
    registry: TaskRegistry,  # noqa: ARG001 - the same signature for every backend
    runner: Runner,  # noqa: ARG001
) -> CeleryBackend:
    """Return the backend, configured from the environment."""
    chosen = read_settings(CelerySettings, environ)
    return CeleryBackend(
        make_app(chosen, default_queue=settings.default_queue),
        default_queue=settings.default_queue,
        publish_timeout_seconds=chosen.publish_timeout_seconds,
    )


def _until(deadline: float) -> Callable[[Exception, float], None]:
    """Return what kombu calls after each failure: it ends the retries when the deadline has come."""

    def give_up(error: Exception, _interval: float = 0) -> None:
        if time.monotonic() >= deadline:
            raise error

    return give_up


def _failure(error: Exception, job_id: str) -> PublishError:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _REFUSALS:
            return PublishRejected(
                CeleryBackend.name,
                f"the broker does not accept our user, password or virtual host ({redact(str(cause))}). Check "
                "CELERY_BROKER_URL.",
            )
        if type(cause).__name__ == "MessageNacked":
            return BackendUnavailable(CeleryBackend.name, "the broker did not take the message; is its queue full?")
        cause = cause.__cause__ or cause.__context__
    return publish_failure(CeleryBackend.name, error, job_id)


def _connection_errors() -> tuple[type[Exception], ...]:
    errors: tuple[type[Exception], ...] = (OperationalError, KombuError, OSError)
    # With retry=False kombu lets the errors of its transports through as they are.
    for module, name in (
        ("redis.exceptions", "RedisError"),
        ("amqp.exceptions", "AMQPError"),
        ("amqp.exceptions", "MessageNacked"),
    ):
        if module in sys.modules:
            errors += (getattr(sys.modules[module], name),)
    return errors


def _options(publication: Publication) -> CeleryOptions:
    return read_options(CeleryOptions, CeleryBackend.name, publication.options)


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None
