"""The options of an enqueue, checked and turned into points in time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from queuebridge.errors import InvalidOption

BACKEND_NAMES = ("qstash", "celery", "rq", "inline")
_PUBLISH_ONLY = frozenset({"retry_policy"})

# The last moment that a datetime can express, in Unix seconds: later ones cannot be handed to anybody.
_END_OF_TIME = datetime.max.replace(tzinfo=timezone.utc).timestamp()


@dataclass(frozen=True, kw_only=True, slots=True)
class EnqueueOptions:
    """What a caller may say about one job.

    Attributes:
        countdown: Seconds from now before which the job must not start; excludes `eta`.
        eta: The same as a point in time; must carry a time zone.
        expires: Seconds from now, or a point in time, after which the job must not start any more.
        queue: The logical queue, instead of the task's.
        priority: For backends that know priorities.
        task_id: The job id, instead of a new one.
        retry: Whether a failed publish is tried again; None is the backend's default.
        headers: Text values offered to the task as `current_job().headers`.
        metadata: JSON values that travel with the job and are stored with its execution.
        idempotency_key: Enqueues of the same task under the same key are one job.
        options: Options of one backend's own, by its name: `{"qstash": {"label": "mail"}}`. Those for
            another backend than the one in use do not concern it.
        session, connection: A SQLAlchemy session or connection to the database of the ledger, in whose transaction
            the job is recorded: it exists exactly if the transaction is committed.
    """

    countdown: float | timedelta | None = None
    eta: datetime | None = None
    expires: float | timedelta | datetime | None = None
    queue: str | None = None
    priority: int | None = None
    task_id: str | None = None
    retry: bool | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    session: Any = None
    connection: Any = None

    def __post_init__(self) -> None:
        if self.countdown is not None and self.eta is not None:
            raise InvalidOption("countdown/eta", "give one of them, not both.")
        if self.idempotency_key is not None and self.task_id is not None:
            raise InvalidOption("task_id", "it cannot be combined with idempotency_key, which sets the job id.")
        if self.session is not None and self.connection is not None:
            raise InvalidOption("session", "give a session or a connection, not both.")
        _check_text("queue", self.queue, "it is empty.")
        _check_text("idempotency_key", self.idempotency_key, "it is empty; every job would be the same one.")
        if self.priority is not None and (isinstance(self.priority, bool) or not isinstance(self.priority, int)):
            raise InvalidOption("priority", f"{self.priority!r} is not an integer.")
        if self.retry is not None and not isinstance(self.retry, bool):
            raise InvalidOption("retry", f"{type(self.retry).__name__} is neither True nor False.")
        if self.headers:
            _check_headers(self.headers)
        if self.metadata and not isinstance(self.metadata, Mapping):
            raise InvalidOption("metadata", f"{type(self.metadata).__name__} is not a mapping.")
        if self.options:
            _check_backend_options(self.options)

    def not_before_ms(self, now: float) -> int | None:
        """Return the earliest start in Unix milliseconds; `now` is in Unix seconds."""
        if self.eta is not None:
            return _milliseconds("eta", _timestamp("eta", self.eta))
        if self.countdown is None:
            return None
        seconds = _seconds("countdown", self.countdown)
        if seconds < 0:
            raise InvalidOption("countdown", f"{seconds:g} s lies in the past.")
        return _milliseconds("countdown", now + seconds) if seconds else None

    def expires_at_ms(self, now: float) -> int | None:
        """Return the latest start in Unix milliseconds; `now` is in Unix seconds."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime):
            return _milliseconds("expires", _timestamp("expires", self.expires))
        return _milliseconds("expires", now + _seconds("expires", self.expires))

    def json_metadata(self) -> dict[str, Any]:
        """Return the metadata in JSON form.

        Raises:
            InvalidOption: A value has no JSON form.
        """
        if not self.metadata:
            return {}
        if not all(isinstance(key, str) for key in self.metadata):
            raise InvalidOption("metadata", "its keys must be text.")
        try:
            plain: dict[str, Any] = from_json(to_json(dict(self.metadata), inf_nan_mode="strings"))
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise InvalidOption("metadata", f"it has no JSON form: {error}") from None
        return plain


def _check_text(option: str, value: object, empty: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidOption(option, f"{type(value).__name__} is not text.")
    if not value:
        raise InvalidOption(option, empty)
    if not _is_utf8(value):
        raise InvalidOption(option, "it cannot be written in UTF-8.")


def _check_headers(headers: Mapping[str, str]) -> None:
    if not isinstance(headers, Mapping):
        raise InvalidOption("headers", f"{type(headers).__name__} is not a mapping.")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidOption("headers", f"{name!r}: names and values must be text.")
        if not _is_utf8(name + value):
            raise InvalidOption("headers", f"{name!r}: it cannot be written in UTF-8.")


def _check_backend_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    if not isinstance(options, Mapping):
        raise InvalidOption("options", f"{type(options).__name__} is not a mapping of backends to options.")
    for backend, chosen in options.items():
        if backend not in BACKEND_NAMES:
            known = ", ".join(BACKEND_NAMES)
            raise InvalidOption("options", f"{backend!r} is no backend; there are {known}.")
        if not isinstance(chosen, Mapping):
            raise InvalidOption(f"options[{backend!r}]", f"{type(chosen).__name__} is not a mapping.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seconds(option: str, value: float | timedelta) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(option, f"{type(value).__name__} is neither a number of seconds nor a timedelta.")
    if not abs(value) < _END_OF_TIME:
        raise InvalidOption(option, f"{value!r} s lies beyond all calendars.")
    return float(value)


def _timestamp(option: str, value: datetime) -> float:
    if not isinstance(value, datetime):
        raise InvalidOption(option, f"{type(value).__name__} is not a datetime.")
    if value.utcoffset() is None:
        raise InvalidOption(option, f"{value.isoformat()} has no time zone; use datetime.now(timezone.utc) + ...")
    return value.timestamp()


def _milliseconds(option: str, timestamp: float) -> int:
    if timestamp > _END_OF_TIME:
        raise InvalidOption(option, "it lies beyond the year 9999.")
    # Upwards: a job must not start before its time, not even by a fraction of a millisecond.
    return max(0, math.ceil(timestamp * 1000))


def merged_options(
    defaults: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Mapping[str, Any]]:
    """Return the options of single backends, by backend name: a task's own, and over them those of a call."""
    if not given:
        return defaults
    if not defaults:
        return given
    return {name: {**defaults.get(name, {}), **given.get(name, {})} for name in {*defaults, *given}}


def lasting_options(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the options of single backends without those that are about one act of publishing only."""
    return {
        backend: {name: value for name, value in options.items() if name not in _PUBLISH_ONLY}
        for backend, options in chosen.items()
    }
