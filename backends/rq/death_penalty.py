"""How a pushed RQ job is stopped at its timeout, in whatever thread of the receiver it runs."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

from rq.timeouts import BaseDeathPenalty, BaseTimeoutException

from queuebridge.timelimit import time_limit


class PushDeathPenalty(BaseDeathPenalty):
    """RQ's interface to our time limit: RQ's own ways need the main thread, or change a class for all threads."""

    def __init__(self, timeout: int, exception: type[BaseTimeoutException] = BaseTimeoutException, **_: Any) -> None:
        class Late(exception):  # type: ignore[misc, valid-type]
            """RQ's exception, with its text."""

            def __init__(self, *_: object) -> None:
                super().__init__(f"Task exceeded maximum timeout value ({timeout} seconds)")

        for name in ("__name__", "__qualname__", "__module__"):
            setattr(Late, name, getattr(exception, name))
        self._limit = time_limit(timeout if timeout > 0 else None, Late)

    def __enter__(self) -> None:
        self._limit.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._limit.__exit__(kind, error, trace)
        return False
