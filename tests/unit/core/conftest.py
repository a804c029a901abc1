"""What the tests of the core share: an empty registry, and a backend that keeps what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from staging import World

from queuebridge import Bridge, TaskRegistry, Write
from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.envelope import Envelope


class RecordingBackend(Backend):
    """Carries nothing and remembers everything.

    Attributes:
        calls: What was called, in order: `check`, `publish`, `publish_many`, `ping`, `close`.
        published: The publications that it accepted.
        errors: Errors to answer with, by the first argument of the job.
    """

    name = "celery"
    capabilities = Capabilities(delay=True, priority=True, deduplication=True, publish_retry=True)

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        if capabilities is not None:
            self.capabilities = capabilities
        self.calls: list[str] = []
        self.published: list[Publication] = []
        self.errors: dict[object, Exception] = {}
        self.refused_by_check: dict[object, Exception] = {}

    def check(self, publication: Publication) -> None:
        """Refuse what the test wants refused."""
        self.calls.append("check")
        if (error := self.refused_by_check.get(_first(publication))) is not None:
            raise error

    def publish(self, publication: Publication) -> Write:
        """Keep the publication, or raise the error that the test wants."""
        self.calls.append("publish")
        if (error := self.errors.get(_first(publication))) is not None:
            raise error
        self.published.append(publication)
        return Write(backend=self.name, message_id=f"message-{len(self.published)}")

    def ping(self) -> str:
        """Answer."""
        self.calls.append("ping")
        return "here"

    def close(self) -> None:
        """Remember it."""
        self.calls.append("close")

    @property
    def envelope(self) -> Envelope:
        """The envelope published last."""
        return self.published[-1].envelope


def _first(publication: Publication) -> object:
    return publication.envelope.args[0] if publication.envelope.args else None


@pytest.fixture
def registry() -> TaskRegistry:
    """An empty registry."""
    return TaskRegistry()


@pytest.fixture
def make_recorder() -> Callable[..., RecordingBackend]:
    """Make recording backends, with capabilities of one's own."""
    return RecordingBackend


@pytest.fixture
def recorder() -> RecordingBackend:
    """A backend that can do everything and remembers what it was given."""
    return RecordingBackend()


@pytest.fixture
def bridge(recorder: RecordingBackend, registry: TaskRegistry) -> Bridge:
    """A bridge over the recording backend; it is a quarter past two on the tenth of May 2024, in Greenwich."""
    return Bridge(recorder, registry=registry, environ={}, clock=lambda: 1_715_350_500.0)


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Make worlds, and end their threads."""
    made: list[World] = []

    def make(*args: Any, **more: Any) -> World:
        made.append(World(*args, **more))
        return made[-1]

    yield make
    for world in made:
        world.close()
