"""Publish envelopes through a Celery app."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

import celery
import kombu
from kombu import pools
from kombu.exceptions import LimitExceeded

from queuebridge.backend import Backend, Capabilities, Publication, read_options
from queuebridge.backends.celery.configured_app import longest_delay, make_app
from queuebridge.backends.celery.delays import with_delay
from queuebridge.backends.celery.failures import connection_errors, failure
from queuebridge.backends.celery.message import HEADER, NATIVE_HEADERS, encode_header
from queuebridge.backends.celery.native import from_envelope
from queuebridge.backends.celery.options import MAX_PRIORITY, CeleryOptions
from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.backends.celery.workers import safety_queue, strangers
from queuebridge.errors import BackendUnavailable, InvalidOption, OptionNotSupported, PublishOutcomeUnknown
from queuebridge.failures import ping_failure, redact
from queuebridge.receipt import Write
from queuebridge.registry import TaskRegistry
from queuebridge.runner import Runner
from queuebridge.settings import Settings, read_settings
from queuebridge.stages import Role

# The runner first raises inside the task, which ends as a time-out; only if that has no effect is it killed.
_KILL_AFTER_SECONDS = 10


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
        if envelope.priority is not None and not 0 <= envelope.priority <= MAX_PRIORITY:
            raise InvalidOption("priority", f"Celery knows 0 to {MAX_PRIORITY}, not {envelope.priority}.")
        if envelope.kind == "celery":
            # What it says besides is what the app has always said to its broker.
            from_envelope(envelope)
            return
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
        try:
            if publication.envelope.kind == "celery":
                self._send_native(publication, producer)
            else:
                self._send_task(publication, producer)
        except connection_errors() as error:
            # A connection that failed once is not used again.
            producer.connection.collect()
            raise failure(error, publication.envelope.job_id) from error
        return Write(backend=self.name, message_id=publication.envelope.job_id)

    def _send_native(self, publication: Publication, producer: Any) -> None:
        """Hand a message of an existing application to the broker as its app would."""
        envelope = publication.envelope
        message = from_envelope(envelope)
        given = _options(publication).model_dump(exclude_unset=True) if publication.options else {}
        retry = publication.retry if publication.retry is not None else self.app.conf.task_publish_retry
        key = message.routing_key
        if envelope.not_before_ms is not None:
            # One that is published again, after its time, must not wait once more.
            key = with_delay(key, envelope.not_before_ms / 1000 - time.time())
        routing: dict[str, Any] = {"exchange": message.exchange, "routing_key": key}
        declared = [self.app.amqp.queues[message.queue]] if message.queue is not None else []
        if envelope.role is Role.SAFETY:
            # Only a worker that claims may take it.
            safety = safety_queue(self.app, envelope.queue)
            routing = {"exchange": "", "routing_key": safety.name}
            declared = [safety]
        producer.publish(
            message.body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={**message.headers, HEADER: str(encode_header(envelope))},
            **routing,
            declare=declared,
            retry=retry,
            retry_policy={
                **(given.get("retry_policy") or self.app.conf.task_publish_retry_policy),
                "errback": _until(time.monotonic() + self._timeout),
            },
            confirm_timeout=self._timeout,
            **message.properties,
        )

    def _send_task(self, publication: Publication, producer: Any) -> None:
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

    def ping(self) -> str:
        """Connect to the broker; see `Backend.ping`."""
        try:
            with self._connection() as connection:
                connection.ensure_connection(
                    errback=_until(time.monotonic() + self._timeout), max_retries=1, interval_start=0
                )
                return f"broker {redact(connection.as_uri())} answers"
        except connection_errors() as error:
            raise ping_failure(failure(error, "-")) from error

    def strangers(self) -> Mapping[str, Sequence[str]]:
        """Ask the workers whether they claim; see `Backend.strangers`."""
        self.ping()
        try:
            return strangers(self.app)
        except connection_errors() as error:
            raise ping_failure(failure(error, "-")) from error

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


def _options(publication: Publication) -> CeleryOptions:
    return read_options(CeleryOptions, CeleryBackend.name, publication.options)


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
