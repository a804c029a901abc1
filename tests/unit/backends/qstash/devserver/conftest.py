from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.clock import Clock
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.messages import LogState, Message, MessageSpec, Outcome
from queuebridge.backends.qstash.devserver.settings import EngineSettings
from queuebridge.backends.qstash.devserver.store import MemoryStore, Store
from queuebridge.backends.qstash.protocol import DEV_USERS

START = 1_800_000_000.0


class FakeClock:
    """Unix seconds that move only when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class World:
    """An engine with a clock that tests move, and short forms of what tests do to it."""

    def __init__(self, store: Store | None = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.engine = Engine(Clock(self.clock), store or MemoryStore(), EngineSettings(**settings))

    @property
    def account(self) -> Account:
        return self.engine.accounts[DEV_USERS[0].name]

    def publish(
        self, url: str = "http://host/x", *, delay: float = 0, dedup_key: str | None = None, **spec: Any
    ) -> Message:
        _, message = self.engine.accept(
            self.account,
            MessageSpec(url=url, **spec),
            b"body",
            not_before=self.clock.now + delay,
            dedup_key=dedup_key,
        )
        assert message is not None, "the publish was a duplicate"
        self.engine.release(message)
        return message

    def advance(self, seconds: float) -> list[Message]:
        self.clock.now += seconds
        return self.engine.start_due()

    def start(self) -> list[Message]:
        return self.engine.start_due()

    def finish(self, message: Message, status: int = 200, **outcome: Any) -> None:
        self.engine.finish(message, Outcome(status=status, **outcome))

    def states(self, message: Message) -> list[LogState]:
        entries = self.account.history.oldest_first()
        return [entry.state for entry in entries if entry.message is message]


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Make a world with chosen engine settings."""
    return World


@pytest.fixture
def world() -> World:
    """A world with default settings."""
    return World()
