"""Make the receiver: as a Flask application of its own, or as a blueprint for another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from werkzeug.exceptions import HTTPException

from bridge_app.health import Health
from bridge_app.receiver import OnFailed, Receiver
from bridge_app.replies import reply
from queuebridge.bridge import Bridge
from queuebridge.delivery import DeliveryVerifier
from queuebridge.loading import load_verifier
from queuebridge.settings import environment_or

logger = logging.getLogger(__name__)


def create_app(
    bridge: Bridge | None = None,
    *,
    verifier: DeliveryVerifier | None = None,
    environ: Mapping[str, str] | None = None,
    on_failed: OnFailed | None = None,
) -> Flask:
    """Return a Flask application that is nothing but the receiver.

    Args:
        bridge: Whose tasks run; default a new one from the environment.
        verifier: Decides which requests to trust; default from the environment.
        environ: Variables to read instead of the process's environment.
        on_failed: Called with a `FailedDelivery` for each message that QStash gave up.

    Raises:
        ConfigurationError: A setting is wrong, or a development convenience is on in production.
        TaskRegistrationError: A task cannot work as declared.
    """
    app = Flask("bridge_app", static_folder=None)
    # More than any QStash plan delivers; the body has to be read before its signature can be checked.
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024 * 1024
    app.register_error_handler(HTTPException, json_error)
    blueprint = create_blueprint(bridge, verifier=verifier, environ=environ, on_failed=on_failed)
    app.register_blueprint(blueprint)
    for probe in ("health", "ready"):
        # In an application of its own also where load balancers look first.
        app.add_url_rule(f"/{probe}", f"root_{probe}", app.view_functions[f"{blueprint.name}.{probe}"])
    return app


def create_blueprint(
    bridge: Bridge | None = None,
    *,
    verifier: DeliveryVerifier | None = None,
    environ: Mapping[str, str] | None = None,
    on_failed: OnFailed | None = None,
) -> Blueprint:
    """Return the receiver as a blueprint for your own Flask application; see `create_app` for the arguments.

    It carries its own prefix (QUEUEBRIDGE_PREFIX) and exempts itself from Flask-WTF's request-forgery check, if
    the application uses that: deliveries are authenticated by their signature.
    """
    environ = environment_or(environ)
    bridge = bridge if bridge is not None else Bridge(environ=environ, kind="receiver")
    bridge.load_tasks()
    verifier = verifier if verifier is not None else load_verifier(bridge.settings, environ)
    for problem in verifier.problems():
        logger.error("The receiver refuses all deliveries: %s", problem)
    blueprint = Blueprint("queuebridge", "bridge_app", url_prefix=bridge.settings.prefix)
    blueprint.register_error_handler(HTTPException, json_error)
    Receiver(bridge, verifier, on_failed).add_to(blueprint, bridge.settings.aliases)
    Health(bridge, verifier).add_to(blueprint)

    # Preprocessors run before the check itself, however late the extension was added to the application.
    @blueprint.url_value_preprocessor
    def exempt_from_csrf(_endpoint: str | None, _values: dict[str, Any] | None) -> None:
        csrf = current_app.extensions.get("csrf")
        if csrf is not None:
            csrf.exempt(blueprint)

    return blueprint


def json_error(error: HTTPException) -> Response:
    """Return Flask's own refusals (no such path, body too large) in JSON, with their headers."""
    response = reply(error.code or 500, {"error": error.description or error.name})
    kept = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    response.headers.update(kept)
    return response
