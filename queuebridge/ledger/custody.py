"""How jobs are stored: the part for people without secrets, the part for machines sealed where it has any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, InvalidOption, MalformedEnvelope
from queuebridge.loading import import_optional

REDACTED = "***"
# The part of a message with arguments that are not JSON, in base64.
OPAQUE = "body"
# What a sealed body begins with; an envelope begins with `{`.
_SEALED = b"sealed:"
# Longer texts are cut: this is for people, the whole is in the body.
_SHOWN_CHARACTERS = 10_000


class Custody:
    """Turns envelopes into what the ledger keeps, and back.

    Args:
        redact: Names of arguments and metadata whose values are secret, in any case of letters, at any depth.
        key: A Fernet key (32 bytes in URL-safe base64), or None.

    Raises:
        ConfigurationError: The key is not one.
    """

    def __init__(self, redact: Sequence[str], key: str | None = None) -> None:
        self._secret = frozenset(name.lower() for name in redact)
        self._fernet = _fernet(key) if key is not None else None

    def payload(self, envelope: Envelope, names: Sequence[str] = ()) -> str:
        """Return the arguments as JSON text for people, secrets blanked out and long ones cut.

        Args:
            envelope: The job.
            names: The names of the positional parameters of its task.
        """
        args, _ = self._cleaned_args(envelope.args, names)
        kwargs, _ = self._cleaned(envelope.kwargs)
        metadata, _ = self._cleaned(envelope.metadata)
        shown: dict[str, Any] = {"args": args, "kwargs": kwargs}
        if metadata:
            shown["metadata"] = metadata
        if OPAQUE in envelope.message:
            shown = {"not JSON": envelope.message.get("content_type")}
        text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
        return text if len(text) <= _SHOWN_CHARACTERS else json.dumps({"cut": text[:_SHOWN_CHARACTERS]})

    def result(self, value: Any) -> str:
        """Return a task's result as JSON text, secrets blanked out."""
        cleaned, _ = self._cleaned(value)
        return json.dumps(cleaned, ensure_ascii=False, separators=(",", ":"))

    def store(self, envelope: Envelope, body: bytes, names: Sequence[str] = ()) -> bytes:
        """Return the body as it may be stored: sealed, if the job has secrets.

        Raises:
            InvalidOption: It has some, and there is no key.
        """
        secret = (
            self._cleaned_args(envelope.args, names)[1]
            or self._cleaned(envelope.kwargs)[1]
            or self._cleaned(envelope.metadata)[1]
            or self._cleaned(envelope.headers)[1]
            or self._cleaned(envelope.options)[1]
            or self._cleaned(envelope.message)[1]
        )
        if secret is None and OPAQUE not in envelope.message:
            return body
        if self._fernet is None:
            if secret is None:
                raise InvalidOption(
                    "serializer",
                    f"the arguments of {envelope.task} are not plain JSON, so that nobody can see whether they have "
                    "secrets, which the ledger never stores in clear. Set QUEUEBRIDGE_LEDGER_KEY, made with "
                    "`queuebridge ledger key`, in all processes; or use the json serializer without compression.",
                )
            raise InvalidOption(
                secret,
                "its name is on the list of secrets (QUEUEBRIDGE_REDACT), which the ledger never stores in clear. Set "
                "QUEUEBRIDGE_LEDGER_KEY, made with `queuebridge ledger key`, in all processes; or pass a reference.",
            )
        return _SEALED + bytes(self._fernet.encrypt(body))

    def open(self, body: bytes) -> bytes:
        """Return a stored body in clear.

        Raises:
            ConfigurationError: It is sealed with another key than ours, or we have none.
        """
        if not body.startswith(_SEALED):
            return body
        if self._fernet is None:
            raise ConfigurationError(
                "A stored job is sealed, and QUEUEBRIDGE_LEDGER_KEY is not set in this process. Set it to the key of "
                "the producers."
            )
        try:
            return bytes(self._fernet.decrypt(body.removeprefix(_SEALED)))
        except Exception as error:
            raise ConfigurationError(
                "A stored job cannot be opened: QUEUEBRIDGE_LEDGER_KEY is not the key that it was sealed with."
            ) from error

    def _cleaned_args(self, args: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], str | None]:
        cleaned: list[Any] = []
        found: str | None = None
        for position, value in enumerate(args):
            name = names[position] if position < len(names) else ""
            if name.lower() in self._secret:
                cleaned.append(REDACTED)
                found = found or name
            else:
                clean, inner = self._cleaned(value)
                cleaned.append(clean)
                found = found or inner
        return cleaned, found

    def _cleaned(self, value: Any) -> tuple[Any, str | None]:
        """Return a JSON value without secrets, and the name of the first secret in it."""
        if isinstance(value, Mapping):
            cleaned: dict[str, Any] = {}
            found: str | None = None
            for name, item in value.items():
                if str(name).lower() in self._secret:
                    cleaned[name] = REDACTED
                    found = found or str(name)
                else:
                    cleaned[name], inner = self._cleaned(item)
                    found = found or inner
            return cleaned, found
        if isinstance(value, list):
            pairs = [self._cleaned(item) for item in value]
            return [clean for clean, _ in pairs], next((inner for _, inner in pairs if inner), None)
        return value, None


def digest(envelope: Envelope) -> str:
    """Return a digest of task and arguments, the same for every copy of a dispatch that carries the same job."""
    parts = [envelope.task, envelope.args, envelope.kwargs]
    if OPAQUE in envelope.message:
        parts.append(envelope.message[OPAQUE])
    content = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def new_key() -> str:
    """Return a fresh key for QUEUEBRIDGE_LEDGER_KEY."""
    return str(import_optional("queuebridge.ledger.sealing", feature="Sealing stored jobs").new_key())


def _fernet(key: str) -> Any:
    return import_optional("queuebridge.ledger.sealing", feature="Sealing stored jobs (QUEUEBRIDGE_LEDGER_KEY)").load(
        key
    )


def referenced(envelope: Envelope, body: bytes) -> Envelope:
    """Return the job with its arguments taken from a body that was kept aside.

    Raises:
        MalformedEnvelope: The body is not the one that the envelope refers to.
    """
    reference = envelope.payload_ref
    if reference is None:
        return envelope
    if hashlib.sha256(body).hexdigest() != reference.sha256:
        raise MalformedEnvelope(f"The stored arguments of job {envelope.job_id} are not those it was enqueued with.")
    whole = Envelope.decode(body)
    arguments = {"args": whole.args, "kwargs": whole.kwargs, "message": whole.message}
    return envelope.model_copy(update={**arguments, "payload_ref": None})
