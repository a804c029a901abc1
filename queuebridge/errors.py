"""Every error that queuebridge raises.

QueueBridgeError
├── ConfigurationError            a setting is missing, contradictory or unusable
│   └── MissingExtra              an optional library is not installed
├── TaskRegistrationError         a task is declared twice, or cannot be declared as written
├── UnknownTask                   no task has this name (retryable: a newer deployment may know it)
├── InvalidArguments              arguments do not fit the task's signature and type hints
├── InvalidOption                 an enqueue option has an impossible value
├── OptionNotSupported            the backend cannot honour an option
├── PayloadTooLarge               the encoded envelope exceeds the backend's limit
├── EnvelopeError
│   ├── MalformedEnvelope         these bytes are not an envelope
│   └── UnsupportedEnvelope       an envelope of a newer version (retryable)
├── PublishError                  a job could not be handed to a backend
│   ├── BackendUnavailable        the backend did not take it; trying again may help (retryable)
│   ├── PublishRejected           the backend refused it, and will again
│   └── PublishOutcomeUnknown     sent, but no answer came: it may or may not have been accepted (retryable)
├── EnqueueManyError              some jobs of a batch were not accepted
├── NotAuthentic                  a delivery's signature, sender or body cannot be trusted
├── TaskTimeout                   a task body ran past its timeout
├── RetryLater                    raised by a task to be run again after a given time
└── PermanentFailure              raised by a task that must not be retried
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from queuebridge.receipt import Receipt


class QueueBridgeError(Exception):
    """The root of all errors raised by queuebridge.

    `retryable` says whether the same operation may succeed when repeated unchanged.
    """

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with the message, but many have other parameters. Worker processes
        # and result backends pickle errors; one that cannot be read back takes the process down.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[QueueBridgeError], args: tuple[Any, ...], state: dict[str, Any]) -> QueueBridgeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(QueueBridgeError):
    """Raised when a setting is missing, contradictory or unusable; the message names the variable."""


class MissingExtra(ConfigurationError):
    """Raised when a feature needs a library that is not installed."""

    def __init__(self, feature: str, library: str, extra: str) -> None:
        self.feature = feature
        self.library = library
        self.extra = extra
        super().__init__(
            f"{feature} needs the library {library!r}, which is not installed. "
            f"Install it with: pip install 'qstash-queuebridge[{extra}]'"
        )


class TaskRegistrationError(QueueBridgeError):
    """Raised when a task is declared twice under one name, or its declaration cannot work."""


class UnknownTask(QueueBridgeError):
    """Raised when no task is registered under a name."""

    retryable = True

    def __init__(self, name: str, *, known: Sequence[str] = (), suggestion: str | None = None) -> None:
        self.name = name
        hint = f" Did you mean {suggestion!r}?" if suggestion else ""
        if known:
            shown = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
            where = f"Registered: {shown}."
        else:
            where = "No task is registered at all."
        super().__init__(
            f"No task is registered under the name {name!r}.{hint} {where} Name the modules that declare "
            "tasks in QUEUEBRIDGE_TASKS; if the task was renamed, give the new one aliases=[the old name]."
        )


class InvalidArguments(QueueBridgeError):
    """Raised when arguments do not fit the signature and type hints of a task."""

    def __init__(self, task: str, problems: Sequence[str]) -> None:
        self.task = task
        self.problems = tuple(problems)
        super().__init__(f"Invalid arguments for task {task!r}: " + "; ".join(self.problems))


class InvalidOption(QueueBridgeError):
    """Raised when an enqueue option has a value that no backend could honour."""

    def __init__(self, option: str, problem: str) -> None:
        self.option = option
        super().__init__(f"Invalid option {option}: {problem}")


class OptionNotSupported(QueueBridgeError):
    """Raised before any I/O when the chosen backend cannot honour an option."""

    def __init__(self, backend: str, option: str, reason: str) -> None:
        self.backend = backend
        self.option = option
        super().__init__(f"The {backend} backend cannot honour {option}: {reason}")


class PayloadTooLarge(QueueBridgeError):
    """Raised before any I/O when an envelope is larger than the backend accepts. Sizes are in bytes."""

    def __init__(self, backend: str, size: int, limit: int) -> None:
        self.backend = backend
        self.size = size
        self.limit = limit
        super().__init__(
            f"The job is {size} bytes long, the {backend} backend accepts {limit}. Pass a reference "
            "(a file name, a database key) in place of the data."
        )


class EnvelopeError(QueueBridgeError):
    """The root of errors about the wire form of a job."""


class MalformedEnvelope(EnvelopeError):
    """Raised when bytes are not an envelope; they never will be, so it is not retried."""


class UnsupportedEnvelope(EnvelopeError):
    """Raised for an envelope of a version newer than this installation knows."""

    retryable = True

    def __init__(self, version: object, supported: int) -> None:
        self.version = version
        super().__init__(
            f"The envelope has version {version!r}; this installation of queuebridge knows versions 1 to "
            f"{supported}. Deploy the receiver and the workers before the producers."
        )


class PublishError(QueueBridgeError):
    """The root of errors raised when a job could not be handed to a backend."""

    def __init__(self, backend: str, reason: str) -> None:
        self.backend = backend
        self.reason = reason
        super().__init__(f"{backend}: {reason}")


class BackendUnavailable(PublishError):
    """Raised when a backend cannot be reached or is overloaded; nothing was accepted."""

    retryable = True


class PublishRejected(PublishError):
    """Raised when a backend refuses a job for good: bad token, quota, invalid destination."""


class PublishOutcomeUnknown(PublishError):
    """Raised when a job was sent and no answer came: the backend may have accepted it.

    `job_id` is what to look for at the backend. To enqueue again without a second effect, use an
    `idempotency_key` from the beginning; another enqueue without one is another job.
    """

    retryable = True

    def __init__(self, backend: str, reason: str, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(backend, f"{reason} The job {job_id} may or may not have been accepted.")


class EnqueueManyError(QueueBridgeError):
    """Raised when some jobs of a batch were not accepted.

    Attributes:
        results: In the order of the calls, the receipt or the error of each.
    """

    def __init__(self, results: Sequence[Receipt | Exception]) -> None:
        self.results = tuple(results)
        errors = [result for result in results if isinstance(result, Exception)]
        super().__init__(
            f"{len(errors)} of {len(results)} jobs were not accepted; the first: {errors[0]} "
            "The attribute `results` has the receipt or the error of each."
        )


class NotAuthentic(QueueBridgeError):
    """Raised when a delivery cannot be trusted: signature, sender, time, address or body are wrong."""


class TaskTimeout(QueueBridgeError):
    """Raised inside a task body that runs past its timeout, given in seconds."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        limit = f" of {seconds:g} s" if seconds is not None else ""
        super().__init__(f"The task ran past its timeout{limit}.")


class RetryLater(QueueBridgeError):
    """Raised by a task body to be run again; counts as an attempt.

    Args:
        reason: What the log shall say.
        delay_seconds: When to run again; None means the task's own backoff.
    """

    def __init__(self, reason: str = "The task asked to be retried.", *, delay_seconds: float | None = None) -> None:
        if delay_seconds is not None and not 0 <= delay_seconds < math.inf:
            raise InvalidOption("delay_seconds", f"{delay_seconds} is no number of seconds from 0 upwards.")
        self.delay_seconds = delay_seconds
        super().__init__(reason)


class PermanentFailure(QueueBridgeError):
    """Raised by a task body that failed in a way that no retry can mend."""
