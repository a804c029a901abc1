"""Encrypt what must not be stored in clear, with the library `cryptography` (Fernet: AES-128-CBC and HMAC-SHA256)."""

from __future__ import annotations

from cryptography.fernet import Fernet

from queuebridge.errors import ConfigurationError


def new_key() -> str:
    """Return a fresh random key in text form."""
    return Fernet.generate_key().decode()


def load(key: str) -> Fernet:
    """Return what encrypts and decrypts with a key.

    Raises:
        ConfigurationError: It is no key.
    """
    try:
        return Fernet(key)
    except ValueError:
        raise ConfigurationError(
            "QUEUEBRIDGE_LEDGER_KEY is not a key; make one with `queuebridge ledger key`."
        ) from None
