"""Run the coroutine of an async task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any

from queuebridge.errors import TaskTimeout
from queuebridge.timelimit import time_limit

# How long a coroutine that was cancelled may take to clean up.
_CANCEL_SECONDS = 1.0


def run_coroutine(coroutine: Coroutine[Any, Any, Any], timeout: float | None) -> Any:
    """Return the result of a coroutine, from code that may itself be running in an event loop.

    Args:
        coroutine: What to run.
        timeout: Seconds after which it is cancelled; None sets no limit.

    Raises:
        TaskTimeout: It ran past the timeout.
        BaseException: Whatever the coroutine raises.
    """

    async def limited() -> Any:
        body = asyncio.ensure_future(coroutine)
        body.add_done_callback(_look_at)
        done, _ = await asyncio.wait({body}, timeout=timeout)
        if not done:
            body.cancel()
            await asyncio.wait({body}, timeout=_CANCEL_SECONDS)
            raise TaskTimeout(timeout)
        return body.result()

    def run() -> Any:
        # The second limit is for bodies that block the event loop, which then cannot see to the first.
        with time_limit(None if timeout is None else timeout + 2 * _CANCEL_SECONDS):
            return asyncio.run(limited())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    # Called from inside an event loop (the inline backend in asyncio code): a loop cannot be entered twice.
    result: list[Any] = []
    failure: list[BaseException] = []
    context = copy_context()

    def in_thread() -> None:
        try:
            result.append(context.run(run))
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            failure.append(error)

    thread = threading.Thread(target=in_thread, name="queuebridge-async-task")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _look_at(body: asyncio.Future[Any]) -> None:
    # Otherwise asyncio complains that nobody did, when the limit or the end of the process came first.
    if not body.cancelled():
        body.exception()
