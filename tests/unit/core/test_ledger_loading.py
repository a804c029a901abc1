"""The ledger is chosen by the scheme of its address, which is never shown."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from queuebridge.errors import ConfigurationError, MissingExtra
from queuebridge.loading import LEDGER_MODULES, load_ledger, upgrade_ledger
from queuebridge.settings import Settings


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql", "postgresql+psycopg"])
def test_sql_ledger_is_made_without_opening_anything(scheme: str, tmp_path: Path) -> None:
    ledger = load_ledger(f"{scheme}:///{tmp_path}/ledger.db")
    ledger.close()

    assert type(ledger).__name__ == "SqlLedger"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["mysql://me:secret-word@host/db", "secret-word", "://secret-word", "sqlite:secret-word"]
)
def test_address_of_no_ledger_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_LEDGER") as caught:
        load_ledger(url)

    assert "secret-word" not in str(caught.value)
    assert all(f"{scheme}://" in str(caught.value) for scheme in LEDGER_MODULES)


@pytest.mark.parametrize(
    ("missing", "url"),
    [
        ("sqlalchemy", "sqlite:///ledger.db"),
        ("sqlalchemy", "postgresql://host/db"),
        ("psycopg", "postgresql://host/db"),
        ("psycopg", "postgresql+psycopg://host/db"),
    ],
)
def test_missing_library_names_the_extra(missing: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"sqlalchemy": "queuebridge.storage.sql", "psycopg": "psycopg"}[missing]

    def fail(name: str) -> Any:
        if name == needed:
            raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(importlib, "import_module", fail)

    with pytest.raises(
        MissingExtra, match=rf"{missing}.*qstash-queuebridge\[sql\]".replace("sqlalchemy", "SQLAlchemy")
    ):
        load_ledger(url)


def test_upgrade_without_alembic_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = importlib.import_module

    def fail(name: str) -> Any:
        if name == "alembic":
            raise ModuleNotFoundError("No module named 'alembic'", name="alembic")
        return genuine(name)

    monkeypatch.setattr(importlib, "import_module", fail)

    with pytest.raises(MissingExtra, match=r"alembic.*qstash-queuebridge\[sql\]"):
        upgrade_ledger("sqlite:///ledger.db")


@pytest.mark.parametrize("url", ["memory://", "redis://host", "rediss://host"])
def test_ledger_without_a_schema_needs_no_upgrade(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", ModuleType)

    assert "nothing to do" in upgrade_ledger(url)


def test_address_is_a_secret_of_the_settings() -> None:
    settings = Settings.from_environment({"QUEUEBRIDGE_LEDGER": "postgresql://me:secret-word@host/db"})

    assert settings.ledger_url is not None
    assert settings.ledger_url.get_secret_value() == "postgresql://me:secret-word@host/db"
    assert "secret-word" not in f"{settings!r}{settings}"


def test_no_address_is_no_ledger() -> None:
    assert Settings.from_environment({}).ledger_url is None
