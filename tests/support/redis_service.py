"""A real Redis for tests."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from processes import free_port, wait_until
from services import START_SECONDS, OwnServer, Service, binary


class RedisService(Service):
    """Redis; every test has a numbered database to itself."""

    name = "Redis"
    variable = "QUEUEBRIDGE_TEST_REDIS_URL"
    standard_urls = ("redis://127.0.0.1:6379",)

    @classmethod
    def problem(cls, url: str) -> str | None:
        import redis

        try:
            with redis.Redis.from_url(_database(url, 0), socket_connect_timeout=2) as client:
                client.ping()
        except (redis.RedisError, ValueError) as error:
            return str(error)
        return None

    @classmethod
    def start(cls) -> RedisService:
        program = binary("redis-server", "valkey-server")
        own = OwnServer("redis")
        port = str(free_port())
        own.start([program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"])
        url = f"redis://127.0.0.1:{port}"
        cls._await(own, url)
        return cls(url, own)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Give the URL of an empty database, emptied again afterwards.

        Of a server that was there before, only databases 9 to 15 are used (whichever the URL names), and only
        if they are empty or what is in them was left by tests. A lock file keeps parallel runs apart.
        """
        import redis

        with nullcontext(0) if self.own is not None else _claim_database(self.url) as number:
            url = _database(self.url, number)
            with redis.Redis.from_url(url) as client:
                client.flushdb()
                try:
                    yield url
                finally:
                    client.flushdb()


_DATABASES = range(9, 16)


def _database(url: str, number: int) -> str:
    return urlsplit(url)._replace(path=f"/{number}").geturl()


@contextmanager
def _claim_database(url: str) -> Iterator[int]:
    import redis

    place = urlsplit(url)

    def attempt() -> tuple[int, IO[str]] | None:
        for number in _DATABASES:
            name = f"queuebridge-tests-redis-{place.hostname}-{place.port or 6379}-{number}.lock"
            lock = _try_lock(Path(tempfile.gettempdir()) / name)
            if lock is None:
                continue
            # A run that was killed left its note, and perhaps its data.
            ours = bool(lock.read())
            with redis.Redis.from_url(_database(url, number)) as client:
                if ours or not client.dbsize():
                    return number, lock
            lock.close()
        return None

    number, lock = wait_until(attempt, START_SECONDS, what=f"an empty database of Redis, of {_DATABASES}")
    with lock:
        lock.write("in use by tests\n")
        lock.flush()
        yield number
        lock.truncate(0)


def _try_lock(path: Path) -> IO[str] | None:
    try:
        lock = path.open("a+")
    except PermissionError:
        return None  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.seek(0)
    return lock
