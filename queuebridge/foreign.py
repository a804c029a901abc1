"""Send calls that were written for Celery or RQ through a bridge: where they go, and who publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from queuebridge.bridge import Bridge
from queuebridge.errors import ConfigurationError
from queuebridge.publishing.draft import Draft
from queuebridge.receipt import Receipt
from queuebridge.settings import environment_or
from queuebridge.stages import Stage

_CHOICES = ("QUEUEBRIDGE_BACKEND", "QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_STAGE")


def is_chosen(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether the environment says where jobs go. Else a foreign call is none of our business.

    Args:
        environ: The environment; None is the process's.
    """
    environ = environment_or(environ)
    return any(environ.get(name, "").strip() for name in _CHOICES)


class Forwarding:
    """Publishes foreign calls of one kind.

    Args:
        bridge: The bridge.
        kind: The library that the calls are written for: `celery` or `rq`.

    Raises:
        ConfigurationError: The bridge uses the other one of the two, which cannot run such calls.
    """

    def __init__(self, bridge: Bridge, kind: str) -> None:
        self.bridge = bridge
        self._kind = kind
        self._spools = bridge.spools
        for backend in bridge.backends.values():
            if backend.name in {"celery", "rq"} - {kind}:
                raise ConfigurationError(
                    f"Calls that are written for {kind} go to {kind} or to QStash, and QUEUEBRIDGE_LEGACY or "
                    f"QUEUEBRIDGE_BACKEND says {backend.name}."
                )

    def stage_of(self, task: str, queue: str, job_id: str, metadata: Mapping[str, Any]) -> Stage | None:
        """Return the stage by which a call is written; None without a migration."""
        stages = self.bridge.stages
        if stages is None:
            return None
        rule = stages.settings().rule_for(task, queue)
        # In most rules, everybody is in: then neither a key nor a reason has to be found.
        return rule.stage if rule.everybody_is_in else rule.decide(job_id, metadata).stage

    def common_stage(self) -> Stage | None:
        """Return the stage by which every call is written; None if that depends on the call, or without a migration."""
        stages = self.bridge.stages
        if stages is None:
            return None
        settings = stages.settings()
        return settings.default.stage if not settings.rules and settings.default.everybody_is_in else None

    def is_left_to_library(self, stage: Stage | None) -> bool:
        """Return whether a call of this stage is published by the library itself, as if there were no bridge."""
        if stage is None:
            return self.bridge.backend.name == self._kind and self.bridge.ledger is None
        return stage is Stage.LEGACY and not self._spools

    def publish(self, draft: Draft) -> Receipt:
        """Publish a call; raises as `Bridge.enqueue`."""
        publisher = self.bridge.publisher
        return publisher.publish(publisher.prepare(draft))
