"""The stores that the ledger's contract runs over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledgers import STORES, Address, Store, installed, new_id, postgres_tables
from services import Service


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty ledger, to be copied."""
    folder = tmp_path_factory.mktemp("ledger")
    Address("sqlite", f"sqlite:///{folder}/ledger.db").upgrade()
    return folder


@pytest.fixture(scope="session")
def ledger_postgres_url(postgres_server: Service) -> Iterator[str]:
    """A database with the ledger's schema."""
    with postgres_server.fresh() as url:
        Address("postgres", url).upgrade()
        yield url


@pytest.fixture(scope="session")
def ledger_redis_url(redis_server: Service) -> Iterator[str]:
    """A Redis database, in which every ledger has a prefix of its own."""
    with redis_server.fresh() as url:
        yield url


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty ledger of each kind."""
    kind = request.param
    if not installed(kind):
        pytest.skip(f"This version has no {kind} ledger.")
    made = Store(kind, _address(kind, request, tmp_path))
    yield made
    made.close()


def _address(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Address | None:
    if kind == "memory":
        return None
    if kind == "redis":
        return Address("redis", request.getfixturevalue("ledger_redis_url"), prefix=f"{new_id()}:")
    if kind == "sqlite":
        folder = tmp_path / "ledger"
        shutil.copytree(request.getfixturevalue("sqlite_template"), folder)
        return Address("sqlite", f"sqlite:///{folder}/ledger.db")
    url = request.getfixturevalue("ledger_postgres_url")
    _empty(url)
    return Address("postgres", url)


def _empty(url: str) -> None:
    import psycopg
    from psycopg import sql

    # The timeout tells on a test before that left a transaction open.
    with psycopg.connect(url, options="-c lock_timeout=10s") as connection:
        # All but the one in which Alembic notes the schema's version.
        tables = [name for name in postgres_tables(connection) if "version" not in name]
        names = sql.SQL(", ").join(map(sql.Identifier, tables))
        connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))
