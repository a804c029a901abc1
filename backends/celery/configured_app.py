"""The Celery app that the environment configures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit

import celery
from celery.local import Proxy
from kombu.transport import TRANSPORT_ALIASES
from pydantic import SecretStr

from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.errors import ConfigurationError, MissingExtra
from queuebridge.loading import import_attribute

_WITH_PORT = ("amqp", "amqps", "pyamqp", "redis", "rediss", "sentinel")


_app_in_hand: ContextVar[celery.Celery | None] = ContextVar("queuebridge_celery_app", default=None)


@contextmanager
def using_app(app: celery.Celery) -> Iterator[None]:
    """Have bridges that are made inside the block publish through this app, if the environment names no other."""
    token = _app_in_hand.set(app)
    try:
        yield
    finally:
        _app_in_hand.reset(token)


def longest_delay(app: celery.Celery) -> float | None:
    """Return the visibility timeout of the app's broker in seconds, None for brokers that have none.

    A broker of this kind gives a message that waits longer in a worker to another one too.
    """
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    if not str(url).startswith(("redis", "rediss", "sentinel")):
        return None
    return float((app.conf.broker_transport_options or {}).get("visibility_timeout", 3600))


def import_app(path: str, *, variable: str = "QUEUEBRIDGE_CELERY_APP") -> celery.Celery:
    """Return an app that somebody else has made.

    Args:
        path: The app, as `package.module:attribute`.
        variable: What named it, for errors.

    Raises:
        ConfigurationError: There is none, or what is there is no Celery app.
    """
    app = import_attribute(path, variable=variable)
    if isinstance(app, Proxy):
        app = app._get_current_object()
    if not isinstance(app, celery.Celery):
        raise ConfigurationError(f"{variable}={path!r} is a {type(app).__name__}, not a Celery app.")
    return app


def make_app(settings: CelerySettings, *, default_queue: str) -> celery.Celery:
    """Return a Celery app for the configured broker.

    Raises:
        ConfigurationError: No broker is configured, or its address is none.
        MissingExtra: The broker is Redis, and its client library is not installed.
    """
    if settings.app is not None:
        return import_app(settings.app)
    in_hand = _app_in_hand.get()
    if in_hand is not None:
        return in_hand
    if settings.broker_url is None:
        raise ConfigurationError(
            "The celery backend needs CELERY_BROKER_URL (such as redis://localhost:6379/0 or "
            "amqp://user:password@localhost//), or QUEUEBRIDGE_CELERY_APP=package.module:app."
        )
    broker = settings.broker_url.get_secret_value()
    _check_address(broker)
    if broker.startswith(("redis", "sentinel")):
        try:
            import redis  # noqa: F401 - kombu's own error does not say what to install
        except ModuleNotFoundError as error:
            raise MissingExtra("A Redis broker", "redis", "redis") from error
    app = celery.Celery(
        "queuebridge",
        amqp="queuebridge.backends.celery.amqp:QuickAMQP",
        broker=broker,
        backend=_secret(settings.result_backend),
        set_as_current=False,
    )
    app.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        result_serializer="json",
        task_default_queue=default_queue,
        task_ignore_result=settings.result_backend is None,
        task_serializer="json",
        # Each job is acknowledged after it ran; with more than one reserved, others would wait behind a long one.
        worker_prefetch_multiplier=1,
    )
    if broker.startswith(("redis", "sentinel")):
        app.conf.broker_transport_options = {"visibility_timeout": settings.visibility_timeout_seconds}
    return app


def _check_address(broker: str) -> None:
    # Not by kombu: it imports the transport, whose library need not be installed.
    scheme = broker.partition("://")[0].partition("+")[0] if "://" in broker else "amqp"
    known = scheme in TRANSPORT_ALIASES or "." in scheme
    if scheme in _WITH_PORT:
        try:
            _ = urlsplit(broker.partition(";")[0]).port
        except ValueError:
            known = False
    if not known:
        # Not the value: it may hold a password.
        raise ConfigurationError(
            "CELERY_BROKER_URL is not the address of a broker, such as redis://localhost:6379/0 or "
            "amqp://user:password@localhost//."
        )


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None
