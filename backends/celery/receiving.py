"""Run pushed Celery messages in the receiver, through Celery's own request and tracer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import celery
from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app import trace
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import loads, prepare_accept_content

from queuebridge.backends.celery.execution import check_signature, claimed_execution, outcome_of, outcome_of_error
from queuebridge.backends.celery.forwarding import parameter_names
from queuebridge.backends.celery.native import NativeMessage, from_envelope
from queuebridge.backends.celery.receiver_app import receiver_app
from queuebridge.backends.celery.requeueing import requeue, serializer_of
from queuebridge.backends.celery.stamps import is_revoked_by_stamps
from queuebridge.context import executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidArguments, LedgerUnavailable, MalformedEnvelope, UnknownTask
from queuebridge.outcome import Outcome, Status
from queuebridge.runnable import Runnable, current_job_of
from queuebridge.timelimit import time_limit

if TYPE_CHECKING:
    from queuebridge.lease import Lease

logger = logging.getLogger(__name__)
_worker_logger = get_logger("celery.worker.strategy")

# After how long a job comes again of which the ledger could not say whether it is revoked.
_LEDGER_SECONDS = 15.0


def find(envelope: Envelope) -> Runnable:
    """Return the task of a message.

    Raises:
        UnknownTask: The app has no such task.
        ConfigurationError: There is no app here.
    """
    app = receiver_app()
    if envelope.task not in app.tasks:
        raise UnknownTask(envelope.task, known=[name for name in app.tasks if not name.startswith("celery.")])
    return PushedTask(app=app, task=app.tasks[envelope.task])


@dataclass(frozen=True)
class PushedTask:
    """A task whose messages are pushed; a `Runnable`.

    Attributes:
        app: The app.
        task: Its task.
    """

    app: celery.Celery
    task: Any

    @property
    def name(self) -> str:
        """Return the name of the task."""
        return str(self.task.name)

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of its positional parameters."""
        return parameter_names(self.app, self.name)

    def check(self, envelope: Envelope) -> None:
        """Decode the message and check its arguments against the signature; see `Runnable.check`.

        Raises:
            InvalidArguments: It cannot be decoded, or the task cannot be called with them.
        """
        args, kwargs, _ = self._payload(self._message(envelope))
        check_signature(self.task, args, kwargs)

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Run the message as a worker would; see `Runnable.execute`."""
        try:
            message = self._message(envelope, redelivered=delivery.attempt > 1)
            body = self._payload(message)
        except InvalidArguments as error:
            return Outcome(status=Status.INVALID_ARGUMENTS, error=error)
        # Everything below asks for the current app, which is one per thread.
        self.app.set_current()
        acknowledgement = _Acknowledgement()
        request = self._request(message, acknowledgement)
        _log_received(request)
        try:
            self._hear_of_revoked_stamps(request)
        except LedgerUnavailable as error:
            return Outcome(status=Status.RETRY, error=error, retry_delay_seconds=_LEDGER_SECONDS)
        if (request.expires or request.id in state.revoked) and request.revoked():
            return Outcome(status=Status.DONE)
        signals.task_received.send(sender=self, request=request)
        pool = _InProcess()
        with (
            executing(current_job_of(envelope, delivery, time.time(), lease)),
            claimed_execution() as claimed,
        ):
            try:
                request.execute_using_pool(pool)
            except TaskRevokedError:
                # By its stamps. Whoever waits for it has been told.
                return Outcome(status=Status.DONE)
        outcome = outcome_of(envelope, claimed.traced) if pool.raised is None else outcome_of_error(pool.raised)
        if outcome.status is Status.RETRY and requeue(
            self.task,
            from_envelope(envelope),
            body,
            queue=envelope.queue,
            serializer=serializer_of(message.content_type),
            compression=message.headers.get("compression"),
        ):
            return Outcome(status=Status.RETRIED, error=outcome.error)
        return outcome

    def _hear_of_revoked_stamps(self, request: Any) -> None:
        forwarding = getattr(self.app, "queuebridge", None)
        chosen = forwarding.forwarding() if forwarding is not None and request.stamped_headers else None
        ledger = chosen.bridge.ledger if chosen is not None else None
        if ledger is not None and is_revoked_by_stamps(ledger, request.stamps):
            # Celery discards it then, and tells everybody.
            state.revoked.add(request.id)

    def _message(self, envelope: Envelope, *, redelivered: bool = False) -> _Message:
        try:
            return _Message(from_envelope(envelope), redelivered=redelivered)
        except MalformedEnvelope as error:
            raise InvalidArguments(envelope.task, [str(error)]) from None

    def _payload(self, message: _Message) -> Any:
        accept = prepare_accept_content(self.app.conf.accept_content)
        try:
            args, kwargs, embed = message.decode(accept)
        except (ContentDisallowed, DecodeError, ValueError, TypeError, KeyError) as error:
            # Not the content: it may have secrets.
            raise InvalidArguments(self.name, [f"the message cannot be decoded: {type(error).__name__}"]) from None
        return args, kwargs, embed

    def _request(self, message: _Message, acknowledgement: _Acknowledgement) -> Any:
        request_class = symbol_by_name(self.task.Request)
        return request_class(
            message,
            on_ack=acknowledgement.ack,
            on_reject=acknowledgement.reject,
            hostname=_hostname(),
            eventer=None,
            app=self.app,
            connection_errors=(),
            task=self.task,
            body=message.body,
            headers=dict(message.headers),
            decoded=False,
            utc=self.app.uses_utc_timezone(),
        )


class _Message:
    """What Celery's request asks of a message that came from a broker."""

    def __init__(self, native: NativeMessage, *, redelivered: bool) -> None:
        self.headers = dict(native.headers)
        self.properties = dict(native.properties)
        self.body = native.body
        self.content_type = native.content_type
        self.content_encoding = native.content_encoding
        self.delivery_info = {
            "exchange": native.exchange,
            "routing_key": native.routing_key,
            "redelivered": redelivered,
        }
        self.delivery_tag = self.headers["id"]
        self.payload: Any = None

    def decode(self, accept: Any) -> Any:
        """Decode the body, if its serializer is accepted."""
        from kombu.compression import decompress

        compression = self.headers.get("compression")
        body = decompress(self.body, compression) if compression else self.body
        self.payload = loads(body, self.content_type, self.content_encoding, accept=accept)
        # A request decodes it again, and knows no compression.
        self.body = body
        return self.payload


@dataclass
class _Acknowledgement:
    """What Celery does with a message. The answer to the delivery goes by the state of the task instead."""

    done: list[str] = field(default_factory=list)

    def ack(self, *_: Any, **__: Any) -> None:
        self.done.append("ack")

    def reject(self, *_: Any, **__: Any) -> None:
        self.done.append("reject")


class _InProcess:
    """A pool that runs a request here and now, as Celery's `solo` does, with time limits as far as a thread allows."""

    def __init__(self) -> None:
        self.raised: Exception | None = None

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        *,
        accept_callback: Callable[[int, float], Any],
        callback: Callable[[Any], Any],
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> None:
        accept_callback(os.getpid(), time.monotonic())
        try:
            with time_limit(timeout, TimeLimitExceeded), time_limit(soft_timeout, SoftTimeLimitExceeded):
                result = target(*args)
        except Exception as error:
            self.raised = error
            logger.exception("A Celery task ended outside of its body.")
            callback((1, ExceptionInfo(), 0.0))
        else:
            callback(result)


def _log_received(request: Any) -> None:
    """Log what a worker logs, where it does."""
    if not _worker_logger.isEnabledFor(logging.INFO):
        return
    context = {
        "id": request.id,
        "name": request.name,
        "args": request.argsrepr,
        "kwargs": request.kwargsrepr,
        "eta": request.eta,
    }
    # Looked up now: applications change it.
    _worker_logger.info(trace.LOG_RECEIVED, context, extra={"data": context})


@lru_cache(maxsize=1)
def _hostname() -> str:
    return f"queuebridge@{gethostname()}"
