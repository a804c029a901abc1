"""Tasks: functions that can be enqueued. Declaring one needs no bridge, no backend and no settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from pydantic import ValidationError

from queuebridge.arguments import ArgumentSchema
from queuebridge.errors import InvalidOption, TaskRegistrationError
from queuebridge.options import EnqueueOptions
from queuebridge.retry import DEFAULT_RETRY, RetryPolicy

if TYPE_CHECKING:
    from queuebridge.receipt import Receipt
    from queuebridge.registry import TaskRegistry

P = ParamSpec("P")
R = TypeVar("R")

# Timers of the operating system take no longer ones everywhere.
MAX_TIMEOUT_SECONDS = 365 * 86_400.0


class Task(Generic[P, R]):
    """A registered function with its name and default options. Made by the `task` decorator.

    Calling it calls the function, here and now. `delay`, `apply_async` and `aenqueue` enqueue a job through
    the bridge in use (`queuebridge.get_bridge()`).

    Attributes:
        name: The name under which executors know it.
        queue: The logical queue, None for the bridge's default.
        retry: When to try again after a failure.
        timeout: Seconds that one execution may take; None for no limit.
        description: One line for people.
        aliases: Former names, whose jobs it runs too.
        give_up_on: Exceptions after which a retry would be of no use.
        priority, metadata, options: Defaults of the enqueue options of the same name.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str,
        queue: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        description: str = "",
        aliases: Sequence[str] = (),
        give_up_on: Sequence[type[Exception]] = (),
        priority: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        _check_function(name, function)
        _check_declaration(name, timeout, aliases, give_up_on)
        # The same checks as at enqueue, so that a wrong default is found where it is written.
        try:
            defaults = EnqueueOptions(queue=queue, priority=priority, metadata=metadata or {}, options=options or {})
            self.metadata = defaults.json_metadata()
        except InvalidOption as error:
            raise TaskRegistrationError(f"Task {name!r}: {error}") from error
        # Not its attributes: they could take the place of ours.
        update_wrapper(self, function, updated=())
        self.function = function
        self.name = name
        self.queue = queue
        self.retry = DEFAULT_RETRY if retry is None or retry == DEFAULT_RETRY else retry
        self.timeout = float(timeout) if timeout is not None else None
        self.description = description
        self.aliases = tuple(aliases)
        self.give_up_on = tuple(give_up_on)
        self.priority = priority
        self.options = {backend: dict(chosen) for backend, chosen in (options or {}).items()}
        self.is_async = inspect.iscoroutinefunction(function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were not decorated."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @cached_property
    def arguments(self) -> ArgumentSchema:
        """Return the schema of the arguments; made at first use, when all types are defined."""
        return ArgumentSchema(self.name, self.function)

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Enqueue a job with these arguments. See `Bridge.enqueue` for what it returns and raises."""
        from queuebridge.bridge import get_bridge

        return get_bridge().enqueue(self, *args, **kwargs)

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Enqueue a job from asyncio code without blocking the event loop."""
        from queuebridge.bridge import get_bridge

        return await get_bridge().aenqueue(self, *args, **kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: float | timedelta | None = None,
        eta: datetime | None = None,
        expires: float | timedelta | datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        task_id: str | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        session: Any = None,
        connection: Any = None,
    ) -> Receipt:
        """Enqueue a job with options; see `EnqueueOptions` for their meaning.

        Raises:
            TypeError: `args` is no list or tuple, or `kwargs` no mapping.
            QueueBridgeError: As `Bridge.enqueue`.
        """
        from queuebridge.bridge import get_bridge

        return get_bridge().apply_async(
            self,
            args,
            kwargs,
            EnqueueOptions(
                countdown=countdown,
                eta=eta,
                expires=expires,
                queue=queue,
                priority=priority,
                task_id=task_id,
                retry=retry,
                headers=headers if headers is not None else {},
                metadata=metadata if metadata is not None else {},
                idempotency_key=idempotency_key,
                options=options if options is not None else {},
                session=session,
                connection=connection,
            ),
        )


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    name: str | None = None,
    queue: str | None = None,
    retries: int = 3,
    backoff: float | Sequence[float] = 10.0,
    backoff_max: float = 3600.0,
    jitter: bool = True,
    timeout: float | None = None,
    description: str | None = None,
    aliases: Sequence[str] = (),
    give_up_on: Sequence[type[Exception]] = (),
    priority: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    registry: TaskRegistry | None = None,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    retries: int = 3,
    backoff: float | Sequence[float] = 10.0,
    backoff_max: float = 3600.0,
    jitter: bool = True,
    timeout: float | None = None,
    description: str | None = None,
    aliases: Sequence[str] = (),
    give_up_on: Sequence[type[Exception]] = (),
    priority: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    registry: TaskRegistry | None = None,
) -> Task[P, R] | Callable[[Callable[P, R]], Task[P, R]]:
    """Declare a function, sync or `async def`, as a task.

    Args:
        function: The function, when the decorator is used without parentheses.
        name: The registered name; default `module.qualified_name`.
        queue: The logical queue; default the bridge's.
        retries: Attempts after the first; 0 means one attempt only.
        backoff: Seconds before the first retry, doubled for each further one; or the delays themselves.
        backoff_max: The longest exponential delay in seconds.
        jitter: Whether to shorten exponential delays at random, by up to a half.
        timeout: Seconds that one execution may take; default no limit.
        description: One line for people; default the first line of the docstring.
        aliases: Former names, whose jobs this task runs too.
        give_up_on: Exceptions after which it must not be retried.
        priority: Default priority, for backends that know priorities.
        metadata: Default metadata of each job.
        options: Default options of single backends, by backend name.
        registry: Where to register it; default the one that all processes share.

    Raises:
        TaskRegistrationError: The name is taken, or the declaration is impossible.
    """

    def declare(body: Callable[P, R]) -> Task[P, R]:
        from queuebridge.registry import default_registry

        chosen = name if name is not None else _default_name(body)
        declared = Task(
            body,
            name=chosen,
            queue=queue,
            retry=_retry_policy(chosen, retries, backoff, backoff_max, jitter=jitter),
            timeout=timeout,
            description=description if description is not None else _first_doc_line(body),
            aliases=aliases,
            give_up_on=give_up_on,
            priority=priority,
            metadata=metadata,
            options=options,
        )
        (registry if registry is not None else default_registry).add(declared)
        return declared

    return declare if function is None else declare(function)


def _retry_policy(
    task: str, retries: int, backoff: float | Sequence[float], backoff_max: float, *, jitter: bool
) -> RetryPolicy:
    if isinstance(backoff, str | bytes) or not isinstance(backoff, int | float | Sequence):
        raise TaskRegistrationError(f"Task {task!r}: backoff={backoff!r} is neither seconds nor a list of seconds.")
    settings: dict[str, Any] = {"retries": retries, "jitter": jitter}
    if isinstance(backoff, Sequence):
        if not backoff:
            raise TaskRegistrationError(f"Task {task!r}: backoff is empty; to run again at once, say backoff=0.")
        settings["delays"] = tuple(backoff)
    else:
        settings.update(base=backoff, cap=backoff_max)
    try:
        return RetryPolicy.model_validate(settings, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = _RETRY_OPTIONS.get(str(problem["loc"][0]), problem["loc"][0])
        raise TaskRegistrationError(f"Task {task!r}: impossible retry setting {option!r}: {problem['msg']}.") from None


# Field of RetryPolicy -> option of `@task`.
_RETRY_OPTIONS = {"delays": "backoff", "base": "backoff", "cap": "backoff_max"}


def _check_function(name: str, function: object) -> None:
    """Refuse what could be registered, but not run as a job."""
    if isinstance(function, Task):
        raise TaskRegistrationError(f"Task {name!r}: the function is the task {function.name!r} already.")
    kind = type(function).__name__
    if inspect.isclass(function) or inspect.ismethod(function) or not hasattr(function, "__code__"):
        raise TaskRegistrationError(
            f"Task {name!r}: {kind} is not a plain function. Write a function that calls it, and make that the task."
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskRegistrationError(
            f"Task {name!r}: it is a generator function; calling it would run nothing of it. Return the values in a "
            "list instead."
        )
    owner = getattr(function, "__qualname__", "").rpartition("<locals>.")[2].rpartition(".")[0]
    first = next(iter(inspect.signature(cast("Callable[..., Any]", function)).parameters), None)
    if owner and first in ("self", "cls"):
        raise TaskRegistrationError(
            f"Task {name!r}: it is a method, and a job has no {first!r} to call it on. Write a function at module "
            "level that takes an id, gets the object and calls the method."
        )


def _check_declaration(
    name: str, timeout: float | None, aliases: Sequence[str], give_up_on: Sequence[type[Exception]]
) -> None:
    if isinstance(aliases, str) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise TaskRegistrationError(f"Task {name!r}: aliases={aliases!r} is not a list of names.")
    if not isinstance(name, str) or not name:
        raise TaskRegistrationError(f"name={name!r} is not a name for a task.")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT_SECONDS
    ):
        raise TaskRegistrationError(
            f"Task {name!r}: timeout={timeout!r} is not a number of seconds above 0, up to a year."
        )
    if isinstance(give_up_on, type) or not all(
        isinstance(kind, type) and issubclass(kind, Exception) for kind in give_up_on
    ):
        raise TaskRegistrationError(f"Task {name!r}: give_up_on is not a list of exception classes.")


def _default_name(function: Callable[..., Any]) -> str:
    _check_function(getattr(function, "__qualname__", type(function).__name__), function)
    module = function.__module__
    if module in ("__main__", "__mp_main__"):
        module = _real_name_of_main(function) or module
    qualified = function.__qualname__
    if "<locals>" in qualified:
        raise TaskRegistrationError(
            f"{module}.{qualified} is declared inside a function, where other processes cannot find it. "
            "Declare it at module level, or give it a name= and import the module that runs the declaration."
        )
    return f"{module}.{qualified}"


def _real_name_of_main(function: Callable[..., Any]) -> str | None:
    """Return the name under which a worker imports the file that was started; the producer must use it too."""
    names = inspect.unwrap(function).__globals__
    spec = names.get("__spec__")
    if spec is not None:
        # Started with `python -m package.module`.
        return str(spec.name)
    return Path(names["__file__"]).stem if "__file__" in names else None


def _first_doc_line(function: Callable[..., Any]) -> str:
    doc = inspect.getdoc(function)
    return doc.splitlines()[0] if doc else ""
