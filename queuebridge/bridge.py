"""The bridge: the one object through which a program enqueues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from queuebridge.assembly import assemble
from queuebridge.backend import Backend
from queuebridge.envelope import VERSION, Envelope
from queuebridge.errors import EnqueueManyError, InvalidOption, LedgerRequired
from queuebridge.ids import check_job_id, job_id_for_key, new_dispatch_id, new_job_id
from queuebridge.options import EnqueueOptions, lasting_options, merged_options
from queuebridge.publishing.draft import Draft
from queuebridge.receipt import Receipt
from queuebridge.registry import AnyTask, TaskRegistry, default_registry, discover
from queuebridge.settings import Settings, environment_or
from queuebridge.stages import Role, Side
from queuebridge.task import Task
from queuebridge.tracing import current_trace

if TYPE_CHECKING:
    from queuebridge.ledger import Ledger
    from queuebridge.reconcile import Reconciler

_NO_OPTIONS = EnqueueOptions()


@dataclass(frozen=True, slots=True)
class Call:
    """One job for `enqueue_many`: a task, its arguments and its options."""

    task: AnyTask | str
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    options: EnqueueOptions = _NO_OPTIONS


class Bridge:
    """Enqueue jobs through the backend that the environment selects.

    Making a bridge reads settings and connects to nothing. It is safe to use from several threads.

    Args:
        backend: A backend, or the name of one, instead of the environment's choice.
        registry: The tasks; default the registry that `@task` uses.
        environ: Variables to read instead of the process's environment.
        ledger: A ledger, instead of the one that the environment names.
        kind: What this process does, for `queuebridge status`: `producer`, `receiver`, `worker` or `reconcile`.
        clock: The time in Unix seconds.

    Attributes:
        backend: The backend in use; in a migration, the push backend.
        legacy: The old backend of a migration; None without one.
        ledger: The ledger; None without one.
        runner: Executes deliveries.
        parking: Puts push deliveries off; None where nothing is pushed.
        publisher: Publishes jobs.
        stages: Where the stages of a migration come from; None without one.

    Raises:
        ConfigurationError: The environment selects no backend, or a setting is wrong.
        LedgerRequired: A stage of the migration needs a ledger, and there is none.
    """

    def __init__(
        self,
        backend: Backend | str | None = None,
        *,
        registry: TaskRegistry | None = None,
        environ: Mapping[str, str] | None = None,
        ledger: Ledger | None = None,
        kind: str = "producer",
        clock: Callable[[], float] = time.time,
    ) -> None:
        environ = environment_or(environ)
        self._clock = clock
        self.settings = Settings.from_environment(environ)
        self.registry = registry if registry is not None else default_registry
        parts = assemble(self.settings, environ, self.registry, backend=backend, ledger=ledger, kind=kind, clock=clock)
        self.publisher = parts.publisher
        self.stages = parts.stages
        self._keeping = parts.keeping
        self.backends = parts.backends
        self.runner = parts.runner
        self.parking = parts.parking

    @property
    def backend(self) -> Backend:
        """Return the backend in use; in a migration, the push backend."""
        return self.backends[Side.PUSH] if Side.PUSH in self.backends else self.backends[Side.LEGACY]

    @property
    def legacy(self) -> Backend | None:
        """Return the old backend of a migration; None without one."""
        return self.backends[Side.LEGACY] if self.stages is not None else None

    @property
    def worker_backend(self) -> Backend:
        """Return the backend whose jobs a worker would take: the old one of a migration, else the one in use."""
        return self.legacy or self.backend

    @property
    def ledger(self) -> Ledger | None:
        """Return the ledger; None without one."""
        return self._keeping.ledger if self._keeping is not None else None

    @property
    def spools(self) -> bool:
        """Return whether jobs that no backend takes are kept in the ledger."""
        return self._keeping is not None and self._keeping.settings.on_publish_error == "spool"

    def load_tasks(self) -> None:
        """Import the modules named by QUEUEBRIDGE_TASKS and check every task's arguments.

        Raises:
            ConfigurationError: A module does not exist.
            TaskRegistrationError: A task is declared twice, or its arguments have no JSON form.
        """
        discover(self.settings.tasks)
        self.registry.check()

    def enqueue(self, task: AnyTask | str, /, *args: Any, **kwargs: Any) -> Receipt:
        """Enqueue a job with these arguments and the task's own options.

        Returns:
            What is known: which backend has the job, under which id.

        Raises:
            UnknownTask: `task` is a name that is not registered in this process.
            InvalidArguments: The arguments do not fit the task's signature and type hints.
            OptionNotSupported, InvalidOption: The backend cannot honour an option of the task.
            PublishError: The backend did not take the job, or did not say whether it did.
        """
        return self.apply_async(task, args, kwargs)

    async def aenqueue(self, task: AnyTask | str, /, *args: Any, **kwargs: Any) -> Receipt:
        """Enqueue from asyncio code; the event loop is not blocked meanwhile. As `enqueue` otherwise.

        Cancelling the caller does not stop a publish that is under way.
        """
        return await self.aapply_async(task, args, kwargs)

    def apply_async(
        self,
        task: AnyTask | str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions = _NO_OPTIONS,
    ) -> Receipt:
        """Enqueue a job with options. As `enqueue` otherwise.

        Raises:
            TypeError: `task` is no task, `args` no list or tuple, or `kwargs` no mapping.
        """
        return self.publisher.publish(self._prepare(task, args, kwargs, options))

    async def aapply_async(
        self,
        task: AnyTask | str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: EnqueueOptions = _NO_OPTIONS,
    ) -> Receipt:
        """Enqueue a job with options from asyncio code. As `aenqueue` otherwise."""
        # Not at the top: a receiver that starts cold does not need it.
        import asyncio

        return await asyncio.to_thread(self.apply_async, task, args, kwargs, options)

    def enqueue_many(self, calls: Iterable[Call | tuple[AnyTask | str, Sequence[Any]]]) -> list[Receipt]:
        """Enqueue several jobs through the batch interface of the backend.

        All are checked before the first is sent: a wrong argument or option anywhere sends nothing.

        Args:
            calls: `Call` objects, or pairs of a task and its positional arguments.

        Returns:
            The receipts, in the order of the calls.

        Raises:
            EnqueueManyError: Some were not accepted; it has the receipt or the error of each.
            QueueBridgeError: As `enqueue`, for the first call that is wrong; nothing was sent.
        """
        prepared = []
        for call in calls:
            one = call if isinstance(call, Call) else Call(*call)
            prepared.append(self._prepare(one.task, one.args, one.kwargs, one.options))
        if not prepared:
            return []
        results = self.publisher.publish_many(prepared)
        receipts = [result for result in results if isinstance(result, Receipt)]
        if len(receipts) < len(results):
            raise EnqueueManyError(results)
        return receipts

    def cancel(self, job_id: str) -> tuple[int, int]:
        """Keep a job from starting, on whatever backend it waits.

        Returns:
            How many of its dispatches were cancelled, and how many run already and were left alone.

        Raises:
            LedgerRequired: There is no ledger, which alone knows a job on all backends.
            LedgerUnavailable: It cannot be reached.
        """
        if self._keeping is None:
            raise LedgerRequired("Cancelling a job")
        from queuebridge.cancelling import cancel_everywhere

        return cancel_everywhere(job_id, self._keeping.ledger, self.backends)

    def redeliver(self, envelope: Envelope) -> None:
        """Have reconcile publish a job anew whose transport gave it up; without a ledger nothing is done.

        Raises:
            LedgerUnavailable: The ledger cannot be reached.
        """
        if self._keeping is None or envelope.role is Role.SHADOW:
            return
        from queuebridge.publishing.recording import take_back

        take_back(
            envelope,
            self.backend.name,
            ledger=self._keeping.ledger,
            custody=self._keeping.custody,
            settings=self._keeping.settings,
            names=self.registry.get(envelope.task).arguments.positional if envelope.task in self.registry else (),
        )

    def reconciler(self) -> Reconciler:
        """Return what looks after held, unpublished and abandoned jobs.

        Raises:
            LedgerRequired: There is no ledger.
        """
        if self._keeping is None:
            raise LedgerRequired("Reconciling")
        from queuebridge.reconcile import Reconciler

        return Reconciler(self._keeping.ledger, self.backends, self._keeping.custody)

    def close(self) -> None:
        """Give up connections and end threads."""
        if self.stages is not None:
            self.stages.close()
        self.publisher.close()
        for backend in self.backends.values():
            backend.close()
        if self._keeping is not None:
            self._keeping.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def activate(self) -> Iterator[Bridge]:
        """Make this the bridge that `task.delay` uses inside the block, in this thread or asyncio task."""
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)

    def _prepare(
        self,
        task: AnyTask | str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: EnqueueOptions,
    ) -> Any:
        if isinstance(task, str):
            task = self.registry.get(task)
        elif not isinstance(task, Task):
            raise TypeError(f"Not a task, but {type(task).__name__}: decorate the function with @task.")
        if args is None:
            args = ()
        elif type(args) is not tuple and (isinstance(args, str | bytes) or not isinstance(args, Sequence)):
            raise TypeError(f"args must be a list or tuple of arguments, not {type(args).__name__}.")
        if kwargs is None:
            kwargs = {}
        elif type(kwargs) is not dict and not isinstance(kwargs, Mapping):
            raise TypeError(f"kwargs must be a mapping of names to arguments, not {type(kwargs).__name__}.")
        chosen = merged_options(task.options, options.options)
        envelope = self._envelope(task, args, kwargs, options, chosen)
        return self.publisher.prepare(
            Draft(
                envelope=envelope,
                retry=options.retry,
                options=chosen,
                parameter_names=task.arguments.positional,
                stage=envelope.stage,
                transaction=options.session if options.session is not None else options.connection,
            )
        )

    def _envelope(
        self,
        task: AnyTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: EnqueueOptions,
        chosen: Mapping[str, Mapping[str, Any]],
    ) -> Envelope:
        wire_args, wire_kwargs = task.arguments.dump(args, kwargs)
        now = self._clock()
        not_before, expires = options.not_before_ms(now), options.expires_at_ms(now)
        if expires is not None and expires <= max(now * 1000, not_before or 0):
            raise InvalidOption("expires", "the job would expire before it may start.")
        key = options.idempotency_key
        if options.task_id is not None:
            job_id = check_job_id(options.task_id)
        else:
            job_id = job_id_for_key(task.name, key) if key is not None else new_job_id()
        fields: dict[str, Any] = {
            "job_id": job_id,
            # The same key must give the same dispatch, or no transport could tell that it has it already.
            "dispatch_id": job_id if key is not None else new_dispatch_id(),
            "task": task.name,
            "args": wire_args,
            "kwargs": wire_kwargs,
            "queue": options.queue or task.queue or self.settings.default_queue,
            "enqueued_at_ms": int(now * 1000),
            "retry": task.retry,
        }
        metadata = {**task.metadata, **options.json_metadata()} if options.metadata else task.metadata
        optional = {
            "not_before_ms": not_before,
            "expires_at_ms": expires,
            "timeout_seconds": task.timeout,
            "priority": options.priority if options.priority is not None else task.priority,
            "idempotency_key": key,
            "metadata": metadata,
            "headers": options.headers,
            "trace": current_trace(),
            "options": {},
            "message": {},
        }
        if self.stages is not None:
            decision = self.stages.settings().stage_for(task.name, fields["queue"], job_id, metadata)
            fields["stage"] = decision.stage
        if chosen:
            # Whoever publishes this dispatch again has no other way to know them.
            optional.update(version=VERSION, options=lasting_options(chosen))
        # Only what is set: each field that is given costs time to validate. Not so empty ones: pydantic would copy
        # their defaults deeply, which takes longer.
        fields.update({name: value for name, value in optional.items() if value is not None})
        return Envelope(**fields)


_active: ContextVar[Bridge | None] = ContextVar("queuebridge_active_bridge", default=None)
_default: Bridge | None = None
# Reentrant: making a bridge may import the user's Celery app, whose module may ask for the bridge.
_default_lock = threading.RLock()


def get_bridge() -> Bridge:
    """Return the bridge in use: the activated one, else the process's.

    The latter is made from the environment at first use.

    Raises:
        ConfigurationError: As `Bridge()`.
    """
    active = _active.get()
    if active is not None:
        return active
    global _default  # noqa: PLW0603 - one per process, like a logger
    bridge = _default
    if bridge is None:
        with _default_lock:
            bridge = _default
            if bridge is None:
                bridge = _default = Bridge()
    return bridge


def set_bridge(bridge: Bridge | None) -> None:
    """Make `bridge` the process's; None lets the next use make one from the environment."""
    global _default  # noqa: PLW0603 - one per process, like a logger
    with _default_lock:
        _default = bridge
