"""Publish envelopes as RQ jobs."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import Annotated, Any

import redis
import rq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from redis.backoff import NoBackoff
from redis.retry import Retry as ConnectionRetry
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

from queuebridge.backend import Backend, Capabilities, Publication, read_options
from queuebridge.backends.rq.settings import RQSettings
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidOption,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
)
from queuebridge.failures import ping_failure, publish_failure, redact
from queuebridge.receipt import Write
from queuebridge.registry import TaskRegistry
from queuebridge.retry import RetryPolicy
from queuebridge.runner import Runner
from queuebridge.settings import Settings, read_settings

FOREIGN_KIND = "rq"
RUN_FUNCTION = "queuebridge.backends.rq.task_job.run"
_NO_LIMIT = -1
# The runner stops a body at its timeout; RQ only has to end what that could not stop.
_KILL_AFTER_SECONDS = 10
# Where the ledger counts the attempts, RQ's own retries only have to bring a job of a dead worker again.
_REACH_RETRIES = 5
# RQ knows the parameter from version 2.7 on.
_HAS_UNIQUE = "unique" in inspect.signature(rq.Queue.enqueue_call).parameters


def _storable(meta: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(meta)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it has no JSON form: {error}") from None
    return meta


class RQOptions(BaseModel):
    """`options={"rq": {...}}`: what only RQ knows; the names are those of `Queue.enqueue_call`. Times in seconds."""

    model_config = ConfigDict(extra="forbid")

    at_front: bool = False
    result_ttl: Annotated[int, Field(ge=-1)] | None = None
    failure_ttl: Annotated[int, Field(ge=-1)] | None = None
    ttl: Annotated[int, Field(ge=1)] | None = None
    meta: Annotated[dict[str, Any], AfterValidator(_storable)] | None = None
    description: str | None = None


_NO_OPTIONS = RQOptions()


class RQBackend(Backend):
    """Publishes envelopes as RQ jobs, with the JSON serializer.

    Args:
        url: The address of Redis.
        result_ttl_seconds: How long RQ keeps results.
        publish_timeout_seconds: How long one command may take.
    """

    name = "rq"
    capabilities = Capabilities(
        delay=True,
        deduplication=_HAS_UNIQUE,
        reasons={
            "priority": "RQ has none. Use several queues, or options={'rq': {'at_front': True}}.",
            "retry": "a command that is repeated after its answer was lost would run the job twice.",
            "idempotency_key": "this needs a newer version of RQ (unique jobs).",
        },
    )

    def __init__(self, url: str, *, result_ttl_seconds: int = 500, publish_timeout_seconds: float = 5.0) -> None:
        self.url = url
        self._result_ttl = result_ttl_seconds
        self._timeout = publish_timeout_seconds
        self._queues: dict[str, rq.Queue] = {}

    @cached_property
    def connection(self) -> redis.Redis:
        """Return the connection for publishing; made at first use."""
        return redis.Redis.from_url(
            self.url,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            # redis-py repeats a command whose answer was lost; a repeated push is a job that runs twice.
            retry=ConnectionRetry(NoBackoff(), 0),
        )

    def check(self, publication: Publication) -> None:
        """Refuse what RQ cannot carry; see `Backend.check`."""
        if publication.envelope.kind == FOREIGN_KIND:
            # What RQ's own queue was called with, RQ can do.
            return
        options = _options(publication)
        if options.at_front and publication.envelope.not_before_ms is not None:
            raise InvalidOption("options['rq'] at_front", "a delayed job cannot be put at the front.")

    def publish(self, publication: Publication) -> Write:
        """Create and enqueue one RQ job; see `Backend.publish`."""
        envelope = publication.envelope
        if envelope.kind == FOREIGN_KIND:
            return self._publish_call(publication)
        queue = self._queue(envelope.queue)
        arguments = self._arguments(publication)
        # A wanted republication is no second enqueue under the key, although RQ still has the job of the first.
        if envelope.idempotency_key is not None and not envelope.epoch:
            arguments["unique"] = True
        try:
            if envelope.not_before_ms is None and envelope.idempotency_key is None:
                # One transaction and one round trip, where `enqueue_call` takes two.
                queue.enqueue_many([rq.Queue.prepare_data(RUN_FUNCTION, **arguments)])
            elif envelope.not_before_ms is None:
                queue.enqueue_call(RUN_FUNCTION, **arguments)
            else:
                timeout = arguments.pop("timeout")
                # RQ drops fractions of a second, and a job must not start before its time.
                start = datetime.fromtimestamp(math.ceil(envelope.not_before_ms / 1000), timezone.utc)
                arguments.pop("at_front")
                queue.enqueue_at(start, RUN_FUNCTION, job_timeout=timeout, **arguments)
        except DuplicateJobError:
            return Write(backend=self.name, message_id=envelope.job_id, deduplicated=True)
        except (redis.RedisError, OSError) as error:
            raise _failure(error, envelope.job_id) from error
        return Write(backend=self.name, message_id=envelope.job_id)

    def _publish_call(self, publication: Publication) -> Write:
        from queuebridge.backends.rq.legacy_copy import enqueue_copy

        job_id = publication.envelope.job_id
        try:
            enqueue_copy(self.connection, publication)
        except (redis.RedisError, OSError) as error:
            raise _failure(error, job_id) from error
        return Write(backend=self.name, message_id=job_id)

    def publish_many(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        """Enqueue through `Queue.enqueue_many`, one pipeline per queue; see `Backend.publish_many`.

        After a command that found Redis unreachable, the rest is not tried.
        """
        results: dict[int, Write | Exception] = {}
        for indexes in _pipelines(publications):
            if any(isinstance(result, BackendUnavailable | PublishOutcomeUnknown) for result in results.values()):
                skipped = BackendUnavailable(
                    self.name, "not sent, because Redis could not be reached with an earlier job."
                )
                results.update(dict.fromkeys(indexes, skipped))
            elif len(indexes) == 1:
                results[indexes[0]] = self._try_publish(publications[indexes[0]])
            else:
                results.update(self._publish_pipeline({index: publications[index] for index in indexes}))
        return [results[index] for index in range(len(publications))]

    def _publish_pipeline(self, batch: Mapping[int, Publication]) -> dict[int, Write | Exception]:
        jobs = [rq.Queue.prepare_data(RUN_FUNCTION, **self._arguments(publication)) for publication in batch.values()]
        queue = next(iter(batch.values())).envelope.queue
        try:
            self._queue(queue).enqueue_many(jobs)
        except (redis.RedisError, OSError) as error:
            return {index: _failure(error, publication.envelope.job_id) for index, publication in batch.items()}
        return {
            index: Write(backend=self.name, message_id=publication.envelope.job_id)
            for index, publication in batch.items()
        }

    def _try_publish(self, publication: Publication) -> Write | Exception:
        try:
            return self.publish(publication)
        except Exception as error:  # noqa: BLE001 - each is reported to the caller, with its job
            return error

    def ping(self) -> str:
        """Ask Redis for a sign of life; see `Backend.ping`."""
        try:
            self.connection.ping()
        except (redis.RedisError, OSError) as error:
            raise ping_failure(_failure(error, "-")) from error
        return f"Redis at {redact(self.url)} answers"

    def strangers(self) -> Mapping[str, Sequence[str]]:
        """Return the workers that would not claim; see `Backend.strangers`."""
        from queuebridge.backends.rq.marking import unmarked_workers

        try:
            return unmarked_workers(self.connection)
        except (redis.RedisError, OSError) as error:
            raise ping_failure(_failure(error, "-")) from error

    def close(self) -> None:
        """Close the connections."""
        if "connection" in self.__dict__:
            self.connection.close()
            del self.__dict__["connection"]
            self._queues.clear()

    def _queue(self, name: str) -> rq.Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = rq.Queue(name, connection=self.connection, serializer=JSONSerializer)
        return queue

    def _arguments(self, publication: Publication) -> dict[str, Any]:
        envelope = publication.envelope
        options = _options(publication)
        limit = envelope.timeout_seconds
        return {
            "args": (publication.body.decode(),),
            "job_id": envelope.job_id,
            "description": options.description or envelope.task,
            "timeout": _NO_LIMIT if limit is None else math.ceil(limit) + _KILL_AFTER_SECONDS,
            "retry": _retry(envelope.retry, at_least=_REACH_RETRIES if publication.counted_by_ledger else 0),
            "result_ttl": options.result_ttl if options.result_ttl is not None else self._result_ttl,
            "failure_ttl": options.failure_ttl,
            "ttl": options.ttl,
            "meta": options.meta or _meta(envelope),
            "at_front": options.at_front,
        }


def create_backend(
    settings: Settings,  # noqa: ARG001 - the same signature for every backend
    environ: Mapping[str, str],
    registry: TaskRegistry,  # noqa: ARG001
    runner: Runner,  # noqa: ARG001
) -> RQBackend:
    """Return the backend, configured from the environment.

    Raises:
        ConfigurationError: No Redis is configured, or its address is none.
    """
    chosen = read_settings(RQSettings, environ)
    if chosen.redis_url is None:
        raise ConfigurationError("The rq backend needs REDIS_URL (or RQ_REDIS_URL), such as redis://localhost:6379/0.")
    url = chosen.redis_url.get_secret_value()
    try:
        # Connects to nothing.
        redis.ConnectionPool.from_url(url).make_connection()
    except (TypeError, ValueError):
        variable = "RQ_REDIS_URL" if environ.get("RQ_REDIS_URL", "").strip() else "REDIS_URL"
        # Not the value: it may hold a password.
        raise ConfigurationError(
            f"{variable} is not the address of a Redis, such as redis://localhost:6379/0 or rediss://..."
        ) from None
    return RQBackend(
        url,
        result_ttl_seconds=chosen.result_ttl_seconds,
        publish_timeout_seconds=chosen.publish_timeout_seconds,
    )


def _pipelines(publications: Sequence[Publication]) -> list[list[int]]:
    """Return the indexes of the publications in groups, each of which fits into one pipeline."""
    alone: list[list[int]] = []
    together: dict[str, list[int]] = {}
    seen: set[str] = set()
    for index, publication in enumerate(publications):
        envelope = publication.envelope
        # A pipeline knows neither start times nor unique jobs, and refuses an id that it has already.
        if (
            envelope.kind != FOREIGN_KIND
            and envelope.not_before_ms is None
            and envelope.idempotency_key is None
            and envelope.job_id not in seen
        ):
            seen.add(envelope.job_id)
            together.setdefault(envelope.queue, []).append(index)
        else:
            alone.append([index])
    return [*together.values(), *alone]


def _failure(error: Exception, job_id: str) -> PublishError:
    if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
        return PublishRejected(
            RQBackend.name, f"Redis does not accept our user, password or permissions ({redact(str(error))})."
        )
    return publish_failure(RQBackend.name, error, job_id)


def retry_interval(seconds: float) -> int:
    """Return what to tell RQ, so that a retry does not start before `seconds` have passed."""
    # RQ adds whole seconds to the present and then drops the fraction of the sum.
    return math.ceil(seconds) + 1 if seconds else 0


@lru_cache(maxsize=256)
def _retry(policy: RetryPolicy, *, at_least: int) -> rq.Retry | None:
    """Return the policy for RQ. It decides only after the death of a worker; else the job itself says when."""
    retries = max(policy.retries, at_least)
    if not retries:
        return None
    return rq.Retry(
        max=retries,
        interval=[retry_interval(policy.delay_before_retry(retry + 1)) for retry in range(retries)],
    )


def _meta(envelope: Envelope) -> dict[str, Any] | None:
    # What RQ's own tools show of a job.
    return dict(envelope.metadata) or None


def _options(publication: Publication) -> RQOptions:
    return read_options(RQOptions, RQBackend.name, publication.options) if publication.options else _NO_OPTIONS
