"""Publish RQ jobs through the bridge: when the library's own writes are done, and all of a pipeline together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import redis
from redis.client import Pipeline
from rq.job import Job

from queuebridge.backends.rq.allowed import AllowList
from queuebridge.backends.rq.backend import RQBackend
from queuebridge.backends.rq.calls import check_pushable, envelope_of, parameter_names
from queuebridge.bridge import Bridge, get_bridge
from queuebridge.envelope import Envelope
from queuebridge.errors import (
    ConfigurationError,
    EnqueueManyError,
    InvalidOption,
    PublishOutcomeUnknown,
    QueueBridgeError,
)
from queuebridge.failures import redact
from queuebridge.foreign import Forwarding, is_chosen
from queuebridge.publishing.draft import Draft
from queuebridge.receipt import Receipt
from queuebridge.stages import Role, Side, Stage

if TYPE_CHECKING:
    from queuebridge.backends.rq.queue import Queue

logger = logging.getLogger(__name__)

_known: WeakKeyDictionary[Bridge, Forwarding] = WeakKeyDictionary()
_falls_back: ContextVar[bool] = ContextVar("queuebridge_rq_falls_back", default=False)
_HOOKS = "_queuebridge_after_execute"


def forwarding_in_use() -> Forwarding | None:
    """Return what publishes RQ jobs in this process; None if the environment chooses nothing."""
    return forwarding_of(get_bridge()) if is_chosen() else None


def forwarding_of(bridge: Bridge) -> Forwarding:
    """Return what publishes RQ jobs through a bridge."""
    forwarding = _known.get(bridge)
    if forwarding is None:
        forwarding = _known[bridge] = Forwarding(bridge, "rq")
    return forwarding


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a job goes that RQ alone would not bring there.

    Attributes:
        forwarding: What publishes it.
        stage: The stage by which it is written; None without a migration.
    """

    forwarding: Forwarding
    stage: Stage | None

    @property
    def pushes(self) -> bool:
        """Return whether a pushed copy may have to run the job."""
        if self.stage is None:
            return self.forwarding.bridge.backend.name != RQBackend.name
        plan = self.stage.plan
        return plan.copies.get(Side.PUSH) in (Role.PREFERRED, Role.SAFETY) or plan.fallback is Side.PUSH

    def check(self, job: Job) -> bool:
        """Return whether a job can go this way; False if RQ has to take it alone, as nobody needs the other copy.

        Raises:
            ConfigurationError, InvalidOption, OptionNotSupported: It can not, and would be needed there.
        """
        if not self.pushes and self.stage is not Stage.SHADOW:
            return True
        try:
            check_pushable(job, AllowList.from_environment())
        except QueueBridgeError as error:
            if self.pushes:
                raise
            logger.warning(
                "Job %s has no shadow copy: %s", job.id, error, extra={"event": "shadow_unwritable", "job_id": job.id}
            )
            return False
        return True

    def prepare(self, job: Job, *, dispatch_id: str, not_before: datetime | None, unsaved: bool, at_front: bool) -> Any:
        """Return a job as `publish` takes it. Without any I/O.

        Raises:
            QueueBridgeError: It cannot be published like this.
        """
        envelope = envelope_of(
            job,
            dispatch_id,
            stage=self.stage,
            not_before_ms=int(not_before.timestamp() * 1000) if not_before is not None else None,
            unsaved=unsaved,
        )
        _refuse_too_short_life(envelope)
        return self.forwarding.bridge.publisher.prepare(
            Draft(
                envelope=envelope,
                options={RQBackend.name: {"saved": not unsaved, "at_front": at_front}},
                parameter_names=parameter_names(job),
                stage=self.stage,
            )
        )


def route_of(queue: Queue, job: Job) -> Route | None:
    """Return where a job goes; None if RQ takes it alone."""
    # The environment is asked once for each queue: that takes as long as all the rest.
    if not queue.is_async or not queue.is_bridged:
        return None
    forwarding = forwarding_of(get_bridge())
    stage = forwarding.common_stage()
    if stage is None and forwarding.bridge.stages is not None:
        stage = forwarding.stage_of(str(job.func_name), queue.name, job.id, job.meta or {})
    if forwarding.is_left_to_library(stage):
        return None
    _check_same_redis(queue, forwarding.bridge)
    return Route(forwarding=forwarding, stage=stage)


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A job that is published when what the library writes of it is in Redis.

    Attributes:
        route: Where it goes.
        prepared: The job.
        job: The same, for RQ.
        take_back: Undoes what was written, if nobody takes the job.
        fall_back: Puts it on RQ's own queue, if nobody else takes it; None tells the caller instead.
    """

    route: Route
    prepared: Any
    job: Job
    take_back: Callable[[], object]
    fall_back: Callable[[], object] | None


def publish_all(jobs: Sequence[Pending]) -> None:
    """Publish jobs.

    Raises:
        PublishError: Nobody took the only one.
        EnqueueManyError: Nobody took some of them.
    """
    refused: list[Exception] = []
    results: list[Receipt | Exception] = []
    for route, together in _by_publisher(jobs):
        answers = route.forwarding.bridge.publisher.publish_many([pending.prepared for pending in together])
        for pending, answer in zip(together, answers, strict=True):
            results.append(answer)
            if isinstance(answer, Receipt):
                continue
            if pending.fall_back is not None:
                _fall_back(pending, pending.fall_back, answer)
                continue
            refused.append(answer)
            if not isinstance(answer, PublishOutcomeUnknown):
                pending.take_back()
    if refused:
        raise refused[0] if len(jobs) == 1 else EnqueueManyError(results)


def after_execute(pipeline: Pipeline, pending: Pending) -> None:
    """Publish a job when a pipeline has been executed, together with the others that wait for it."""
    waiting: list[Pending] | None = pipeline.__dict__.get(_HOOKS)
    if waiting is None:
        waiting = pipeline.__dict__[_HOOKS] = []
        execute = pipeline.execute

        def execute_and_publish(*args: Any, **kwargs: Any) -> Any:
            # Taken out first: after a WatchError the library puts in anew what it then wants.
            ready = list(waiting)
            waiting.clear()
            results = execute(*args, **kwargs)
            publish_all(ready)
            return results

        pipeline.__dict__["execute"] = execute_and_publish
    # One that is put in twice for one transaction is published as it was last.
    waiting[:] = [other for other in waiting if other.job.id != pending.job.id]
    waiting.append(pending)


def _by_publisher(jobs: Sequence[Pending]) -> list[tuple[Route, list[Pending]]]:
    groups: dict[int, tuple[Route, list[Pending]]] = {}
    for pending in jobs:
        groups.setdefault(id(pending.route.forwarding), (pending.route, []))[1].append(pending)
    return list(groups.values())


@contextmanager
def falling_back() -> Iterator[None]:
    """Let jobs that RQ enqueues inside the block wait on its own queue, if nobody else takes them."""
    token = _falls_back.set(True)
    try:
        yield
    finally:
        _falls_back.reset(token)


def is_falling_back() -> bool:
    """Return whether this is such a block."""
    return _falls_back.get()


def _fall_back(pending: Pending, put_on_queue: Callable[[], object], error: Exception) -> None:
    """Keep what an execution brought forth and nobody took: the execution cannot be undone for it."""
    if isinstance(error, PublishOutcomeUnknown) and pending.route.forwarding.bridge.ledger is None:
        # Both copies would run.
        logger.error("Job %s may be lost: %s", pending.job.id, redact(str(error)), extra={"event": "outcome_unknown"})
        return
    logger.error(
        "Job %s follows from another one and could not be published (%s): it waits on RQ's queue %s, for an RQ worker.",
        pending.job.id,
        redact(str(error)),
        pending.job.origin,
        extra={"event": "left_on_queue", "job_id": pending.job.id},
    )
    put_on_queue()


def _refuse_too_short_life(envelope: Envelope) -> None:
    if envelope.expires_at_ms is not None and (envelope.not_before_ms or 0) >= envelope.expires_at_ms:
        raise InvalidOption("ttl", "the job would expire before it may start.")


_compared: WeakSet[Any] = WeakSet()


def _check_same_redis(queue: Queue, bridge: Bridge) -> None:
    """Refuse a queue in another Redis than the one where receivers and reconcile would look for the job."""
    pool = queue.connection.connection_pool
    if pool in _compared:
        return
    backend = next((each for each in bridge.backends.values() if isinstance(each, RQBackend)), None)
    if backend is not None:
        ours, theirs = _identity(backend.connection), _identity(queue.connection)
        if ours is not None and theirs is not None and ours != theirs:
            raise ConfigurationError(
                f"The connection of queue {queue.name!r} leads to another Redis database than REDIS_URL (or "
                "RQ_REDIS_URL), which workers, receivers and reconcile use. Set it to the database of the queue."
            )
    _compared.add(pool)


def _identity(connection: redis.Redis) -> tuple[str, int] | None:
    try:
        run_id = connection.info("server").get("run_id")
    except (redis.RedisError, OSError):
        # A proxy, or a server that is away: what cannot be told apart is left alone.
        return None
    return (str(run_id), int(connection.connection_pool.connection_kwargs.get("db") or 0)) if run_id else None
