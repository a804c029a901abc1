"""The schema of the ledger: is it the one that is needed, and make it so. Alembic is loaded for an upgrade only."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, String, column, select, table

from queuebridge.errors import ConfigurationError
from queuebridge.storage.sql.engine import UPGRADE_HINT, mapped_errors, open_engine, parse_url, transaction_on
from queuebridge.storage.sql.tables import SCHEMA_REVISION, VERSION_TABLE

# Whoever upgrades holds this advisory lock of PostgreSQL; the number is arbitrary.
_LOCK = 7_251_930_114
_LOCK_TIMEOUT = "60s"

_VERSION = select(column("version_num", String)).select_from(table(VERSION_TABLE))


def schema_problem(engine: Engine) -> str | None:
    """Return why the schema of a ledger cannot be used, None if it can. Errors are SQLAlchemy's."""
    with engine.connect() as connection:
        present = _present(connection)
    if present is None:
        return f"The database named by QUEUEBRIDGE_LEDGER has no ledger yet. {UPGRADE_HINT}"
    if present > SCHEMA_REVISION:
        return _is_older(present)
    if present < SCHEMA_REVISION:
        return f"The schema of the ledger is {present}, and {SCHEMA_REVISION} is needed. {UPGRADE_HINT}"
    return None


def upgrade(url: str) -> str:
    """Bring the schema of a ledger up to date, and return what was done, in words.

    Several processes may do so at the same time: one works, the others wait for it and find nothing to do.

    Raises:
        ConfigurationError: The address is none, or the schema is newer than this installation.
        LedgerUnavailable: The database cannot be reached, or fails; nothing was changed.
    """
    engine = open_engine(parse_url(url), statement_timeout_ms=None)
    try:
        with mapped_errors(), engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                # A property of the file: readers and the writer do not wait for each other. Not possible in a
                # transaction.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            with transaction_on(connection):
                return _upgrade(connection)
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> str:
    # SQLite has let nobody else in since the transaction began.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    present = _present(connection)
    if present == SCHEMA_REVISION:
        return f"The ledger has schema {SCHEMA_REVISION} already."
    if present is not None and present > SCHEMA_REVISION:
        raise ConfigurationError(_is_older(present))
    from alembic import command

    from queuebridge.storage.sql.migrations import alembic_config

    command.upgrade(alembic_config(connection), "head")
    return f"The ledger now has schema {SCHEMA_REVISION} (before: {present or 'none'})."


def _present(connection: Connection) -> str | None:
    """Return the revision of the schema in a database, None if there is none."""
    if not connection.dialect.has_table(connection, VERSION_TABLE):
        return None
    version = connection.scalar(_VERSION)
    return None if version is None else str(version)


def _is_older(present: str) -> str:
    return (
        f"The schema of the ledger is {present}, and this installation of queuebridge is older: it knows "
        f"{SCHEMA_REVISION}. Install the version that upgraded the ledger."
    )
