"""How much is simulated."""

from __future__ import annotations

import os

import pytest

_VARIABLE = "QUEUEBRIDGE_TEST_SIMULATION_JOBS"
_JOBS = 100_000


@pytest.fixture(scope="session")
def simulated_jobs() -> int:
    """How many jobs are simulated in all."""
    # Of the session, so that it is read before the test's environment is cleaned.
    return int(os.environ.get(_VARIABLE) or _JOBS)
