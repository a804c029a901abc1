"""What was never sent is told from what may have arrived, and no credentials are told at all."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from queuebridge import BackendUnavailable, PublishOutcomeUnknown
from queuebridge.failures import publish_failure, redact

SECRET = "hunter2"


class AuthenticationError(Exception):
    """Named like redis-py's."""


def chained(outer: Exception, inner: BaseException, *, explicit: bool = False) -> Exception:
    """Return `outer` as if it was raised while `inner` was handled."""
    if explicit:
        outer.__cause__ = inner
    else:
        outer.__context__ = inner
    return outer


NEVER_SENT: list[Exception] = [
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    FileNotFoundError(errno.ENOENT, "No such file", "/run/redis.sock"),
    socket.gaierror(-2, "Name or service not known"),
    AuthenticationError("WRONGPASS"),
    Exception("Timeout connecting to server"),
    chained(RuntimeError("outer"), ConnectionRefusedError(), explicit=True),
    chained(RuntimeError("outer"), OSError(errno.ECONNREFUSED, "refused")),
    chained(RuntimeError("a"), chained(RuntimeError("b"), socket.gaierror())),
]
MAYBE_SENT: list[Exception] = [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    TimeoutError("timed out"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    Exception("Connection closed by server."),
    RuntimeError(),
    # The connection broke with the job on it, and could not be made again.
    chained(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ConnectionResetError()),
    chained(Exception("Error 111 connecting to host:6379"), BrokenPipeError(), explicit=True),
]


@pytest.mark.parametrize("error", NEVER_SENT, ids=repr)
def test_error_of_connecting_means_nothing_was_accepted(error: Exception) -> None:
    failure = publish_failure("rq", error, "job-1")

    assert type(failure) is BackendUnavailable
    assert str(failure).startswith("rq: it cannot be reached (")


@pytest.mark.parametrize("error", MAYBE_SENT, ids=repr)
def test_every_other_error_means_that_nobody_knows(error: Exception) -> None:
    failure = publish_failure("rq", error, "job-1")

    assert isinstance(failure, PublishOutcomeUnknown)
    assert failure.job_id == "job-1"
    assert str(failure).endswith("The job job-1 may or may not have been accepted.")


def test_both_are_worth_a_retry() -> None:
    assert BackendUnavailable.retryable
    assert PublishOutcomeUnknown.retryable


def test_circle_of_causes_is_no_endless_loop() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first

    assert isinstance(publish_failure("rq", first, "job-1"), PublishOutcomeUnknown)


def test_error_without_text_is_called_by_its_type() -> None:
    assert "the connection failed (RuntimeError)" in str(publish_failure("rq", RuntimeError(), "job-1"))


@pytest.mark.parametrize("make", [ConnectionRefusedError, ConnectionResetError])
def test_credentials_in_the_reason_are_blanked_out(make: Callable[[str], Exception]) -> None:
    failure = publish_failure("rq", make(f"no answer from redis://user:{SECRET}@host:6379/0"), "job-1")

    assert "redis://***@host:6379/0" in str(failure)
    assert SECRET not in str(failure)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"redis://:{SECRET}@host:6379/0", "redis://***@host:6379/0"),
        (f"amqp://user:{SECRET}@host//", "amqp://***@host//"),
        (f"redis://:a/{SECRET}@host", "redis://***@host"),
        (f"redis://:a@{SECRET}@host", "redis://***@host"),
        (f"to 'https://{SECRET}@host' and 'https://b@c'", "to 'https://***@host' and 'https://***@c'"),
        (f"amqp://a:{SECRET}@one,amqp://b:{SECRET}@two", "amqp://***@two"),
        (f"rediss://host?password={SECRET}&db=1", "rediss://host?password=***&db=1"),
        (f"https://host?access_TOKEN={SECRET}", "https://host?access_TOKEN=***"),
        (f"Authorization: Bearer {SECRET}.abc-_=", "Authorization: Bearer ***"),
        ("https://host/path", "https://host/path"),
        ("mail to ann@example.com", "mail to ann@example.com"),
        ("two\nlines\t here", "two lines here"),
        ("", ""),
    ],
)
def test_credentials_are_blanked_out(text: str, shown: str) -> None:
    assert redact(text) == shown
