"""The Celery app whose messages a receiver runs."""

from __future__ import annotations

import weakref

import celery

from queuebridge.backends.celery.configured_app import import_app
from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.errors import ConfigurationError
from queuebridge.settings import environment_or, read_settings

_attached: list[weakref.ref[celery.Celery]] = []
_found: dict[str, celery.Celery] = {}


def note_attached(app: celery.Celery) -> None:
    """Remember an app with a bridge: alone in its process, it is the receiver's."""
    _attached.append(weakref.ref(app))


def receiver_app() -> celery.Celery:
    """Return the app, with all its tasks.

    Raises:
        ConfigurationError: There is none, or several and the environment does not say which.
    """
    chosen = read_settings(CelerySettings, environment_or(None)).app
    if chosen is not None:
        if chosen not in _found:
            app = import_app(chosen)
            # As a worker does: the modules of `include`, `imports` and autodiscovery.
            app.loader.import_default_modules()
            app.finalize()
            _found[chosen] = app
        return _found[chosen]
    living = [app for app in (reference() for reference in _attached) if app is not None]
    if len(living) == 1:
        living[0].finalize()
        return living[0]
    raise ConfigurationError(
        "A Celery message was pushed, and this receiver "
        + ("knows no Celery app" if not living else "has several Celery apps")
        + ". Set QUEUEBRIDGE_CELERY_APP=package.module:app."
    )
