"""A real PostgreSQL for tests."""

from __future__ import annotations

import pwd
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from processes import free_port
from services import OwnServer, Service, ServiceUnavailableError, binary


class PostgresService(Service):
    """PostgreSQL; every test has a database to itself."""

    name = "PostgreSQL"
    variable = "QUEUEBRIDGE_TEST_POSTGRES_URL"
    standard_urls = (
        "postgresql://postgres@127.0.0.1:5432/postgres",
        "postgresql://postgres:postgres@127.0.0.1:5432/postgres",
    )

    @classmethod
    def problem(cls, url: str) -> str | None:
        import psycopg

        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                row = connection.execute(
                    "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
                ).fetchone()
        except psycopg.Error as error:
            return str(error)
        return None if row and row[0] else "this user may not create databases"

    @classmethod
    def start(cls) -> PostgresService:
        own, command, url = cls.prepare()
        own.start(command)
        cls._await(own, url)
        return cls(url, own)

    @classmethod
    def prepare(cls) -> tuple[OwnServer, list[str], str]:
        """Make a cluster. Returns its folder, the command that starts it, and the address that it will have.

        Raises:
            ServiceUnavailableError: There is no binary, or it does not work.
        """
        newest_first = sorted(
            map(str, Path("/usr/lib/postgresql").glob("*/bin")), key=lambda p: -float(p.split("/")[-2])
        )
        program = binary("postgres", folders=newest_first)
        initdb = binary("initdb", folders=[str(Path(program).parent), *newest_first])
        # The server refuses to run as root.
        own = OwnServer("postgres", user=_first_user("postgres", "nobody"))
        data, port = str(own.folder / "data"), str(free_port())
        try:
            own.run([initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
        except ServiceUnavailableError:
            own.stop()
            raise
        command = [program, "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-k", "", "-F"]
        return own, command, f"postgresql://postgres@127.0.0.1:{port}/postgres"

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Give the URL of an empty database, which is dropped afterwards, connections and all."""
        import psycopg
        from psycopg import sql

        name = f"queuebridge_test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                yield urlsplit(self.url)._replace(path=f"/{name}").geturl()
            finally:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop the server, if it was started here, without waiting for its clients."""
        if self.own is not None:
            self.own.stop(signal.SIGINT)


def _first_user(*names: str) -> str | None:
    present = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in names if name in present), None)
