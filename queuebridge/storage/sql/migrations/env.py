"""What Alembic runs: the migrations, on a connection whose transaction belongs to the caller."""

from __future__ import annotations

from typing import Any

from alembic import context

from queuebridge.storage.sql.tables import VERSION_TABLE, metadata


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ARG001
    """Leave the tables of the application alone, which may be in the same database."""
    return kind != "table" or name in metadata.tables


# Only Alembic gives it; whatever else imports this module wants nothing done.
_config = getattr(context, "config", None)
if _config is not None:
    context.configure(
        connection=_config.attributes["connection"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=_is_ours,
    )
    context.run_migrations()
