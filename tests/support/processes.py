"""Child processes of tests: started with their output in files, ended with their whole family."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

SUPPORT = Path(__file__).parent
POLL_SECONDS = 0.02
# Marks the environment of every process that a test started, so that its grandchildren can be found.
MARK_VARIABLE = "CHILD_OF_TEST"


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether anybody accepts TCP connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(predicate: Callable[[], Value | None], timeout: float = 10, *, what: str = "") -> Value:
    """Ask `predicate` again and again until its answer is true, and return that answer.

    Raises:
        AssertionError: It was not within `timeout` seconds; `what` is said to have been awaited.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {timeout:g} s in vain for {what or predicate}.")
        time.sleep(POLL_SECONDS)


class ChildProcess:
    """A running child process, at the head of a process group of its own.

    Args:
        args: The command.
        name: What it is called in messages.
        folder: Where the files with its output go.
        env: Its whole environment.
        cwd: Where it runs.
    """

    def __init__(self, args: Sequence[str], *, name: str, folder: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self.args = list(args)
        self._mark = uuid.uuid4().hex
        self._files = {stream: folder / f"{name}.{stream}" for stream in ("stdout", "stderr")}
        with self._files["stdout"].open("wb") as stdout, self._files["stderr"].open("wb") as stderr:
            self._popen = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**env, MARK_VARIABLE: self._mark},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; None as long as it runs."""
        return self._popen.poll()

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self._files["stdout"].read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._files["stderr"].read_text(errors="replace")

    @property
    def output(self) -> str:
        """What it has written so far: standard output, then standard error."""
        return self.stdout + self.stderr

    def report(self) -> str:
        """Return the command, its end and its output, for people who read about a failed test."""
        status = "still running" if self.returncode is None else f"ended with {self.returncode}"
        return "\n".join(
            [
                f"$ {shlex.join(self.args)}   ({status})",
                *(f"[{stream}] {line}" for stream in self._files for line in getattr(self, stream).splitlines()),
            ]
        )

    def wait_for_line(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Wait until a complete line on one of its streams matches, and return the match.

        Raises:
            AssertionError: The process ended without, or the time is up.
        """
        expression = re.compile(pattern)

        def find() -> re.Match[str] | None:
            for text in (self.stdout, self.stderr):
                for line in text.splitlines(keepends=True):
                    match = expression.search(line.rstrip("\r\n")) if line.endswith("\n") else None
                    if match:
                        return match
            return None

        return self.wait_until(find, timeout, what=f"a line like {pattern!r}")

    def wait_until(self, predicate: Callable[[], Value | None], timeout: float = 20, *, what: str = "") -> Value:
        """Ask `predicate` again and again, while the process lives, until its answer is true, and return it.

        Raises:
            AssertionError: The process ended before, or the time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            # Asked before the predicate: what the process did last must still count.
            ended = self.returncode is not None
            value = predicate()
            if value:
                return value
            if ended or time.monotonic() > deadline:
                why = "ended" if ended else f"was given {timeout:g} s"
                awaited = what or str(predicate)
                raise AssertionError(f"{self.name} {why}, without {awaited}.\n{self.report()}")
            time.sleep(POLL_SECONDS)

    def wait_for_port(self, port: int, timeout: float = 20) -> None:
        """Wait until somebody accepts connections on this port of 127.0.0.1."""
        self.wait_until(lambda: answers(port), timeout, what=f"an answer on port {port}")

    def wait(self, timeout: float = 20) -> int:
        """Wait for the end and return the exit status (negative: the signal that ended it)."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s.\n{self.report()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._popen.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Send SIGINT to the process group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def terminate(self, timeout: float = 20) -> int:
        """Ask it to end (SIGTERM), wait for that and return the exit status."""
        self._popen.terminate()
        return self.wait(timeout)

    def family(self) -> list[int]:
        """Return the ids of the processes that it started, directly or not, and that are still alive.

        Found by their environment, so that those which left the process group are among them (Linux only;
        elsewhere the list is empty).
        """
        wanted = f"{MARK_VARIABLE}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # The environment of a zombie is empty.
                marked = wanted in (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # ended meanwhile, or of another user
            if marked and int(folder.name) != self.pid:
                found.append(int(folder.name))
        return sorted(found)

    def kill(self) -> None:
        """End it and its whole family at once (SIGKILL)."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(10)
        for stray in self.family():
            with suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)


class Spawner:
    """Starts the child processes of one test.

    Children inherit the scrubbed environment. `tests/support` is on their import path, so that a worker can
    load task modules from there. They run in a folder of their own: Python started in the project's root
    could import `backends` under its second name.

    Args:
        folder: Where output goes and where the children run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[ChildProcess] = []

    def __call__(
        self,
        args: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str | None] | None = None,
        name: str | None = None,
        cwd: Path | None = None,
    ) -> ChildProcess:
        """Start a child process.

        Args:
            args: The command; `sys.executable` is the interpreter to use for Python.
            env: Changes to the environment; None as a value removes the variable.
            name: What to call it in messages; by default the program's name.
            cwd: Where to run it; by default a folder of this test.
        """
        command = [os.fspath(arg) for arg in args]
        name = name or Path(command[0]).name
        taken = {process.name for process in self.processes}
        unique = name if name not in taken else f"{name}-{len(self.processes) + 1}"
        child = ChildProcess(
            command, name=unique, folder=self.folder, env=child_environment(env or {}), cwd=cwd or self.folder
        )
        self.processes.append(child)
        return child

    def close(self) -> None:
        """End every process, the last started first."""
        for process in reversed(self.processes):
            process.kill()

    def reports(self) -> list[tuple[str, str]]:
        """Return a heading and a report for each process."""
        return [(f"process {process.name}", process.report()) for process in self.processes]


def child_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment of a child: this process's, `tests/support` importable, then the changes."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    path = [str(SUPPORT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


def run_python(code: str, *, cwd: Path, env: Mapping[str, str | None] | None = None, timeout: float = 50) -> str:
    """Run a program in a fresh interpreter, which nothing but the program changes, and return what it printed.

    Raises:
        AssertionError: It failed; shows its output.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        # Coverage would import and open things of its own.
        env=child_environment({"COVERAGE_PROCESS_CONFIG": None, "COVERAGE_PROCESS_START": None, **(env or {})}),
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"The program ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
