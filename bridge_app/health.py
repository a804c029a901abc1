"""Whether the receiver is alive, configured, and able to reach what it needs. Shows no secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flask import Blueprint, Response

from bridge_app.replies import reply
from queuebridge.bridge import Bridge
from queuebridge.delivery import DeliveryVerifier
from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.outcome import describe

logger = logging.getLogger(__name__)


class Health:
    """Answers the probes of load balancers and operators.

    Args:
        bridge: Whose configuration is shown.
        verifier: Whose configuration is checked.
    """

    def __init__(self, bridge: Bridge, verifier: DeliveryVerifier) -> None:
        self._bridge = bridge
        self._verifier = verifier

    def add_to(self, blueprint: Blueprint) -> None:
        """Register the endpoints."""
        blueprint.add_url_rule("/health", "health", self.health, methods=["GET"])
        blueprint.add_url_rule("/ready", "ready", self.ready, methods=["GET"])

    def health(self) -> Response:
        """Say that the process answers, and how it is configured; asks nobody else."""
        settings = self._bridge.settings
        return reply(
            200,
            {
                "status": "ok",
                "backend": self._bridge.backend.name,
                "environment": "production" if settings.production else "development",
                "public_urls": [redact(url) for url in settings.public_urls],
                "prefix": settings.prefix,
                "tasks": len(self._bridge.registry),
            },
        )

    def ready(self) -> Response:
        """Say whether deliveries can be verified and run, and whether the backend can be reached."""
        checks: dict[str, dict[str, object]] = {}
        problems = self._verifier.problems()
        checks["receiver"] = {"ok": not problems, "detail": " ".join(problems) or "deliveries can be verified"}
        tasks = len(self._bridge.registry)
        checks["tasks"] = {
            "ok": tasks > 0,
            "detail": f"{tasks} registered" if tasks else "No task is registered; set QUEUEBRIDGE_TASKS.",
        }
        ledger = self._bridge.ledger
        if ledger is not None:
            checks["ledger"] = self._ping(ledger.ping)
        checks["backend"] = self._ping(self._bridge.backend.ping)
        ready = all(check["ok"] for check in checks.values())
        return reply(200 if ready else 503, {"status": "ready" if ready else "not ready", "checks": checks})

    def _ping(self, ping: Callable[[], str]) -> dict[str, object]:
        try:
            return {"ok": True, "detail": ping()}
        except QueueBridgeError as error:
            return {"ok": False, "detail": str(error)}
        except Exception as error:
            logger.exception("A ping failed unexpectedly.")
            return {"ok": False, "detail": redact(describe(error))}
