"""What the engine is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from queuebridge.backends.qstash.protocol import DEFAULT_PLAN, DEV_USERS, PLANS, DevUser, PlanLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`time_scale` divides every wait before a retry; `max_parallelism` None means the plan's.

    `burst_per_second` is how many requests a user may make in a second, publishes apart; None is no limit.
    """

    plan: PlanLimits = PLANS[DEFAULT_PLAN]
    time_scale: float = 1.0
    max_parallelism: int | None = None
    burst_per_second: int | None = None
    users: tuple[DevUser, ...] = DEV_USERS
