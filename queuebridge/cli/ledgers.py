"""Open the ledger that the environment names, for the commands that need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from queuebridge.errors import ConfigurationError
from queuebridge.ledger import Ledger
from queuebridge.loading import load_ledger
from queuebridge.settings import Settings


def ledger_url() -> str | None:
    """Return the address of the ledger, None if the environment names none. It may have a password."""
    url = Settings.from_environment().ledger_url
    return url.get_secret_value() if url is not None else None


def required_ledger_url(purpose: str = "This command is about the ledger") -> str:
    """Return the address of the ledger.

    Args:
        purpose: What needs it, as a sentence without its end.

    Raises:
        ConfigurationError: The environment names none.
    """
    url = ledger_url()
    if url is None:
        raise ConfigurationError(
            f"{purpose}, and there is none. Set QUEUEBRIDGE_LEDGER to the database that all processes use: "
            "sqlite:///path, postgresql://... or redis://..."
        )
    return url


def optional_ledger() -> Ledger | None:
    """Return the ledger that the environment names, None if it names none. Connects to nothing."""
    url = ledger_url()
    return load_ledger(url) if url is not None else None


@contextmanager
def open_ledger(purpose: str = "Jobs are remembered in the ledger") -> Iterator[Ledger]:
    """Give the ledger that the environment names, for the length of the block.

    Raises:
        ConfigurationError: It names none.
    """
    with closing(load_ledger(required_ledger_url(purpose))) as ledger:
        yield ledger
