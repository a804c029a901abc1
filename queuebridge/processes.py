"""Child processes of one terminal: started together, logged with prefixes, stopped together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from queuebridge.errors import QueueBridgeError

_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
# Besides Ctrl-C; the latter when the terminal is closed.
_REQUESTS_TO_END = (signal.SIGTERM, signal.SIGHUP)

# Past any proxy of the environment: it is our own child that is asked.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

LogLine = Callable[[str, str], None]


class ProcessFailed(QueueBridgeError):
    """Raised when a child process ended or did not get ready."""


class Child:
    """One running child process.

    Attributes:
        name: The prefix of its log lines.
        process: The process; it leads a process group of its own.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], on_line: LogLine) -> None:
        self.name = name
        self.process = process
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._on_line = on_line
        self._reader = threading.Thread(target=self._read, name=f"log-{name}", daemon=True)
        self._reader.start()

    def wait_for_line(self, pattern: str, timeout: float) -> None:
        """Return when a line of its output matches.

        Raises:
            ProcessFailed: It ended, or the time in seconds passed.
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._news:
            while not any(wanted.search(line) for line in self._lines):
                if not self._reader.is_alive() or not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise self._not_ready(timeout)

    def wait_for_url(self, url: str, timeout: float) -> None:
        """Return when a GET of `url` is answered with a status below 500.

        Raises:
            ProcessFailed: It ended, or the time in seconds passed.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with _direct.open(url, timeout=2):
                    return
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    return
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        raise self._not_ready(timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, timeout: float) -> bool:
        """Return whether the process ended within `timeout` seconds."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=2)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def tail(self, count: int = 15) -> str:
        """Return its last lines."""
        with self._news:
            return "\n".join(self._lines[-count:])

    def _read(self) -> None:
        stream = self.process.stdout
        if stream is not None:
            with contextlib.suppress(ValueError):
                for line in stream:
                    text = line.rstrip("\n")
                    with self._news:
                        self._lines.append(text)
                        # Only the end is ever shown; a worker that runs for days must not fill the memory.
                        del self._lines[:-2000]
                        self._news.notify_all()
                    self._on_line(self.name, text)
        with self._news:
            self._news.notify_all()

    def _not_ready(self, timeout: float) -> ProcessFailed:
        code = self.process.poll()
        how = f"was not ready within {timeout:g} s" if code is None else f"ended with status {code}"
        return ProcessFailed(f"The {self.name} {how}. Its last lines:\n{self.tail()}")


class Processes:
    """The child processes of a command. Leaving the `with` block ends them all.

    Args:
        on_line: Called with the name of the child and the line, for each line of output, from reader threads.
    """

    def __init__(self, on_line: LogLine) -> None:
        self._on_line = on_line
        self.children: list[Child] = []

    def start(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> Child:
        """Start a child process; its output is read line by line."""
        # An interruption in here would leave a process that nobody knows, and nobody ends.
        with _interrupted_later():
            process = subprocess.Popen(  # noqa: S603 - our own commands
                list(arguments),
                env={**env, "PYTHONUNBUFFERED": "1"},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A group of its own: Ctrl-C reaches this process only, which then stops the children in order.
                start_new_session=True,
            )
            child = Child(name, process, self._on_line)
            self.children.append(child)
        return child

    def stop(self, *children: Child) -> None:
        """End children gently, and forcibly those that take too long."""
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
            # Also the processes that a worker may have left behind.
            child.kill()
            self.children.remove(child)

    def wait_for_first_end(self) -> Child:
        """Return the first child that ends by itself."""
        while True:
            for child in self.children:
                if child.wait(_POLL_SECONDS):
                    return child

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Those started last depend on those started first.
            self.stop(*reversed(self.children))
        finally:
            # Somebody who asks twice does not want to wait.
            for child in self.children:
                child.kill()


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Hold back requests to end until the block is over."""
    if threading.current_thread() is not threading.main_thread():
        # Signals interrupt the main thread only.
        yield
        return
    held: list[int] = []
    handlers: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, *_REQUESTS_TO_END):
            handlers[number] = signal.signal(number, lambda received, _frame: held.append(received))
        yield
    finally:
        for changed, handler in handlers.items():
            signal.signal(changed, handler)
        if held:
            signal.raise_signal(held[0])


def interrupt_on_signals() -> None:
    """Treat a request to end, and the end of the terminal, as Ctrl-C, so that child processes are ended too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in _REQUESTS_TO_END:
        signal.signal(number, interrupt)


def command_line(*arguments: str) -> list[str]:
    """Return the command that runs queuebridge with these arguments in a child process."""
    return [sys.executable, "-m", "queuebridge", *arguments]


def fetch_json(url: str, *, token: str) -> Any:
    """Return what a child answers to a GET with a bearer token.

    Raises:
        OSError: There was no answer within two seconds, or it was an error.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own child
    with _direct.open(request, timeout=2) as answer:
        return json.loads(answer.read())


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Return whether the loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
