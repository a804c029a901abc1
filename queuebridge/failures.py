"""Tell apart, for errors of any client library, what was never sent from what may have arrived."""

from __future__ import annotations

import errno
import re
import socket

from queuebridge.errors import BackendUnavailable, PublishError, PublishOutcomeUnknown

# Up to the last `@`: passwords are not always percent-encoded.
_IN_ADDRESS = re.compile(r"://\S*@")
_NAMED = re.compile(r"((?:password|passwd|pwd|secret|token|api_?key)=)[^&\s'\"]+", re.IGNORECASE)
_BEARER = re.compile(r"(Bearer\s+)[\w.~+/=-]+", re.IGNORECASE)

# What connecting alone may end with, as against talking over a connection.
_UNREACHABLE = (errno.ENETUNREACH, errno.ENOENT)
_REFUSED_AT_THE_DOOR = ("AuthenticationError", "SSLCertVerificationError")


def redact(text: str) -> str:
    """Return `text` in one line, with the credentials in addresses, parameters and tokens blanked out."""
    line = _IN_ADDRESS.sub("://***@", " ".join(text.split()))
    return _BEARER.sub(r"\1***", _NAMED.sub(r"\1***", line))


def publish_failure(backend: str, error: Exception, job_id: str) -> PublishError:
    """Return the error to raise for a failed publish.

    BackendUnavailable if no connection came about, so that nothing can have been sent; otherwise
    PublishOutcomeUnknown.
    """
    reason = redact(str(error)) or type(error).__name__
    if _never_connected(error):
        return BackendUnavailable(backend, f"it cannot be reached ({reason}).")
    return PublishOutcomeUnknown(backend, f"the connection failed ({reason}).", job_id)


def ping_failure(error: PublishError) -> PublishError:
    """Return the error to raise for a failed ping: it carries no job whose outcome could be unknown."""
    if isinstance(error, PublishOutcomeUnknown):
        doubt = f" The job {error.job_id} may or may not have been accepted."
        return BackendUnavailable(error.backend, error.reason.removesuffix(doubt))
    return error


def _never_connected(error: BaseException) -> bool:
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    # A connection that broke may have carried the job, even if a second one could then not be made.
    if any(isinstance(step, ConnectionResetError | BrokenPipeError | ConnectionAbortedError) for step in chain):
        return False
    return any(_is_about_connecting(step) for step in chain)


def _is_about_connecting(error: BaseException) -> bool:
    if isinstance(error, ConnectionRefusedError | socket.gaierror) or type(error).__name__ in _REFUSED_AT_THE_DOOR:
        return True
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return True
    # redis-py says so only in words, when the operating system's error is a time-out.
    return "connecting to" in str(error)
