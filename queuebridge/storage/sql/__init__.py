"""The ledger in a SQL database, through SQLAlchemy: SQLite for one machine, PostgreSQL for production."""

from queuebridge.storage.sql.ledger import SqlLedger
from queuebridge.storage.sql.upgrade import schema_problem, upgrade

__all__ = ["SqlLedger", "create_ledger", "schema_problem", "upgrade"]


def create_ledger(url: str) -> SqlLedger:
    """Return the ledger at this address; see `SqlLedger.from_url`."""
    return SqlLedger.from_url(url)
