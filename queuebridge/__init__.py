"""Background jobs over QStash, Celery or RQ behind one enqueue interface."""

from queuebridge.bridge import Bridge, Call, get_bridge, set_bridge
from queuebridge.context import CurrentJob, current_job
from queuebridge.errors import (
    AllWritesFailed,
    BackendUnavailable,
    ConfigurationError,
    EnqueueManyError,
    InvalidArguments,
    InvalidOption,
    LeaseLost,
    LedgerRequired,
    LedgerUnavailable,
    OptionNotSupported,
    PermanentFailure,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
    QueueBridgeError,
    RetryLater,
    TaskTimeout,
    UnknownTask,
)
from queuebridge.options import EnqueueOptions
from queuebridge.receipt import Receipt, Write
from queuebridge.registry import TaskRegistry
from queuebridge.retry import RetryPolicy
from queuebridge.task import Task, task

__all__ = [
    "AllWritesFailed",
    "BackendUnavailable",
    "Bridge",
    "Call",
    "ConfigurationError",
    "CurrentJob",
    "EnqueueManyError",
    "EnqueueOptions",
    "InvalidArguments",
    "InvalidOption",
    "LeaseLost",
    "LedgerRequired",
    "LedgerUnavailable",
    "OptionNotSupported",
    "PermanentFailure",
    "PublishError",
    "PublishOutcomeUnknown",
    "PublishRejected",
    "QueueBridgeError",
    "Receipt",
    "RetryLater",
    "RetryPolicy",
    "Task",
    "TaskRegistry",
    "TaskTimeout",
    "UnknownTask",
    "Write",
    "current_job",
    "get_bridge",
    "set_bridge",
    "task",
]
