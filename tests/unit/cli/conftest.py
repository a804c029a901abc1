"""What the tests of the command line share."""

from __future__ import annotations

import pytest
from histories import History

from queuebridge.cli import ledgers


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> History:
    """A ledger in memory, which the commands of this test open."""
    history = History()
    monkeypatch.setenv("QUEUEBRIDGE_LEDGER", "memory://")
    monkeypatch.setattr(ledgers, "load_ledger", lambda url: history.ledger)
    return history
