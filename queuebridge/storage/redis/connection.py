"""The way to Redis: scripts and commands, what may be repeated, and what errors mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, NoPermissionError, NoScriptError
from redis.retry import Retry

from queuebridge.errors import ConfigurationError, LedgerUnavailable, QueueBridgeError
from queuebridge.failures import redact
from queuebridge.storage.redis.keys import Keys
from queuebridge.storage.redis.scripts import load_script

CONNECT_TIMEOUT_SECONDS = 3.0
COMMAND_TIMEOUT_SECONDS = 5.0

Argument: TypeAlias = str | bytes | int | None
Result = TypeVar("Result")

# Redis has no error code of its own for these.
_MISCONFIGURED = (
    *("DB index is out of range", "invalid DB index", "SELECT is not allowed"),
    *("ACL failure in script", "The user executing the script can't"),
)


class Connection:
    """A pool of connections to one database. Safe to share between threads, and to use after a fork.

    Args:
        url: The address. Time limits in its query go before our own.
        keys: The names of the keys.
        clock_offset_ms: What to add to the clock of Redis; for tests.

    Raises:
        ConfigurationError: It is not an address of Redis.
    """

    def __init__(self, url: str, keys: Keys, clock_offset_ms: Callable[[], int]) -> None:
        self.keys = keys
        self.address = redact(url)
        self._clock_offset_ms = clock_offset_ms
        try:
            # Opens nothing yet. Made here and not at first use, so that no lock is needed, which a fork could copy
            # while it is held.
            # Any: redis-py does not type the general way to send a command.
            self._client: Any = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
                socket_timeout=COMMAND_TIMEOUT_SECONDS,
                # redis-py repeats a command whose answer was lost; a repeated claim would find its own first one.
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError:
            # Without the cause, which may show the address.
            raise ConfigurationError(
                f"{self.address} is no address of Redis. It is of the form redis://host:6379/0."
            ) from None

    def run(self, script: str, *arguments: Argument, repeat: bool = False) -> Any:
        """Run a script, in one round trip once Redis knows it.

        Args:
            script: Its name.
            arguments: What it finds in ARGV from the second place on; None becomes an empty string.
            repeat: Whether it may run again if the connection was lost, so that it may have run already.

        Raises:
            LedgerUnavailable, ConfigurationError: See `failure`.
        """
        loaded = load_script(script)
        values = [1, self.keys.prefix, self._clock_offset_ms(), *map(_encode, arguments)]

        def call(client: Any) -> Any:
            try:
                return client.execute_command("EVALSHA", loaded.sha, *values)
            except NoScriptError:
                return client.execute_command("EVAL", loaded.text, *values)

        return self.use(call, repeat=repeat)

    def read_many(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Return the answers to commands that change nothing, in one round trip."""

        def call(client: Any) -> list[Any]:
            with client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*map(_encode, command))
                return list(pipeline.execute())

        return self.use(call, repeat=True) if commands else []

    def use(self, call: Callable[[Any], Result], *, repeat: bool) -> Result:
        """Return what `call` does with the client; `repeat` as in `run`."""
        try:
            return call(self._client)
        except redis.ConnectionError as error:
            if not repeat or isinstance(error, AuthenticationError | AuthorizationError | BusyLoadingError):
                raise failure(error, self.address) from error
        except (redis.RedisError, OSError) as error:
            raise failure(error, self.address) from error
        return self.use(call, repeat=False)

    def now_ms(self) -> int:
        """Return the time of Redis."""
        seconds, microseconds = self.use(lambda client: client.time(), repeat=True)
        return int(seconds) * 1000 + int(microseconds) // 1000 + self._clock_offset_ms()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._client.close()


def failure(error: Exception, address: str) -> QueueBridgeError:
    """Return the error to raise for one of redis-py's.

    ConfigurationError if Redis refuses us for good: credentials, permissions, number of the database. All else is
    LedgerUnavailable: nobody there, no answer in time, still loading, out of memory, a replica.
    """
    reason = redact(str(error)) or type(error).__name__
    for_good = isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError)
    if for_good or any(words in reason for words in _MISCONFIGURED):
        return ConfigurationError(f"Redis at {address} does not let us in ({reason}). Check QUEUEBRIDGE_LEDGER.")
    return LedgerUnavailable(f"The ledger in Redis at {address} cannot be used ({reason}).")


def _encode(value: Argument) -> bytes | int:
    if value is None:
        return b""
    # Half a surrogate pair, as in names of files, cannot be encoded.
    return value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
