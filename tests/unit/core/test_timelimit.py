"""Bodies that run past their timeout are stopped, and nothing else is."""

from __future__ import annotations

import ctypes
import functools
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from queuebridge import TaskTimeout
from queuebridge.timelimit import time_limit

SHORT = 0.02


class Outer(Exception):
    """Raised by an alarm that somebody else has set."""


@pytest.fixture(autouse=True)
def _no_alarm_is_left() -> Iterator[None]:
    """Fail if a limit changes the alarm of the process; pytest-timeout has one of its own."""
    handler, (seconds, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    yield
    assert signal.getsignal(signal.SIGALRM) is handler
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (left > 0) == (seconds > 0)
    assert left <= seconds


@contextmanager
def alarm(seconds: float) -> Iterator[list[float]]:
    """Set an alarm as another library would, and note when it goes off."""
    fired: list[float] = []
    began = time.monotonic()

    def ring(_number: int, _frame: FrameType | None) -> None:
        fired.append(time.monotonic() - began)
        raise Outer

    handler = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield fired
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


def skip_under_coverage() -> None:
    """Skip a test whose exception may hit anything that runs in its thread.

    Coverage has Python code of its own there, with a lock that would be held for ever.
    """
    coverage = sys.modules.get("coverage")
    if coverage is not None and coverage.Coverage.current() is not None:
        pytest.skip("coverage is measured, and must not be interrupted")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep finalizers and callbacks of the collector out of a block.

    Python swallows an exception that hits one of them, so that the limit would be lost, and warns of it. Hypothesis,
    which is loaded with pytest, has such a callback in every test session.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread other than the main one; return or raise what it does."""
    skip_under_coverage()
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = threading.Thread(target=run)
    with no_garbage_collection():
        thread.start()
        thread.join(30)
    assert not thread.is_alive()
    if failure:
        raise failure[0]
    return result[0]


def spin_past(seconds: float) -> None:
    """Run Python code for at most some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def limited(seconds: float | None, body: Callable[[], Any]) -> Any:
    with time_limit(seconds):
        return body()


def test_no_limit_is_no_limit() -> None:
    assert limited(None, lambda: 5) == 5


@pytest.mark.parametrize("call", [lambda function: function(), in_thread], ids=["main thread", "other thread"])
def test_body_that_ends_in_time_keeps_its_result(call: Callable[..., Any]) -> None:
    assert call(lambda: limited(30, lambda: 5)) == 5


@pytest.mark.parametrize("call", [lambda function: function(), in_thread], ids=["main thread", "other thread"])
def test_error_of_the_body_passes(call: Callable[..., Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: limited(30, lambda: 1 / 0))


def test_blocking_call_in_the_main_thread_is_interrupted() -> None:
    began = time.monotonic()

    with pytest.raises(TaskTimeout, match=r"timeout of 0\.02 s") as caught:
        limited(SHORT, lambda: time.sleep(30))

    assert caught.value.seconds == SHORT
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("call", [lambda function: function(), in_thread], ids=["main thread", "other thread"])
def test_endless_python_code_is_interrupted(call: Callable[..., Any]) -> None:
    with pytest.raises(TaskTimeout, match=r"timeout of 0\.02 s") as caught:
        call(lambda: limited(SHORT, lambda: spin_past(30)))

    assert caught.value.seconds == SHORT


def test_traceback_of_another_thread_shows_where_the_body_was() -> None:
    with pytest.raises(TaskTimeout) as caught:
        in_thread(lambda: limited(SHORT, lambda: spin_past(30)))

    assert "spin_past" in [entry.name for entry in caught.traceback]


def test_body_may_catch_the_timeout_and_clean_up() -> None:
    def body() -> str:
        try:
            spin_past(30)
        except TaskTimeout:
            return "cleaned up"
        return "never"

    assert in_thread(lambda: limited(SHORT, body)) == "cleaned up"
    assert limited(SHORT, body) == "cleaned up"


def test_timeout_that_the_body_raises_itself_passes_as_it_is() -> None:
    def body() -> None:
        raise TaskTimeout

    with pytest.raises(TaskTimeout) as caught:
        in_thread(lambda: limited(30, body))

    assert caught.value.seconds is None


def test_inner_limit_ends_the_inner_block_only() -> None:
    def body() -> str:
        with pytest.raises(TaskTimeout, match=r"0\.02 s"):
            limited(SHORT, lambda: spin_past(30))
        return "went on"

    assert limited(30, body) == "went on"
    assert in_thread(lambda: limited(30, body)) == "went on"


@pytest.mark.parametrize("call", [lambda function: function(), in_thread], ids=["main thread", "other thread"])
def test_outer_limit_ends_an_inner_block(call: Callable[..., Any]) -> None:
    with pytest.raises(TaskTimeout):
        call(lambda: limited(SHORT, lambda: limited(30, lambda: spin_past(30))))


def test_outer_limit_still_holds_after_an_inner_block() -> None:
    def body() -> None:
        limited(30, lambda: None)
        spin_past(30)

    with pytest.raises(TaskTimeout, match=r"0\.05 s"):
        limited(0.05, body)


def test_alarm_of_somebody_else_goes_off_inside_a_longer_limit() -> None:
    with alarm(SHORT) as fired, pytest.raises(Outer):
        limited(30, lambda: time.sleep(30))

    assert len(fired) == 1


def test_alarm_of_somebody_else_goes_off_at_its_time_after_a_shorter_limit() -> None:
    with alarm(0.2) as fired:
        with pytest.raises(TaskTimeout):
            limited(SHORT, lambda: time.sleep(30))
        with pytest.raises(Outer):
            time.sleep(30)

    assert 0.15 < fired[0] < 10


def test_alarm_of_somebody_else_goes_off_at_its_time_after_a_block_in_time() -> None:
    with alarm(0.1) as fired:
        limited(0.09, lambda: None)
        with pytest.raises(Outer):
            time.sleep(30)

    assert 0.05 < fired[0] < 10


def test_no_alarm_is_left_where_there_was_none() -> None:
    with alarm(0):
        limited(30, lambda: None)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def spend(seconds: float) -> None:
    spin_past(seconds)


def hammer(blocks: int) -> tuple[int, int]:
    """Leave many blocks just when their limit is reached; return how many ended each way.

    Between two blocks some code runs outside any limit, where an exception would be a leak.
    """
    in_time = too_late = 0
    for number in range(blocks):
        # From well before to just after the limit, and now and then far beyond it.
        duration = 5 if number % 20 == 19 else SHORT / 10 * (0.5 + number % 20 / 20)
        try:
            with time_limit(SHORT / 10):
                spend(duration)
        except TaskTimeout:
            too_late += 1
        else:
            in_time += 1
        spend(0.0005)
    return in_time, too_late


def test_nothing_is_raised_after_a_block_in_the_main_thread() -> None:
    with no_garbage_collection():
        in_time, too_late = hammer(400)

    assert in_time + too_late == 400
    assert in_time > 0
    assert too_late >= 20


def test_nothing_is_raised_after_a_block_in_other_threads() -> None:
    skip_under_coverage()
    results: list[tuple[int, int]] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)

    def run() -> None:
        results.append(hammer(150))

    threads = [threading.Thread(target=run) for _ in range(4)]
    with no_garbage_collection():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.setswitchinterval(interval)

    assert [sum(result) for result in results] == [150] * 4
    assert all(in_time > 0 for in_time, _ in results)
    assert all(too_late >= 7 for _, too_late in results)


def test_timer_is_not_interrupted_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    start = threading.Timer.start

    def slow_start(timer: threading.Timer) -> None:
        start(timer)
        # The limit has been reached long before this returns.
        spin_past(0.1)
        started.append(True)

    monkeypatch.setattr(threading.Timer, "start", slow_start)

    with pytest.raises(TaskTimeout):
        in_thread(lambda: limited(0.001, lambda: spin_past(30)))

    assert started == [True]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 raises it before every instruction")
def test_exception_that_comes_while_the_block_is_left_is_taken_back() -> None:
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def body() -> str:
        class ExpiresMeanwhile:
            """A lock that is held by the timer just until the exception has been set. C code, so that it waits."""

            __enter__ = staticmethod(
                functools.partial(set_exception, ctypes.c_ulong(threading.get_ident()), ctypes.py_object(TaskTimeout))
            )

            def __exit__(self, *_: object) -> None: ...

        limit: Any = time_limit(30)
        limit.__enter__()
        limit._fired = True
        limit._lock = ExpiresMeanwhile()
        limit.__exit__(None, None, None)
        spin_past(0.01)
        return "left in peace"

    assert in_thread(body) == "left in peace"


@pytest.mark.parametrize("call", [lambda function: function(), in_thread], ids=["main thread", "other thread"])
def test_limit_that_is_over_at_once_stops_the_body(call: Callable[..., Any]) -> None:
    with pytest.raises(TaskTimeout):
        call(lambda: limited(1e-9, lambda: spin_past(30)))


def test_thread_that_is_not_the_systems_own_is_not_waited_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Under gevent the id of a thread is that of a greenlet, which the interpreter does not know.
    def run() -> str:
        real = threading.get_ident
        limit = time_limit(0.01)
        monkeypatch.setattr("queuebridge.timelimit.threading.get_ident", lambda: 1)
        with limit:
            monkeypatch.setattr("queuebridge.timelimit.threading.get_ident", real)
            spin_past(0.1)
        return "done"

    assert in_thread(run) == "done"
    assert "cannot be stopped here" in caplog.text
