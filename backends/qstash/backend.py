"""Publish envelopes to QStash."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from queuebridge.backend import Backend, Capabilities, Publication, read_options
from queuebridge.backends.qstash.batching import in_batches
from queuebridge.backends.qstash.protocol import DEFAULT_BASE_URL, DEFAULT_DEV_USER
from queuebridge.backends.qstash.settings import PublishSettings
from queuebridge.errors import (
    BackendUnavailable,
    ConfigurationError,
    MissingExtra,
    OptionNotSupported,
    PayloadTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
)
from queuebridge.failures import ping_failure, redact
from queuebridge.parking import HOP_TOLERANCE_SECONDS
from queuebridge.receipt import Write
from queuebridge.registry import TaskRegistry
from queuebridge.retry import RetryPolicy
from queuebridge.runner import Runner
from queuebridge.settings import DEV_PUBLIC_URL, DEV_SERVER_URL, Settings, read_settings

if TYPE_CHECKING:
    from queuebridge.backends.qstash.options import QStashOptions
    from queuebridge.backends.qstash.transport import QStashHttp

# The receiver must be able to answer that the task timed out before QStash hangs up.
_ANSWER_SECONDS = 5

# QStash reads a comma as the end of a label, and a header takes nothing but ASCII.
_LABEL_CHARACTERS = "".join(map(chr, range(0x21, 0x7F))).replace(",", "")


class QStashBackend(Backend):
    """Publishes envelopes to QStash, which pushes them to the receiver.

    Args:
        token: The QStash token.
        url: The address of the QStash API.
        destination: The address of the receiver's `deliver` endpoint; None refuses every publish.
        failure_callback: The address that QStash calls for a message that it gives up.
        publish_timeout_seconds: How long one enqueue may take in all.
        max_bytes: The largest body.
        max_delay_seconds: The longest delay of one message; a longer one is made in hops.
        reach_retries: How often QStash tries to reach the receiver again, where the ledger counts the attempts.
        clock: The time in Unix seconds.

    Raises:
        ConfigurationError: The token cannot be one.
    """

    name = "qstash"
    capabilities = Capabilities(
        delay=True,
        deduplication=True,
        publish_retry=True,
        reasons={"priority": "QStash has no priorities. Use a FIFO queue or flow control (options={'qstash': ...})."},
    )

    def __init__(
        self,
        token: str,
        *,
        url: str = DEFAULT_BASE_URL,
        destination: str | None,
        failure_callback: str | None = None,
        publish_timeout_seconds: float = 5.0,
        max_bytes: int = 1_000_000,
        max_delay_seconds: float = 7 * 86_400.0,
        reach_retries: int = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not token.isascii() or not token.isprintable() or " " in token:
            # An HTTP library would show the whole token in its own error.
            raise ConfigurationError(
                "QSTASH_TOKEN has characters that no token has, such as spaces, line breaks or curly quotes. Copy "
                "it again from the QStash console."
            )
        self._token = token
        self._url = url
        self._destination = destination
        self._failure_callback = failure_callback
        self._timeout = publish_timeout_seconds
        self._max_bytes = max_bytes
        self._max_delay = max_delay_seconds
        self._reach_retries = reach_retries
        self._clock = clock
        self._http: QStashHttp | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def check(self, publication: Publication) -> None:
        """Refuse what QStash cannot carry; see `Backend.check`."""
        if self._destination is None:
            raise ConfigurationError(
                "QStash does not know where to deliver: set QUEUEBRIDGE_PUBLIC_URL to the public address of the "
                "receiver, such as https://api.example.com."
            )
        if not self._destination.isascii():
            raise ConfigurationError(
                f"QUEUEBRIDGE_PUBLIC_URL: write {self._destination!r} in ASCII, the host as xn--... and the path "
                "percent-encoded."
            )
        if len(publication.body) > self._max_bytes:
            raise PayloadTooLarge(self.name, len(publication.body), self._max_bytes)
        options = _options(publication)
        if options is not None and options.queue is not None:
            for option, used in (
                ("countdown/eta", publication.deliver_at_ms is not None),
                ("flow_control", options.flow_control is not None),
            ):
                if used:
                    raise OptionNotSupported(self.name, option, "a message on a FIFO queue cannot have it.")

    def publish(self, publication: Publication) -> Write:
        """Publish one message; see `Backend.publish`."""
        connect = self._connector()
        from qstash.message import MessageApi

        from queuebridge.backends.qstash.transport import with_retries

        arguments = self._arguments(publication)
        # Without a queue the SDK publishes, with one it enqueues: two calls with the same arguments.
        queue = arguments.pop("queue", None)

        def send(deadline: float) -> Write:
            messages = MessageApi(connect().until(deadline))
            answer = messages.enqueue(queue=queue, **arguments) if queue else messages.publish(**arguments)
            return _write(
                publication,
                {
                    "messageId": answer.message_id,  # type: ignore[union-attr]  # a list only for URL groups
                    "deduplicated": answer.deduplicated,  # type: ignore[union-attr]
                },
            )

        return with_retries(
            send,
            timeout=self._timeout,
            retry=publication.retry is not False,
            job_id=publication.envelope.job_id,
        )

    def publish_many(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        """Publish through the batch interface, in requests of bounded size; see `Backend.publish_many`.

        Each request has the whole publish timeout. After one that found QStash unreachable, the rest is not tried.
        """
        results: list[Write | Exception] = []
        for batch in in_batches(publications):
            results.extend(self._publish_batch(batch))
            last = results[-1]
            if isinstance(last, BackendUnavailable | PublishOutcomeUnknown) and len(results) < len(publications):
                skipped = BackendUnavailable(
                    self.name, "not sent, because QStash could not be reached with an earlier part of the batch."
                )
                results.extend([skipped] * (len(publications) - len(results)))
                break
        return results

    def _publish_batch(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        connect = self._connector()
        from qstash.message import BatchRequest, prepare_batch_message_body

        from queuebridge.backends.qstash.transport import with_retries

        requests: list[BatchRequest] = [
            {**self._arguments(publication), "body": publication.body.decode()}  # type: ignore[typeddict-item]
            for publication in publications
        ]
        body = prepare_batch_message_body(requests)

        def send(deadline: float) -> list[Write | Exception]:
            # Not MessageApi.batch: it fails with KeyError on the whole answer when one message was refused.
            http = connect()
            answers = http.until(deadline).request(
                path="/v2/batch", method="POST", headers={"Content-Type": "application/json"}, body=body
            )
            if not isinstance(answers, list) or len(answers) != len(publications):
                raise TypeError("A batch is answered with one element for each message.")
            return [
                _write(publication, answer)
                if "messageId" in answer
                else PublishRejected(self.name, f"it refused the job: {http.readable(_reason(answer))}.")
                for publication, answer in zip(publications, answers, strict=True)
            ]

        try:
            return with_retries(
                send,
                timeout=self._timeout,
                retry=all(publication.retry is not False for publication in publications),
                job_id=publications[0].envelope.job_id,
            )
        except PublishOutcomeUnknown as error:
            reason = error.reason.removesuffix(f" The job {error.job_id} may or may not have been accepted.")
            return [PublishOutcomeUnknown(self.name, reason, p.envelope.job_id) for p in publications]
        except PublishError as error:
            return [error] * len(publications)

    def cancel(self, message_ids: Sequence[str]) -> None:
        """Cancel messages that are not delivered yet (protocol 5); see `Backend.cancel`."""
        connect = self._connector()
        from qstash.message import MessageApi

        from queuebridge.backends.qstash.transport import with_retries

        with_retries(
            lambda deadline: MessageApi(connect().until(deadline)).cancel_many(list(message_ids)),
            timeout=self._timeout,
            retry=False,
            job_id="-",
        )

    def ping(self) -> str:
        """Ask QStash for a resource that needs the token; see `Backend.ping`."""
        connect = self._connector()
        from queuebridge.backends.qstash.transport import with_retries

        try:
            with_retries(
                lambda deadline: connect().until(deadline).request(path="/v2/queues", method="GET"),
                timeout=self._timeout,
                retry=False,
                job_id="-",
            )
        except PublishOutcomeUnknown as error:
            raise ping_failure(error) from error
        return f"QStash at {redact(self._url)} accepts the token"

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None

    def _connector(self) -> Callable[[], QStashHttp]:
        """Return a function that returns the client in use, and makes one if there is none.

        Raises:
            MissingExtra: The SDK is not installed; so this comes first wherever the SDK is used.
        """
        try:
            from queuebridge.backends.qstash.transport import QStashHttp
        except ModuleNotFoundError as error:
            raise MissingExtra("Publishing to QStash", error.name or "qstash", "qstash") from error

        def connect() -> QStashHttp:
            http = self._http
            if http is None or self._owner != os.getpid():
                with self._lock:
                    http = self._http
                    if http is None or self._owner != os.getpid():
                        # A forked process must not use its parent's connections: each would read the other's answers.
                        http = self._http = QStashHttp(self._token, self._url)
                        self._owner = os.getpid()
            return http

        return connect

    def _arguments(self, publication: Publication) -> dict[str, Any]:
        """Return the arguments of the SDK's publish calls; those that are None are left out by the SDK."""
        envelope = publication.envelope
        arguments: dict[str, Any] = {
            "url": self._destination,
            "body": publication.body,
            "content_type": "application/json",
            "retries": self._retries(publication),
            "retry_delay": _retry_delay_expression(envelope.retry),
            "deduplication_id": envelope.deduplication_id,
            "label": _label(envelope.task, envelope.queue),
            "failure_callback": self._failure_callback,
        }
        if envelope.timeout_seconds is not None:
            arguments["timeout"] = math.ceil(envelope.timeout_seconds) + _ANSWER_SECONDS
        if publication.delay_seconds is not None:
            arguments["delay"] = f"{max(1, math.ceil(min(publication.delay_seconds, self._max_delay)))}s"
        elif publication.deliver_at_ms is not None:
            # Whole seconds, rounded up: a job must not start before its time.
            arguments["not_before"] = math.ceil(self._next_hop(publication))
        options = _options(publication)
        if options is not None:
            # The names are those of the SDK.
            arguments.update(options.model_dump(exclude_none=True))
            if publication.delay_seconds is not None:
                # Put off because it is busy. A FIFO queue knows no delays, and would hold up all that is behind it.
                arguments.pop("queue", None)
        return arguments

    def _retries(self, publication: Publication) -> int:
        wanted = publication.envelope.retry.retries
        # Counted by claims, attempts are no business of the transport: its retries are for reaching the receiver.
        return max(wanted, self._reach_retries) if publication.counted_by_ledger else wanted

    def _next_hop(self, publication: Publication) -> float:
        """Return when to have a message delivered, in Unix seconds: at its time, or on the way there."""
        deliver_at = (publication.deliver_at_ms or 0) / 1000
        now = max(self._clock(), publication.envelope.enqueued_at_ms / 1000)
        delay = deliver_at - now
        if delay <= self._max_delay:
            return deliver_at
        if delay < self._max_delay + 2 * HOP_TOLERANCE_SECONDS:
            # The rest must be longer than what clocks differ by, or the receiver would not see that it is early.
            return now + delay / 2
        return now + self._max_delay


def _write(publication: Publication, answer: Mapping[str, Any]) -> Write:
    message_id = answer["messageId"]
    if not isinstance(message_id, str) or not message_id:
        raise TypeError("A message id is text.")
    # Without a key of the caller's, what QStash had already can only be an earlier attempt of this very publish.
    deduplicated = bool(answer.get("deduplicated")) and publication.envelope.idempotency_key is not None
    return Write(backend=QStashBackend.name, message_id=message_id, deduplicated=deduplicated)


def _reason(answer: Mapping[str, Any]) -> str:
    return str(answer.get("error") or "no reason given")


def _options(publication: Publication) -> QStashOptions | None:
    if not publication.options:
        return None
    # Not at the top: most jobs have none, and a receiver that starts cold does not need them.
    from queuebridge.backends.qstash.options import QStashOptions

    return read_options(QStashOptions, QStashBackend.name, publication.options)


@lru_cache(maxsize=1024)
def _label(task: str, queue: str) -> str:
    """Return the labels of a message: the logs of QStash can be filtered by task and by queue."""
    return f"{quote(task, safe=_LABEL_CHARACTERS)},{quote(queue, safe=_LABEL_CHARACTERS)}"


def _retry_delay_expression(retry: RetryPolicy) -> str | None:
    """Return the policy as a QStash expression; None where QStash's own backoff has to do."""
    if not retry.delays:
        return f"min({round(retry.cap * 1000)}, {round(retry.base * 1000)} * pow(2, retried))"
    return str(round(retry.delays[0] * 1000)) if len(set(retry.delays)) == 1 else None


def create_backend(
    settings: Settings,
    environ: Mapping[str, str],
    registry: TaskRegistry,  # noqa: ARG001 - the same signature for every backend
    runner: Runner,  # noqa: ARG001
) -> QStashBackend:
    """Return the backend, configured from the environment.

    Raises:
        ConfigurationError: There is no token.
    """
    chosen = read_settings(PublishSettings, environ)
    public_url = settings.public_urls[0] if settings.public_urls else None
    # Only where nothing at all was chosen: who asks for QStash and forgets the token shall be told so.
    if chosen.uses_embedded_server and settings.backend is None and not settings.production:
        token, url = DEFAULT_DEV_USER.token, DEV_SERVER_URL
        public_url = public_url or DEV_PUBLIC_URL
    elif chosen.token is None:
        raise ConfigurationError(
            "The qstash backend needs QSTASH_TOKEN: copy it from the QStash console. For development without an "
            "account run `queuebridge dev`, which starts an embedded server and prints the variables to set."
        )
    else:
        token, url = chosen.token.get_secret_value(), chosen.url or DEFAULT_BASE_URL
    receiver = f"{public_url}{settings.prefix}" if public_url else None
    return QStashBackend(
        token,
        url=url,
        destination=f"{receiver}/deliver" if receiver else None,
        failure_callback=f"{receiver}/failed" if receiver and chosen.failure_callback else None,
        publish_timeout_seconds=chosen.publish_timeout_seconds,
        max_bytes=chosen.max_bytes,
        max_delay_seconds=chosen.max_delay_seconds,
        reach_retries=chosen.reach_retries,
    )
