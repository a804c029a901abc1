"""Workers of the old backend that would run a job without claiming it, where two copies of it may run."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from queuebridge.backend import Backend
from queuebridge.bridge import Bridge
from queuebridge.routing import StageRule
from queuebridge.stages import ORDER, Side, Stage


def writes_two(rule: StageRule) -> bool:
    """Return whether a rule is of a stage from `dual` on, by which workers have to claim."""
    return ORDER.index(rule.stage) >= ORDER.index(Stage.DUAL)


def unclaiming_workers(backend: Backend, rules: Iterable[StageRule]) -> str | None:
    """Return what is wrong with the workers that listen now; None if nothing is.

    Args:
        backend: The old backend.
        rules: The rules in force, or to come.

    Raises:
        QueueBridgeError: The workers cannot be asked.
    """
    patterns = [rule.queue for rule in rules if writes_two(rule)]
    if not patterns:
        return None
    listening = sorted(
        worker
        for worker, queues in backend.strangers().items()
        if any(fnmatchcase(queue, pattern) for queue in queues for pattern in patterns)
    )
    if not listening:
        return None
    shown = ", ".join(listening[:5]) + (", ..." if len(listening) > 5 else "")
    return (
        f"{len(listening)} workers take jobs without claiming them, and would run a job a second time: "
        f"{shown}. Restart them with the bridge and with QUEUEBRIDGE_LEDGER, or stop them."
    )


def rules_with_two_copies(bridge: Bridge) -> tuple[StageRule, ...]:
    """Return the rules in force by which workers have to claim; none without a migration.

    Raises:
        LedgerUnavailable: The stages are in the ledger, which cannot be reached.
    """
    if bridge.stages is None or Side.LEGACY not in bridge.backends:
        return ()
    return tuple(rule for rule in bridge.stages.settings().all_rules if writes_two(rule))
