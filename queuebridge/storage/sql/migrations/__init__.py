"""The upgrades of the schema, for Alembic. They are part of the package, and need no alembic.ini."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.config import Config

if TYPE_CHECKING:
    from sqlalchemy import Connection


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's settings for a connection; env.py takes it from there."""
    config = Config()
    config.set_main_option("script_location", "queuebridge.storage.sql:migrations")
    config.attributes["connection"] = connection
    return config
