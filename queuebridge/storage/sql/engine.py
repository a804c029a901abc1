"""Connections to the database of the ledger, and the differences between SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, BigInteger, Connection, Engine, bindparam, create_engine, event, exc, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from queuebridge.errors import ConfigurationError, LedgerUnavailable
from queuebridge.failures import redact

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 5_000
POOL_SIZE = 5
MAX_OVERFLOW = 25

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
UPGRADE_HINT = "Run `queuebridge ledger upgrade` (with the same QUEUEBRIDGE_LEDGER)."
# SQLSTATE of a table or column that is not there.
_UNDEFINED = ("42P01", "42703")


class NowMs(FunctionElement[int]):
    """The store's time in Unix milliseconds."""

    inherit_cache = True
    type = BigInteger()


class NowUs(FunctionElement[int]):
    """The store's time in Unix microseconds; SQLite knows it to the millisecond."""

    inherit_cache = True
    type = BigInteger()


@compiles(NowMs, "postgresql")
def _now_ms_postgresql(element: NowMs, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"


@compiles(NowUs, "postgresql")
def _now_us_postgresql(element: NowUs, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000000) AS BIGINT)"


# Older SQLite libraries have no unixepoch('subsec').
@compiles(NowMs, "sqlite")
def _now_ms_sqlite(element: NowMs, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(NowUs, "sqlite")
def _now_us_sqlite(element: NowUs, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


# Added to the store's clock: the offset that tests move the time by.
OFFSET_MS = bindparam("offset_ms", type_=BigInteger)
NOW_MS = NowMs() + OFFSET_MS
NOW_US = NowUs() + OFFSET_MS * 1000


class Database:
    """Connections to one database, opened at first use and anew in every process.

    Args:
        url: The address, as SQLAlchemy writes it.
        check: Called with the engine of a new process; returns why the schema cannot be used.
        clock_offset_ms: Returns what is added to the store's clock.
    """

    def __init__(self, url: URL, *, check: Callable[[Engine], str | None], clock_offset_ms: Callable[[], int]) -> None:
        self.url = url
        self.is_postgresql = url.get_backend_name() == "postgresql"
        self.clock_offset_ms = clock_offset_ms
        self._check = check
        # By process. After a fork, the parent's connections stay referenced and untouched: to close them here would
        # end the parent's session, or drop a lock on its file.
        self._engines: dict[int, Engine] = {}
        self._checked: set[int] = set()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Give a connection on which each statement is a transaction of its own.

        Raises:
            LedgerUnavailable: The database cannot be reached, or fails.
            ConfigurationError: Its schema is not the one that is needed.
        """
        with mapped_errors():
            engine = self._engine()
            with engine.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection in a transaction that may write; committed at the end, unless there is an error."""
        with self.connection() as connection, transaction_on(connection):
            yield connection

    def close(self) -> None:
        """Close the connections of this process."""
        engine = self._engines.pop(os.getpid(), None)
        self._checked.discard(os.getpid())
        if engine is not None:
            engine.dispose()

    def _engine(self) -> Engine:
        process = os.getpid()
        engine = self._engines.get(process)
        if engine is None:
            # No lock, which a fork could leave locked for ever: of two threads, one makes an engine in vain.
            engine = self._engines.setdefault(process, open_engine(self.url))
        if process not in self._checked:
            problem = self._check(engine)
            if problem is not None:
                raise ConfigurationError(problem)
            self._checked.add(process)
        return engine


@contextlib.contextmanager
def transaction_on(connection: Connection) -> Iterator[None]:
    """Make one transaction of what is done on a connection that would otherwise commit each statement."""
    # Without IMMEDIATE, SQLite would fail at the first write after a read if somebody else wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        # A connection that is lost has rolled back by itself; the first error is the one to report.
        with contextlib.suppress(exc.SQLAlchemyError):
            connection.exec_driver_sql("ROLLBACK")
        raise


def parse_url(url: str) -> URL:
    """Return the address of a ledger for SQLAlchemy.

    Raises:
        ConfigurationError: It is none. The address is not shown: it may have a password.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise ConfigurationError("QUEUEBRIDGE_LEDGER is not a database address such as postgresql://...") from None
    if parsed.drivername not in _DRIVERS:
        raise ConfigurationError("QUEUEBRIDGE_LEDGER must begin with sqlite:/// or postgresql:// to be a SQL ledger.")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("QUEUEBRIDGE_LEDGER must name a file: sqlite:///path, or sqlite:////absolute/path.")
    return parsed.set(drivername=_DRIVERS[parsed.drivername])


def open_engine(url: URL, *, statement_timeout_ms: int | None = STATEMENT_TIMEOUT_MS) -> Engine:
    """Return an engine that commits each statement, and waits for nothing longer than a few seconds."""
    pool = {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": POOL_SIZE,
        "max_overflow": MAX_OVERFLOW,
        "pool_timeout": STATEMENT_TIMEOUT_MS / 1000,
    }
    if url.get_backend_name() == "sqlite":
        return create_engine(url, connect_args={"timeout": STATEMENT_TIMEOUT_MS / 1000}, **pool)
    query = dict(url.query)
    options = [str(query.pop("options", ""))]
    if statement_timeout_ms is not None:
        options.insert(0, f"-c statement_timeout={statement_timeout_ms} -c lock_timeout={statement_timeout_ms}")
    arguments = {
        "options": " ".join(options).strip(),
        "application_name": "queuebridge",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives_idle": 30,
        # A peer that vanished without a word: give up after this many milliseconds.
        "tcp_user_timeout": 2 * STATEMENT_TIMEOUT_MS,
    }
    engine = create_engine(
        url.set(query=query),
        connect_args={name: value for name, value in arguments.items() if name not in query},
        pool_recycle=1800,
        **pool,
    )
    event.listen(engine, "checkout", _refuse_dead_connection)
    return engine


def _refuse_dead_connection(dbapi_connection: Any, record: Any, proxy: Any) -> None:  # noqa: ARG001
    """Drop a connection that the server closed while it was idle; the pool opens another one.

    The server speaks unasked only to say good-bye, so that a look at the socket tells, without a round trip. And
    since nothing was sent, this is safe for every operation, as repeating a failed statement would not be.
    """
    if not dbapi_connection.closed:
        poll = select.poll()
        poll.register(dbapi_connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return
    raise exc.DisconnectionError


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn errors of SQLAlchemy and the drivers into those of the ledger."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _mapped(error) from error


def _mapped(error: exc.SQLAlchemyError) -> Exception:
    original = getattr(error, "orig", None)
    reason = redact(str(original or error)) or type(error).__name__
    if getattr(original, "sqlstate", None) in _UNDEFINED or reason.startswith(("no such table", "no such column")):
        return ConfigurationError(f"The schema of the ledger is not complete ({reason}). {UPGRADE_HINT}")
    return LedgerUnavailable(f"The ledger cannot be reached, or did not answer in time ({reason}).")


def describe(url: URL) -> str:
    """Return where a database is, without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite file {Path(url.database or '').name}"
    return f"PostgreSQL database {url.database} on {url.host or 'the local socket'}"
