"""What the tests of the backends share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from bridged_celery import CeleryWorld, MakeWorld, celery_world


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Make existing Celery applications with a bridge below them; as `celery_world`."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as worlds:

        def make(*args: Any, **kwargs: Any) -> CeleryWorld:
            return worlds.enter_context(celery_world(patch, *args, **kwargs))

        yield make
