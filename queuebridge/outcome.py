"""How a delivery ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Status(enum.Enum):
    """How a delivery ended."""

    DONE = "done"
    RETRY = "retry"
    FAILED = "failed"
    RETRIED = "retried"  # it failed, and the library that the call was written for has published it anew
    EXPIRED = "expired"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNKNOWN_TASK = "unknown_task"
    DUPLICATE = "duplicate"  # the dispatch had ended already; nothing was run
    BUSY = "busy"  # another execution holds the claim; nothing was run
    SHADOWED = "shadowed"  # a shadow copy was looked at, and not run
    DEFERRED = "deferred"  # the ledger is away; to be delivered again


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of one delivery.

    Attributes:
        status: How it ended.
        result: The task's return value in JSON form, if `status` is DONE.
        error: What went wrong, for other statuses.
        retry_delay_seconds: When to deliver it again, if `status` is RETRY, BUSY or DEFERRED.
        epoch: If `status` is BUSY, the publication epoch under which the delivery can be parked.
    """

    status: Status
    result: Any = None
    error: Exception | None = None
    retry_delay_seconds: float | None = None
    epoch: int | None = None

    @property
    def reason(self) -> str:
        """Return the error in one line."""
        return describe(self.error) if self.error is not None else ""


def describe(error: BaseException) -> str:
    """Return an exception in one line: its type, and its text if it has one."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an error that cannot be shown must not become another one
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
