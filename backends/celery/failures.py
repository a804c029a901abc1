"""From the errors of kombu and its transports to ours."""

from __future__ import annotations

import sys

from kombu.exceptions import KombuError, OperationalError

from queuebridge.errors import BackendUnavailable, PublishError, PublishRejected
from queuebridge.failures import publish_failure, redact

_NAME = "celery"
# Names, because the libraries need not be installed: how a broker says that it does not want us.
_REFUSALS = frozenset({"AccessRefused", "NotAllowed", "AuthenticationError", "NoPermissionError"})


def failure(error: Exception, job_id: str) -> PublishError:
    """Return what an error of a publish means."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _REFUSALS:
            return PublishRejected(
                _NAME,
                f"the broker does not accept our user, password or virtual host ({redact(str(cause))}). Check "
                "CELERY_BROKER_URL.",
            )
        if type(cause).__name__ == "MessageNacked":
            return BackendUnavailable(_NAME, "the broker did not take the message; is its queue full?")
        cause = cause.__cause__ or cause.__context__
    return publish_failure(_NAME, error, job_id)


def connection_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors by which brokers fail."""
    errors: tuple[type[Exception], ...] = (OperationalError, KombuError, OSError)
    # With retry=False kombu lets the errors of its transports through as they are.
    for module, name in (
        ("redis.exceptions", "RedisError"),
        ("amqp.exceptions", "AMQPError"),
        ("amqp.exceptions", "MessageNacked"),
    ):
        if module in sys.modules:
            errors += (getattr(sys.modules[module], name),)
    return errors
