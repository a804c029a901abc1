"""What the tests of the embedded server share: a destination, and clients of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from destinations import Clients, Destination, running, running_destination
from qstash import QStash

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER


@pytest.fixture
def destination() -> Iterator[Destination]:
    """A destination for deliveries."""
    with running_destination() as found:
        yield found


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Clients of a server of their own, in memory, which retries a thousand times as fast."""
    with running() as found:
        yield found


@pytest.fixture
def sdk() -> Iterator[Callable[..., QStash]]:
    """Make SDK clients; their connections, which they cannot close, are closed with the test."""
    made = []

    def make(base_url: str, token: str = DEFAULT_DEV_USER.token) -> QStash:
        made.append(QStash(token, base_url=base_url, retry=False))
        return made[-1]

    yield make
    for client in made:
        client.http._client.close()


@pytest.fixture
def client(base_url: str, sdk: Callable[..., QStash]) -> QStash:
    """The SDK's client of the first user; `base_url` is the test module's."""
    return sdk(base_url)


@pytest.fixture
def http(base_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the first user; `base_url` is the test module's."""
    authorized = {"Authorization": f"Bearer {DEFAULT_DEV_USER.token}"}
    with httpx.Client(base_url=base_url, headers=authorized, trust_env=False) as found:
        yield found
