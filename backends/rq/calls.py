"""RQ jobs as envelopes, and back."""

from __future__ import annotations

import base64
import inspect
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from redis import Redis
from rq.exceptions import DeserializationError
from rq.job import Job

from queuebridge.backends.rq.allowed import AllowList
from queuebridge.envelope import VERSION, Envelope
from queuebridge.errors import InvalidOption, MalformedEnvelope, OptionNotSupported
from queuebridge.ledger.custody import OPAQUE
from queuebridge.retry import RetryPolicy
from queuebridge.stages import Stage
from queuebridge.tracing import current_trace

# RQ's own retries are publications of their own. These only bring a job again whose executor died or had no Redis.
_REACH = RetryPolicy(retries=3, delays=(15.0, 60.0, 300.0), jitter=False)
# What belongs to one execution, is carried elsewhere in the envelope, or is found out anew.
_NOT_CARRIED = frozenset(
    {
        "data",
        "status",
        "result",
        "exc_info",
        "meta",
        "worker_name",
        "started_at",
        "ended_at",
        "last_heartbeat",
        "origin",
    }
)
_CALLBACKS = ("success_callback_name", "failure_callback_name", "stopped_callback_name")
_DEFAULT_JOB_CLASSES = ("queuebridge.backends.rq.job_class.Job", "rq.job.Job")
_DEFAULT_SERIALIZERS = ("DefaultSerializer", "PickleSerializer")
_UNREADABLE = "unreadable"


def check_pushable(job: Job, allowed: AllowList) -> None:
    """Refuse a call that cannot be pushed. Without any I/O.

    Raises:
        ConfigurationError: The function, or something else that it names, is outside the allowed modules.
        InvalidOption: Something in it is not JSON.
        OptionNotSupported: It has an option that only RQ's workers can honour.
    """
    if job.instance is not None:
        raise InvalidOption(
            "func",
            "a method of an object cannot be pushed, because the object is not JSON: use a function of a module.",
        )
    allowed.check(str(job.func_name))
    hash_of_job = _fields(job)
    for name in _CALLBACKS:
        if hash_of_job.get(name):
            allowed.check(str(hash_of_job[name]))
    for name in (_path(type(job)), _path(job.serializer)):
        allowed.check_class(name)
    for option, value in (("args", list(job.args or ())), ("kwargs", job.kwargs or {}), ("meta", job.meta)):
        problem = why_not_json(value, option)
        if problem is not None:
            raise InvalidOption(option, f"{problem}. What is pushed travels as JSON, and must arrive as it was.")
    if getattr(job, "rate_limit_key", None):
        raise OptionNotSupported(
            "qstash",
            "rate_limit",
            "RQ counts its slots on the queue, which a pushed job never is on. Use flow control "
            "of QStash, or leave this queue in stage legacy.",
        )


def why_not_json(value: Any, where: str) -> str | None:
    """Return which part of a value would not come back from JSON as it was, and why; None if all of it would."""
    kind = type(value)
    if value is None or kind in (bool, int):
        return None
    if kind is str:
        return None if value.isascii() or _is_utf8(value) else f"{where} cannot be written in UTF-8"
    if kind is float:
        return None if math.isfinite(value) else f"{where} is not a finite number"
    if kind is list:
        return next((why for i, item in enumerate(value) if (why := why_not_json(item, f"{where}[{i}]"))), None)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                return f"{where} has a key that is {type(key).__name__}, not text"
            why = why_not_json(item, f"{where}[{key!r}]")
            if why is not None:
                return why
        return None
    hint = ": pass a list" if kind is tuple else ""
    return f"{where} is {kind.__name__}, which JSON does not have{hint}"


def envelope_of(
    job: Job,
    dispatch_id: str,
    *,
    stage: Stage | None = None,
    not_before_ms: int | None = None,
    unsaved: bool = False,
) -> Envelope:
    """Return a dispatch of a job.

    Args:
        job: The job. Arguments that are not JSON travel as RQ serialised them, which only the ledger ever sees.
        dispatch_id: The dispatch.
        stage: The stage by which it is written.
        not_before_ms: Before when it must not start.
        unsaved: Redis could not be told of the job: whoever runs it has to.
    """
    now_ms = int(time.time() * 1000)
    message: dict[str, Any] = {"hash": _fields(job)}
    if unsaved:
        message["unsaved"] = True
    job_class = _path(type(job))
    if job_class not in _DEFAULT_JOB_CLASSES:
        message["job_class"] = job_class
    serializer = _path(job.serializer)
    if serializer.rpartition(".")[2] not in _DEFAULT_SERIALIZERS:
        message["serializer"] = serializer
    name, plain = _UNREADABLE, False
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    try:
        name, args, kwargs = str(job.func_name), list(job.args or ()), dict(job.kwargs or {})
        plain = job.instance is None and why_not_json([args, kwargs], "") is None
    except DeserializationError:
        pass
    if not plain:
        args, kwargs = [], {}
        message.update({OPAQUE: base64.b64encode(job.data).decode(), "content_type": serializer})
    timeout = job.timeout if job.timeout is not None and job.timeout > 0 else None
    return Envelope(
        version=VERSION,
        kind="rq",
        job_id=job.id,
        dispatch_id=dispatch_id,
        task=name or _UNREADABLE,
        args=args,
        kwargs=kwargs,
        queue=job.origin or "default",
        enqueued_at_ms=now_ms,
        not_before_ms=not_before_ms,
        expires_at_ms=now_ms + job.ttl * 1000 if job.ttl is not None and job.ttl > 0 else None,
        timeout_seconds=timeout,
        retry=_REACH,
        metadata=job.meta if job.meta and why_not_json(job.meta, "") is None else {},
        trace=current_trace() or {},
        stage=stage,
        message=message,
    )


def job_of(envelope: Envelope, connection: Redis, allowed: AllowList) -> Job:
    """Return the job that an envelope carries. Nothing in it is unpickled.

    Raises:
        ConfigurationError: It names something outside the allowed modules.
        MalformedEnvelope: RQ cannot make a job of it.
    """
    message = envelope.message
    fields = message.get("hash")
    if not isinstance(fields, dict) or OPAQUE in message:
        raise MalformedEnvelope(
            f"The call of job {envelope.job_id} is not JSON, so that only RQ's own worker can run it."
        )
    for name in _CALLBACKS:
        if fields.get(name):
            allowed.check(str(fields[name]))
    job_class: type[Job] = allowed.find_class(str(message.get("job_class", _DEFAULT_JOB_CLASSES[0])))
    serializer = allowed.find_class(str(message.get("serializer", "rq.serializers.DefaultSerializer")))
    try:
        job = job_class(envelope.job_id, connection=connection, serializer=serializer)
        job.restore({b"data": b"", **{name.encode(): _stored(value) for name, value in fields.items()}})
    except Exception as error:
        raise MalformedEnvelope(f"RQ cannot read job {envelope.job_id} from its envelope: {error}") from error
    job.func_name, job.args, job.kwargs = envelope.task, list(envelope.args), dict(envelope.kwargs)
    # Otherwise RQ would look for it in the serialised call, of which there is none.
    job._instance = None
    job.origin = envelope.queue
    job.meta = dict(envelope.metadata)
    if "description" not in fields:
        job.description = job.get_call_string()
    return job


def parameter_names(job: Job) -> tuple[str, ...]:
    """Return the names of the positional parameters of a job's function, as far as this process knows them."""
    try:
        return positional_names(job.func)
    except Exception:  # noqa: BLE001 - importing the user's module may raise anything; the names are for people
        return ()


def positional_names(function: Any) -> tuple[str, ...]:
    """Return the names of the positional parameters of a function."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _fields(job: Job) -> dict[str, Any]:
    """Return what RQ itself would write of a job, as far as it is carried."""
    kept_data, job._data = job._data, b""  # not wanted here, and it may be long
    try:
        written: Mapping[str, Any] = job.to_dict(include_meta=False, include_result=False)
    finally:
        job._data = kept_data
    fields = {name: value for name, value in written.items() if value != "" and name not in _NOT_CARRIED}
    if "webhooks" in fields:
        # As objects, so that the names of their headers show whether there are secrets.
        fields["webhooks"] = json.loads(fields["webhooks"])
    try:
        if fields.get("description") == job.get_call_string():
            # Made of the arguments, some of which may be secret.
            del fields["description"]
    except DeserializationError:
        fields.pop("description", None)
    return fields


def _stored(value: Any) -> bytes:
    """Return a value in the form in which Redis would give it back."""
    return (json.dumps(value) if isinstance(value, list | dict) else str(value)).encode()


def _path(thing: Any) -> str:
    if inspect.ismodule(thing):
        return thing.__name__
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
