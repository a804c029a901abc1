"""The real Redis, RabbitMQ and PostgreSQL that tests run against.

Each comes from the URL in its variable, else it is the server on the standard local port, else one that is
started here from a binary on this machine, on a free port of 127.0.0.1, and stopped at the end.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from processes import wait_until

START_SECONDS = 45


class ServiceUnavailableError(Exception):
    """There is no such service on this machine; says why."""


class OwnServer:
    """A server that the tests started, in a temporary folder of its own.

    Args:
        kind: What it is, for the folder's name.
        user: Who runs it, if the tests run as root.
    """

    def __init__(self, kind: str, user: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"queuebridge-{kind}-"))
        self._account = pwd.getpwnam(user) if user is not None and os.geteuid() == 0 else None
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self.folder / "server.log"

    def run(self, args: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Run a command to its end, in the folder and as the user of the server.

        Raises:
            ServiceUnavailableError: It failed.
        """
        if self._popen(args, env).wait(START_SECONDS) != 0:
            raise ServiceUnavailableError(f"{args[0]} failed: {self.log()}")

    def start(self, args: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start the server itself."""
        self._process = self._popen(args, env)

    def alive(self) -> bool:
        """Say whether the server still runs."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return the end of what the server has said."""
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""

    def crash(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server by a signal; its folder stays, so that it can be started again."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server, by force if it does not end soon, and remove its folder."""
        if self._process is not None:
            if self.alive():
                self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _popen(self, args: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
        account = self._account
        with self._log.open("ab") as log:
            return subprocess.Popen(
                list(args),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), **(env or {})},
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )


class Service(ABC):
    """A service in use. `find` gives the class's own three ways to come by one."""

    name: str
    variable: str
    standard_urls: Sequence[str]

    def __init__(self, url: str, own: OwnServer | None = None) -> None:
        self.url = url
        self.own = own

    @classmethod
    def find(cls, configured: str | None) -> Service:
        """Return a service that answers.

        Args:
            configured: The URL from the variable, if it is set.

        Raises:
            ServiceUnavailableError: There is none.
            ConnectionError: The URL in the variable does not answer, which is a mistake, not an absence.
        """
        if configured:
            problem = cls.problem(configured)
            if problem is not None:
                raise ConnectionError(f"{cls.variable} is set, but there is no {cls.name}: {problem}")
            return cls(configured)
        for url in cls.standard_urls:
            if cls.problem(url) is None:
                return cls(url)
        return cls.start()

    @classmethod
    @abstractmethod
    def problem(cls, url: str) -> str | None:
        """Return why the server at this address cannot be used, None if it can."""

    @classmethod
    @abstractmethod
    def start(cls) -> Service:
        """Start a server.

        Raises:
            ServiceUnavailableError: There is no binary, or it does not work.
        """

    @abstractmethod
    def fresh(self) -> AbstractContextManager[str]:
        """Give the URL of an empty place that nobody else uses meanwhile."""

    def stop(self) -> None:
        """Stop the server, if it was started here."""
        if self.own is not None:
            self.own.stop()

    @classmethod
    def _await(cls, own: OwnServer, url: str) -> None:
        def answered_or_ended() -> bool:
            return cls.problem(url) is None or not own.alive()

        try:
            wait_until(answered_or_ended, START_SECONDS, what=f"{cls.name} to answer")
            problem = None if own.alive() else "it ended at once"
        except AssertionError as error:
            problem = str(error)
        if problem is not None:
            log = own.log()
            own.stop()
            raise ServiceUnavailableError(f"{cls.name} could not be started: {problem}\n{log}")


def binary(*names: str, folders: Sequence[str] = ()) -> str:
    """Return the path of the first of these programs that exists, on PATH or in the folders.

    Raises:
        ServiceUnavailableError: There is none.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *folders])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise ServiceUnavailableError(f"no server answers on the standard port, and {names[0]} is not installed")


def provide(kind: type[Service], configured: str | None, *, required: bool) -> Iterator[Service]:
    """Yield a service of this kind and stop it afterwards; the body of a fixture.

    Without one the test is skipped with the reason, or fails if services are required. A URL that was given
    and does not answer always fails.
    """
    try:
        service = kind.find(configured)
    except ServiceUnavailableError as error:
        reason = f"{kind.name} is needed: {error}. Set {kind.variable}, or install the server."
        if required:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    except ConnectionError as error:
        pytest.fail(str(error), pytrace=False)
    yield service
    service.stop()
