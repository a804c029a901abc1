"""The envelope: the versioned JSON form of a dispatch.

Golden files in `tests/golden/envelopes` pin every version. A new field means a new version: an unknown field
in a known version is refused, because an executor that ignored it would not do what the producer asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from queuebridge.errors import MalformedEnvelope, UnsupportedEnvelope
from queuebridge.retry import DEFAULT_RETRY, RetryPolicy
from queuebridge.stages import Role, Stage

# The newest. Each envelope says the oldest version that knows all its fields, so that executors of an earlier
# deployment go on reading what they can run.
VERSION: Final = 2
# Since which version a field is known; those that are not here are as old as the format.
_SINCE: Final = {"options": 2, "message": 2}
# Written always, and first: they tell a reader how to read the rest.
_HEAD: Final = {"version", "kind"}
_HEAD_AND_RETRY: Final = {*_HEAD, "retry"}

UnixMilliseconds = Annotated[int, Field(ge=0)]


class PayloadReference(BaseModel):
    """Arguments that the ledger keeps: the encoded envelope with them.

    Attributes:
        key: Its name in the ledger.
        sha256: Its digest, hexadecimal.
        size: Its length in bytes.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    key: str
    sha256: str
    size: int


class Envelope(BaseModel):
    """One dispatch of a job, as it travels.

    Attributes:
        version: The version of this format.
        kind: `task`: a queuebridge task. `celery`, `rq`: a call that was written for that library. Since version 2.
        job_id: What the caller got back.
        dispatch_id: This publication of the job. Copies of one publication share it; a retry that
            publishes anew has another one.
        task: The registered name of the task.
        args, kwargs: The arguments in JSON form.
        queue: The logical queue.
        enqueued_at_ms: When the producer enqueued, on its clock, in Unix milliseconds.
        not_before_ms, expires_at_ms: The time window in which the job may start, in Unix milliseconds.
        timeout_seconds: How long one execution may take.
        retry: When to try again after a failure.
        priority: The producer's wish for backends that know priorities.
        metadata: Free JSON values of the caller (`user_id`, `organization_id`, ...).
        headers: Free text values of the caller, offered to the task.
        idempotency_key: The caller's key under which further enqueues of this task are the same job.
        trace: W3C trace context (`traceparent`, `tracestate`) of the producer.
        epoch: Which publication of this dispatch this is; a wanted republication takes another one.
        stage: The stage of the migration by which it was written.
        role: In a dual-write stage, what this copy is for.
        payload_ref: Where the arguments are, if they were too long for the transport.
        options: Options of single backends, by backend name, for every publication of this dispatch. Since version 2.
        message: Of a call of Celery's or RQ's, what the library carries besides the arguments. Since version 2.
    """

    model_config = ConfigDict(
        frozen=True, defer_build=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings"
    )

    # Not Literal[1, 2]: pydantic takes `true` for 1.
    version: Annotated[int, Field(strict=True, ge=1, le=VERSION)] = 1
    kind: Literal["task", "celery", "rq"] = "task"
    job_id: Annotated[str, Field(min_length=1, max_length=200)]
    dispatch_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
    task: Annotated[str, Field(min_length=1)]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue: Annotated[str, Field(min_length=1)]
    enqueued_at_ms: UnixMilliseconds
    not_before_ms: UnixMilliseconds | None = None
    expires_at_ms: UnixMilliseconds | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    retry: RetryPolicy = DEFAULT_RETRY
    priority: int | None = None
    metadata: dict[str, Any] = {}
    headers: dict[str, str] = {}
    idempotency_key: str | None = None
    trace: dict[str, str] = {}
    epoch: Annotated[int, Field(ge=0)] = 0
    stage: Stage | None = None
    role: Role | None = None
    payload_ref: PayloadReference | None = None
    options: dict[str, dict[str, Any]] = {}
    message: dict[str, Any] = {}

    def encode(self) -> bytes:
        """Return the wire form: UTF-8 JSON, fields that have their default left out.

        Raises:
            MalformedEnvelope: Some value has no JSON form. Arguments from `ArgumentSchema.dump` always have one.
        """
        try:
            # Left out by name where it is the default: to compare it takes as long as to write all the rest.
            apart = _HEAD_AND_RETRY if self.retry is DEFAULT_RETRY else _HEAD
            # What model_dump_json calls, without its way by text.
            body: bytes = self.__pydantic_serializer__.to_json(self, exclude_defaults=True, exclude=apart)
        except PydanticSerializationError as error:
            raise MalformedEnvelope(f"Something in the envelope of job {self.job_id} has no JSON form.") from error
        return b'{"version":%d,"kind":"%s",%s' % (self.version, self.kind.encode(), body[1:])

    @classmethod
    def decode(cls, body: bytes) -> Envelope:
        """Return the envelope in `body`.

        Raises:
            MalformedEnvelope: The bytes are not JSON, or not an envelope of a known version.
            UnsupportedEnvelope: The envelope says that it is of a newer version.
        """
        try:
            envelope = cls.model_validate_json(body)
        except ValidationError as error:
            _refuse_newer_version(body)
            raise MalformedEnvelope(f"The body is not a valid envelope: {problems_in(error)}") from None
        for name, version in _SINCE.items():
            if envelope.version < version and name in envelope.model_fields_set:
                raise MalformedEnvelope(f"The body is not a valid envelope: {name}: not known in its version.")
        if envelope.version < 2 and envelope.kind != "task":
            raise MalformedEnvelope("The body is not a valid envelope: kind: not known in its version.")
        return envelope

    @property
    def deduplication_id(self) -> str:
        """Return the id under which a transport may drop a resend of this very write."""
        return f"{self.dispatch_id}-{self.epoch}"


def problems_in(error: ValidationError) -> str:
    """Return in one line what is wrong with an envelope, without its values."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}"
        for e in error.errors(include_url=False, include_input=False, include_context=False)
    )


def _refuse_newer_version(body: bytes) -> None:
    try:
        content = from_json(body)
    except ValueError:
        return
    if isinstance(content, dict):
        version = content.get("version")
        if isinstance(version, int) and version > VERSION:
            raise UnsupportedEnvelope(version, VERSION)
