"""Stop a task body that runs past its timeout, as far as a thread allows."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType

from queuebridge.errors import TaskTimeout

logger = logging.getLogger(__name__)


def time_limit(seconds: float | None, error: type[Exception] = TaskTimeout) -> AbstractContextManager[None]:
    """Raise an exception inside the block when it takes longer than `seconds`; None sets no limit.

    `error` is its class, which takes the limit in seconds, or nothing.

    In the main thread an alarm signal interrupts even blocking calls. In any other thread an asynchronous
    exception is set, which takes effect at the next Python instruction: a blocking call is not interrupted,
    but the block ends as soon as that call returns. Either may hit any line of the block, clean-up code included;
    one that hits a finalizer or a callback of the garbage collector is swallowed by Python, and the block goes on.

    Nothing is raised once the block has been left. Limits may be nested; an alarm that somebody else has set
    goes off at its time, or at the end of the block if that time has passed.
    """
    if seconds is None:
        return nullcontext()
    if threading.current_thread() is threading.main_thread():
        return _Alarm(seconds, error)
    return _AsynchronousException(seconds, error)


# Both limits are classes, not generators: the exception may be raised between the end of the block and the first
# instruction of what follows it, and a generator that is then never resumed would clean up at some later time.


class _Alarm:
    """A limit in the main thread."""

    def __init__(self, seconds: float, error: type[Exception]) -> None:
        self._seconds = seconds
        self._error = error
        self._armed = False

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._outer_seconds, self._outer_interval = signal.getitimer(signal.ITIMER_REAL)
        if 0 < self._outer_seconds <= self._seconds:
            # An outer limit ends this block before ours would.
            return
        # None: set by another language than Python, and not to be restored from here.
        self._previous = signal.signal(signal.SIGALRM, self._expire) or signal.SIG_DFL
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disarm()

    def _expire(self, _number: int, _frame: FrameType | None) -> None:
        # Not armed: the signal came while the limit was being taken down.
        if self._armed:
            # Here and not in __exit__ alone, which this very exception may keep from running.
            self._disarm()
            raise self._error(self._seconds)

    def _disarm(self) -> None:
        if not self._armed:
            return
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._previous)
        if self._outer_seconds > 0:
            left = self._outer_seconds - (time.monotonic() - self._began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6), self._outer_interval)


class _Harmless(Exception):
    """Takes the place of a TaskTimeout that came too late."""


class _AsynchronousException:
    """A limit in a thread other than the main one."""

    def __init__(self, seconds: float, error: type[Exception]) -> None:
        self._seconds = seconds
        self._error = error
        self._lock = threading.Lock()
        self._running = True
        self._fired = False

    def __enter__(self) -> None:
        # Not at the top: a receiver that starts cold does not need it.
        import ctypes

        # Has an exception raised in a thread at its next instruction, in place of one that was not raised yet.
        self._set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
        self._timed_out = ctypes.py_object(self._error)
        self._harmless = ctypes.py_object(_Harmless)
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._timer = threading.Timer(self._seconds, self._expire)
        self._timer.daemon = True
        with self._lock:
            # Not before the timer has been started: an exception inside `start` upsets the threading module.
            self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            # Under the lock: after this line the exception can no longer be set.
            self._running = False
            if self._fired and kind is not self._error:
                # Set, but perhaps not raised before the block ended; it must not hit what follows. Replaced, not
                # taken back: with nothing to take back, Python 3.11 would hang under a tracer.
                try:
                    self._set_exception(self._thread, self._harmless)
                    while True:
                        pass
                except (_Harmless, self._error):
                    pass
        self._timer.cancel()
        if self._fired and isinstance(error, TaskTimeout) and error.seconds is None:
            # Only a class can be set in another thread, so this one does not know its limit yet.
            raise TaskTimeout(self._seconds).with_traceback(error.__traceback__) from None

    def _expire(self) -> None:
        with self._lock:
            if self._running:
                # 0 where threads are not the system's own, as under gevent: then nothing was set.
                self._fired = self._set_exception(self._thread, self._timed_out) == 1
                if not self._fired:
                    logger.warning("A task ran past its timeout of %g s, and cannot be stopped here.", self._seconds)
