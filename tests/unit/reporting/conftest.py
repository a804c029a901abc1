"""What the tests of the reports share."""

from __future__ import annotations

import pytest
from histories import History


@pytest.fixture
def history() -> History:
    """An empty ledger with a clock that the test moves."""
    return History()
