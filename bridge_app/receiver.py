"""The endpoints that QStash calls. Each verifies the raw request before it parses anything."""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import quote

from flask import Blueprint, Request, Response, request
from flask.sansio.blueprints import BlueprintSetupState
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from bridge_app.replies import (
    NON_RETRYABLE,
    NON_RETRYABLE_HEADERS,
    NOT_AUTHENTIC,
    STATUS_CODES,
    UNSUPPORTED,
    reply,
    reply_to,
)
from queuebridge.bridge import Bridge
from queuebridge.delivery import Delivery, DeliveryVerifier
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    LedgerUnavailable,
    MalformedEnvelope,
    NotAuthentic,
    PublishError,
    UnknownTask,
    UnsupportedEnvelope,
)
from queuebridge.failures import redact
from queuebridge.ids import new_job_id, portable_id
from queuebridge.outcome import Status, describe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FailedDelivery:
    """A message that QStash gave up.

    Attributes:
        message_id: The message.
        dlq_id: Where it is in the dead letter queue.
        status: The last HTTP status of the receiver, 0 if there was none.
        retried: How often it was tried again.
        reply: What the receiver said last.
        envelope: The job; None if the message carried something else.
    """

    message_id: str
    dlq_id: str | None
    status: int
    retried: int
    reply: str
    envelope: Envelope | None


# What a path may contain as it is, besides letters, digits and '_.-~' (RFC 3986).
_PATH_CHARACTERS = "/:@!$&'()*+,;="
# The query comes as the client sent it; only what is not ASCII has to be escaped.
_QUERY_CHARACTERS = "".join(map(chr, range(0x21, 0x7F)))

OnFailed = Callable[[FailedDelivery], object]


class _FailureCallback(BaseModel):
    """The JSON of a failure callback (protocol 13.7); fields that we do not use are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    status: int | None = None
    body: str | None = None
    retried: int | None = None
    dlq_id: str | None = Field(None, alias="dlqId")
    source_message_id: Annotated[str, Field(alias="sourceMessageId")]
    source_body: str | None = Field(None, alias="sourceBody")


class Receiver:
    """Answers deliveries.

    Args:
        bridge: Whose tasks run.
        verifier: Decides which requests to trust.
        on_failed: Called for each message that QStash gave up.
    """

    def __init__(self, bridge: Bridge, verifier: DeliveryVerifier, on_failed: OnFailed | None = None) -> None:
        self._bridge = bridge
        self._verifier = verifier
        self._on_failed = on_failed

    def add_to(self, blueprint: Blueprint, aliases: tuple[str, ...]) -> None:
        """Register the endpoints; `aliases` are further absolute paths that take envelopes."""
        blueprint.add_url_rule("/deliver", "deliver", self.deliver, methods=["POST"])
        blueprint.add_url_rule("/tasks/<path:name>", "run_task", self.run_task, methods=["POST"])
        blueprint.add_url_rule("/failed", "failed", self.failed, methods=["POST"])
        for number, path in enumerate(aliases):
            blueprint.record(self._alias(path, number))

    def _alias(self, path: str, number: int) -> Callable[[BlueprintSetupState], None]:
        def add(state: BlueprintSetupState) -> None:
            # To the application, because an alias does not lie below the blueprint's prefix.
            state.app.add_url_rule(path, f"{state.name}.deliver_alias_{number}", self.deliver, methods=["POST"])

        return add

    def deliver(self) -> Response:
        """Take an envelope and run it."""
        body = request.get_data()
        try:
            delivery = self._verify(body)
            envelope = Envelope.decode(body)
        except NotAuthentic as error:
            return _refuse(error)
        except MalformedEnvelope as error:
            return _never(error)
        except UnsupportedEnvelope as error:
            logger.error("%s", error)
            return reply(UNSUPPORTED, {"error": str(error)}, {"Retry-After": "60"})
        return self._answer(envelope, delivery)

    def run_task(self, name: str) -> Response:
        """Take a JSON object as the keyword arguments of a task, from schedules and foreign producers."""
        body = request.get_data()
        try:
            delivery = self._verify(body)
            task = self._bridge.registry.get(name)
            arguments = _json_object(body)
        except NotAuthentic as error:
            return _refuse(error)
        except UnknownTask as error:
            logger.error("%s", error)
            return reply(STATUS_CODES[Status.UNKNOWN_TASK], {"error": str(error)})
        except MalformedEnvelope as error:
            return _never(error)
        # The transport's message id stands for the job: redeliveries of a message are the same job.
        job_id = _portable_id(delivery.message_id)
        envelope = Envelope(
            job_id=job_id,
            dispatch_id=job_id,
            task=task.name,
            kwargs=arguments,
            queue=task.queue or self._bridge.settings.default_queue,
            enqueued_at_ms=int(time.time() * 1000),
            timeout_seconds=task.timeout,
            retry=task.retry,
            metadata=task.metadata,
        )
        return self._answer(envelope, delivery)

    def failed(self) -> Response:
        """Take the failure callback of a message that QStash gave up, and log it."""
        body = request.get_data()
        try:
            self._verify(body)
            callback = _FailureCallback.model_validate_json(body)
        except NotAuthentic as error:
            return _refuse(error)
        except ValidationError as error:
            return _never(MalformedEnvelope(f"This is no failure callback of QStash: {error.error_count()} problems."))
        failure = FailedDelivery(
            message_id=callback.source_message_id,
            dlq_id=callback.dlq_id,
            status=callback.status or 0,
            retried=callback.retried or 0,
            reply=_text(callback.body),
            envelope=_envelope(callback.source_body),
        )
        logger.error(
            "QStash gave up message=%s after %d retries: job=%s task=%s last status=%d, dead letter queue entry %s",
            failure.message_id,
            failure.retried,
            failure.envelope.job_id if failure.envelope else "-",
            failure.envelope.task if failure.envelope else "-",
            failure.status,
            failure.dlq_id or "-",
            extra={"event": "transport_failed", "message_id": failure.message_id, "dlq_id": failure.dlq_id},
        )
        if failure.envelope is not None:
            try:
                self._bridge.redeliver(failure.envelope)
            except LedgerUnavailable as error:
                return reply(503, {"error": str(error)}, {"Retry-After": "30"})
        if self._on_failed is not None:
            try:
                self._on_failed(failure)
            except Exception as error:
                logger.exception("The on_failed hook failed; QStash will call again.")
                return reply(500, {"error": f"The on_failed hook failed: {redact(describe(error))}"})
        return reply(200, {"status": "recorded"})

    def _answer(self, envelope: Envelope, delivery: Delivery) -> Response:
        """Run a delivery, or put it off, and say so."""
        parking = self._bridge.parking
        try:
            if parking is not None and parking.is_early(envelope):
                parking.hop(envelope)
                return reply(200, {"status": "hopped", "job_id": envelope.job_id})
            outcome = self._bridge.runner.run(envelope, delivery)
            if parking is None or outcome.status is not Status.BUSY or outcome.epoch is None:
                return reply_to(outcome, envelope.job_id)
            # Acknowledged only once it is published anew: each refusal would use up one of the transport's retries.
            parking.park(envelope, delay_seconds=outcome.retry_delay_seconds or 0.0, number=outcome.epoch)
            return reply(200, {"status": "parked", "job_id": envelope.job_id})
        except PublishError as error:
            logger.error("A delivery of job %s could not be put off: %s", envelope.job_id, error)
            return reply(503, {"status": "busy", "job_id": envelope.job_id, "error": str(error)}, {"Retry-After": "10"})

    def _verify(self, body: bytes) -> Delivery:
        # Werkzeug's headers are looked up like a mapping, in any case of letters, but are not called one.
        return self._verifier.verify(cast("Mapping[str, str]", request.headers), body, _path_as_received(request))


def _path_as_received(received: Request) -> str:
    """Return path and query of the request, percent-encoded.

    The part below which the application is mounted (SCRIPT_NAME) is left out; it belongs to the public URL.
    """
    # WSGI servers decode the path into these characters, one for each byte.
    path = quote(received.environ.get("PATH_INFO", "").encode("latin-1"), safe=_PATH_CHARACTERS)
    query = quote(received.query_string, safe=_QUERY_CHARACTERS)
    return f"{path}?{query}" if query else path


def _portable_id(message_id: str) -> str:
    """Return a job id for a message; its header is not signed, so that it may be anything."""
    # Without an id no two calls can be told to be the same one.
    return portable_id(message_id) or new_job_id()


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = from_json(body) if body else {}
    except ValueError as error:
        raise MalformedEnvelope(f"The body is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise MalformedEnvelope("The body must be a JSON object with the task's keyword arguments.")
    return content


def _refuse(error: NotAuthentic) -> Response:
    logger.warning("Refused a request: %s", error, extra={"event": "not_authentic"})
    return reply(NOT_AUTHENTIC, {"error": str(error)})


def _never(error: MalformedEnvelope) -> Response:
    logger.error("Refused a delivery for good: %s", error, extra={"event": "malformed"})
    return reply(NON_RETRYABLE, {"error": str(error)}, NON_RETRYABLE_HEADERS)


def _text(encoded: str | None) -> str:
    try:
        return base64.b64decode(encoded or "").decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""


def _envelope(encoded: str | None) -> Envelope | None:
    try:
        return Envelope.decode(base64.b64decode(encoded or ""))
    except (binascii.Error, ValueError, MalformedEnvelope, UnsupportedEnvelope):
        return None
