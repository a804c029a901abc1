"""The pytest fixtures. pytest loads this module in every run: it imports no more than it must, and does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from queuebridge.testing.bridge_receiver import BridgeReceiver
from queuebridge.testing.receiver import QStashReceiver
from queuebridge.testing.server import QStashServer


@pytest.fixture
def qstash_server_settings() -> dict[str, Any]:
    """Return how to run `qstash_server`: arguments of `QStashServer.running`. Override it in your conftest.py."""
    return {}


@pytest.fixture
def qstash_server(qstash_server_settings: Mapping[str, Any]) -> Iterator[QStashServer]:
    """Run an embedded QStash server, in memory, for this test."""
    with QStashServer.running(**qstash_server_settings) as server:
        yield server


@pytest.fixture
def qstash_receiver() -> Iterator[QStashReceiver]:
    """Run a small HTTP server which verifies and records what QStash sends, and answers as told."""
    with QStashReceiver.running() as receiver:
        yield receiver


@pytest.fixture
def queuebridge_receiver_settings() -> dict[str, str]:
    """Return variables for the bridge of `queuebridge_receiver`, such as QUEUEBRIDGE_TASKS. Override it."""
    return {}


@pytest.fixture
def queuebridge_receiver(
    qstash_server: QStashServer, queuebridge_receiver_settings: Mapping[str, str]
) -> Iterator[BridgeReceiver]:
    """Run the Flask receiver for your tasks; in this test `task.delay(...)` publishes to `qstash_server`."""
    with BridgeReceiver.running(qstash_server, queuebridge_receiver_settings) as receiver:
        yield receiver
