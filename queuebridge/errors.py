"""Every error that queuebridge raises.

QueueBridgeError
├── ConfigurationError            a setting is missing, contradictory or unusable
│   ├── MissingExtra              an optional library is not installed
│   └── LedgerRequired            a stage or an option needs a ledger, and there is none
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
│   ├── PublishOutcomeUnknown     sent, but no answer came: it may or may not have been accepted (retryable)
│   └── AllWritesFailed           in a stage that writes to several backends, none took it (retryable)
├── EnqueueManyError              some jobs of a batch were not accepted
├── LedgerError
│   ├── LedgerUnavailable         the ledger cannot be reached (retryable)
│   └── RevisionConflict          the stage settings were changed meanwhile by somebody else
├── StageRefused                  a stage cannot be changed as asked; has the reasons
├── LeaseLost                     raised in a task body whose claim has been taken over
├── NotAuthentic                  a delivery's signature, sender or body cannot be trusted
├── TaskTimeout                   a task body ran past its timeout
├── RetryLater                    raised by a task to be run again after a given time
└── PermanentFailure              raised by a task that must not be retried
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


class LedgerRequired(ConfigurationError):
    """Raised when a stage or an option needs a ledger, and none is configured."""

    def __init__(self, feature: str) -> None:
        self.feature = feature
        super().__init__(
            f"{feature} needs a ledger, so that of two copies of a job only one runs. Set QUEUEBRIDGE_LEDGER to a "
            "database that all producers, receivers and workers reach, such as postgresql://... or redis://..."
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


class AllWritesFailed(PublishError):
    """Raised when none of the backends that a stage writes to took a job.

    Attributes:
        causes: The error of each, by the name of the backend.
    """

    retryable = True

    def __init__(self, causes: Mapping[str, Exception]) -> None:
        self.causes = dict(causes)
        super().__init__(", ".join(causes), "no backend took the job. " + " ".join(str(e) for e in causes.values()))


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


class LedgerError(QueueBridgeError):
    """The root of errors about the ledger."""


class LedgerUnavailable(LedgerError):
    """Raised when the ledger cannot be reached, or does not answer in time."""

    retryable = True


class RevisionConflict(LedgerError):
    """Raised when stage settings were made from a revision that is not the latest any more."""

    def __init__(self, after: int, latest: int) -> None:
        self.after = after
        self.latest = latest
        super().__init__(
            f"The stage settings were changed meanwhile: revision {latest} came after revision {after}. Look at it "
            "with `queuebridge stage show`, and try again."
        )


class StageRefused(QueueBridgeError):
    """Raised when a stage cannot be changed as asked."""

    def __init__(self, change: str, reasons: Sequence[str]) -> None:
        self.change = change
        self.reasons = tuple(reasons)
        super().__init__(f"{change} is refused: " + " ".join(self.reasons))


class LeaseLost(QueueBridgeError):
    """Raised inside a task body whose claim has ended and was taken over by another execution.

    Whatever it still does may be done a second time; its result is not recorded.
    """


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
