"""Executions of an existing Celery application: in workers under claims, and what their end means.

A worker runs a task by calling its tracer, `task.__trace__`, which the worker builds and assigns. The tracer is wrapped
as it is assigned: whatever pool calls it, the job is claimed first, and settled by the state that the tracer returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app.task import Context
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, Reject
from kombu.utils.json import loads
from pydantic import ValidationError

from queuebridge.backends.celery.message import HEADER, NATIVE_HEADERS, Minted, encode_header, read_header
from queuebridge.backends.celery.native import NativeMessage, as_json, carry, from_envelope
from queuebridge.backends.celery.requeueing import (
    REQUEUE_SECONDS,
    as_delivered_before,
    requeue,
    serializer_of,
    was_requeued,
)
from queuebridge.context import executing
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidArguments, MalformedEnvelope, QueueBridgeError, UnsupportedEnvelope
from queuebridge.ids import portable_id
from queuebridge.outcome import Outcome, Status
from queuebridge.runnable import current_job_of, json_result

if TYPE_CHECKING:
    from queuebridge.lease import Lease

logger = logging.getLogger(__name__)

Tracer = Callable[..., Any]

# After how long a message that cannot be claimed here and now is looked at again, if nobody says when.
_AGAIN_SECONDS = 15.0
_NEWER_DEPLOYMENT_SECONDS = 60.0
# Those of a received message that a producer gave, not a transport.
_PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration", "app_id", "type", "message_id")
_ATTRIBUTE = "_queuebridge_tracer"


@dataclass
class _Claimed:
    """An execution whose claim is held by the caller of the tracer; `traced` is what the tracer returned."""

    traced: Any = None


_claimed: ContextVar[_Claimed | None] = ContextVar("queuebridge_claimed_execution", default=None)


@contextmanager
def claimed_execution() -> Iterator[_Claimed]:
    """Have tracers that are called inside the block run at once, because the caller holds the claim."""
    claimed = _Claimed()
    token = _claimed.set(claimed)
    try:
        yield claimed
    finally:
        _claimed.reset(token)


class _GuardedTracer:
    """`Task.__trace__`: wraps each tracer that is assigned."""

    def __get__(self, task: Any, owner: type) -> Any:
        return None if task is None else vars(task).get(_ATTRIBUTE)

    def __set__(self, task: Any, tracer: Tracer | None) -> None:
        vars(task)[_ATTRIBUTE] = tracer and _guarded(task, tracer)

    def __delete__(self, task: Any) -> None:
        vars(task).pop(_ATTRIBUTE, None)


def guard_executions(task: Any) -> None:
    """Have every execution of a task claim its job, where there is a ledger."""
    owner = task if isinstance(task, type) else type(task)
    if not isinstance(vars(owner).get("__trace__"), _GuardedTracer):
        owner.__trace__ = _GuardedTracer()  # type: ignore[attr-defined]


def _guarded(task: Any, tracer: Tracer) -> Tracer:
    def trace(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        if request and was_requeued(request):
            request = as_delivered_before(request)
        claimed = _claimed.get()
        if claimed is not None:
            # Only this call: tasks that the body calls eagerly are traced too.
            token = _claimed.set(None)
            try:
                claimed.traced = tracer(uuid, args, kwargs, request)
            finally:
                _claimed.reset(token)
            return claimed.traced
        runner = _runner_of(task, request)
        if runner is None:
            return tracer(uuid, args, kwargs, request)
        return _WorkerExecution(task, tracer, uuid, args, kwargs, request).run(runner)

    return trace


def _runner_of(task: Any, request: Mapping[str, Any] | None) -> Any:
    """Return what executes under claims; None where nothing is claimed."""
    if not request or request.get("is_eager"):
        return None
    forwarding = getattr(task.app, "queuebridge", None)
    chosen = forwarding.forwarding() if forwarding is not None else None
    if chosen is None or chosen.bridge.runner.claims is None:
        return None
    header = request.get(HEADER)
    # A task of queuebridge's own claims its job itself.
    return None if header is not None and '"kind":"celery"' not in header else chosen.bridge.runner


@dataclass
class _WorkerExecution:
    """One delivery of a message to a worker; a `Runnable`."""

    task: Any
    tracer: Tracer
    uuid: str
    args: Any
    kwargs: Any
    request: dict[str, Any]
    traced: Any = None
    raised: Exception | None = None
    # The arguments as JSON, before they were used; None if they have no such form.
    shown: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the name of the task."""
        return str(self.task.name)

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of its positional parameters."""
        from queuebridge.backends.celery.forwarding import parameter_names

        return parameter_names(self.task.app, self.name)

    def check(self, envelope: Envelope) -> None:  # noqa: ARG002 - as they came, before they were JSON
        """Check the arguments against the signature."""
        check_signature(self.task, self.args, self.kwargs)

    def execute(self, envelope: Envelope, delivery: Delivery, lease: Lease | None) -> Outcome:
        """Run the tracer."""
        request = self.request
        if delivery.attempt > 1:
            # What was put off comes again as a new message, of which the broker does not say that it came before.
            request = as_delivered_before(request)
        try:
            with executing(current_job_of(envelope, delivery, time.time(), lease)):
                self.traced = self.tracer(self.uuid, self.args, self.kwargs, request)
        except Exception as error:  # noqa: BLE001 - handed on to the worker, when the ledger knows
            self.raised = error
            outcome = outcome_of_error(error)
        else:
            outcome = outcome_of(envelope, self.traced)
        if outcome.status is Status.RETRY and self._requeue(envelope):
            self.raised, self.traced = None, _acknowledged(outcome.reason)
            return Outcome(status=Status.RETRIED, error=outcome.error)
        return outcome

    def _requeue(self, envelope: Envelope) -> bool:
        """Publish the message anew; False if that failed, so that the broker has to bring it again."""
        message = from_envelope(envelope)
        properties = self.request.get("properties") or {}
        serializer = (
            serializer_of(properties.get("content_type") or "")
            or self.task.serializer
            or self.task.app.conf.task_serializer
        )
        # As they came: a body may have changed its arguments.
        args, kwargs, embed = loads(message.body)
        if serializer != "json" or self.shown is None:
            args, kwargs = self.args, self.kwargs
        return requeue(
            self.task,
            message,
            (args, kwargs, embed),
            queue=envelope.queue,
            serializer=serializer,
            compression=self.request.get("compression"),
        )

    def run(self, runner: Any) -> Any:
        """Claim the job and run it; return what a tracer returns."""
        try:
            envelope = self._envelope()
        except UnsupportedEnvelope as error:
            return self._again(_NEWER_DEPLOYMENT_SECONDS, Minted(self.request[HEADER]), str(error))
        delivery = Delivery(backend="celery", message_id=self.uuid, attempt=1, enforces_timeout=True)
        outcome: Outcome = runner.run_as(self, envelope, delivery)
        if self.raised is not None:
            raise self.raised
        if outcome.status in (Status.BUSY, Status.DEFERRED) and self.traced is None:
            delay = outcome.retry_delay_seconds
            delay = _AGAIN_SECONDS if delay is None else delay
            return self._again(delay, encode_header(envelope), outcome.reason)
        if self.traced is not None:
            return self.traced
        return _acknowledged(outcome.reason)

    def _envelope(self) -> Envelope:
        header = self.request.get(HEADER)
        self.shown = _shown(self.args, self.kwargs)
        try:
            carried = read_header(header) if header is not None else {}
            delivery_info = self.request.get("delivery_info") or {}
            # Without a header it comes from a program without the bridge: every retry of such a message has one.
            unknown = {
                "kind": "celery",
                "dispatch_id": portable_id(f"{self.uuid}-{self.request.get('retries') or 0}"),
                "queue": delivery_info.get("routing_key") or "celery",
                "enqueued_at_ms": 0,
            }
            return Envelope.model_validate(
                {
                    **unknown,
                    **carried,
                    "version": 2,
                    "job_id": self.uuid,
                    "task": self.name,
                    # Without: it runs all the same, and cannot be published again by anybody but its broker.
                    **(self.shown or {"args": [], "kwargs": {}}),
                    "message": self._message(delivery_info),
                }
            )
        except (ValidationError, ValueError, TypeError, AttributeError) as error:
            raise MalformedEnvelope(f"The header {HEADER!r} of Celery task {self.uuid} is not valid: {error}") from None

    def _message(self, delivery_info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the message, as far as a worker sees it; enough to publish it again if this worker dies."""
        request = self.request
        embed = {name: request.get(name) for name in ("callbacks", "errbacks", "chain", "chord")}
        # The arguments are shown as they are, not compressed.
        around = {"properties", "delivery_info", "hostname", "correlation_id", "reply_to", "compression", *embed}
        known = NATIVE_HEADERS - around
        hidden = {HEADER, "args", "kwargs", "is_eager", "loglevel", "logfile", "utc", *NATIVE_HEADERS}
        properties = {
            name: value
            for name, value in (request.get("properties") or {}).items()
            if name in _PROPERTIES and value is not None
        }
        if "expiration" in properties:
            # A broker says milliseconds, and is told seconds.
            properties["expiration"] = float(properties["expiration"]) / 1000
        message = NativeMessage(
            # Its arguments are those of the envelope.
            body=b"",
            content_type="application/json",
            content_encoding="utf-8",
            headers={name: value for name, value in request.items() if name in known or name not in hidden},
            properties=properties,
            exchange=delivery_info.get("exchange") or "",
            routing_key=delivery_info.get("routing_key") or "",
        )
        return carry(message, {"embed": embed})

    def _again(self, delay: float, header: Minted, reason: str) -> Any:
        """Publish the same dispatch to come again later, and have this message acknowledged."""
        context = Context(self.request, args=self.args, kwargs=self.kwargs)
        try:
            signature = self.task.signature_from_request(
                context,
                self.args,
                self.kwargs,
                countdown=delay,
                retries=context.retries,
                headers={**(context.headers or {}), HEADER: header},
            )
            # `retries` counts those of the task; this is none.
            signature.options["retries"] = context.retries
            signature.apply_async(add_to_parent=False)
        except Exception as error:
            logger.exception("Celery task %s could not be put off, and goes back to the broker.", self.uuid)
            raise Reject(error, requeue=True) from error
        return _acknowledged(reason)


def outcome_of(envelope: Envelope, traced: Any) -> Outcome:
    """Return how an execution ended, from what Celery's tracer returned."""
    value, info, _, _ = traced
    if info is None:
        return Outcome(status=Status.DONE, result=json_result(envelope, value))
    error = info.retval if isinstance(info.retval, Exception) else QueueBridgeError(str(info.retval))
    if info.state in (states.FAILURE, states.REJECTED):
        return outcome_of_error(error)
    if info.state == states.RETRY:
        # Published already, as a dispatch of its own.
        return Outcome(status=Status.RETRIED, error=error)
    # What was ignored is done with.
    return Outcome(status=Status.DONE)


def outcome_of_error(error: Exception) -> Outcome:
    """Return how an execution ended whose tracer raised something."""
    if isinstance(error, Reject) and getattr(error, "requeue", False):
        return Outcome(status=Status.RETRY, error=error, retry_delay_seconds=REQUEUE_SECONDS)
    return Outcome(status=Status.FAILED, error=error)


def check_signature(task: Any, args: Any, kwargs: Any) -> None:
    """Raise if a task cannot be called with these arguments, as Celery checks them when they are sent.

    Raises:
        InvalidArguments: With the reason.
    """
    header = getattr(task, "__header__", None)
    if header is None or not getattr(task, "typing", False):
        return
    try:
        header(*args, **kwargs)
    except TypeError as error:
        raise InvalidArguments(str(task.name), [str(error)]) from None


def _acknowledged(reason: str) -> Any:
    """Return what a tracer returns for a message that is done with and of which nobody shall be told."""
    try:
        # The worker reads a traceback, and only what was raised has one.
        raise Ignore(reason)  # noqa: TRY301
    except Ignore as ignored:
        return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(states.IGNORED, ignored), 0.0, "")


def _shown(args: Any, kwargs: Any) -> dict[str, Any] | None:
    try:
        return {"args": as_json(list(args)), "kwargs": as_json(dict(kwargs))}
    except (TypeError, ValueError):
        return None
