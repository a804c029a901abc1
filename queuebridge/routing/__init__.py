"""Where a task stands in its migration, and who decides it: rules, where they come from, how they change."""

from queuebridge.routing.rules import Decision, StageRule, StageSettings
from queuebridge.routing.settings import RoutingSettings
from queuebridge.routing.sources import FileSource, FixedSource, StageSource, create_source, require_ledger

__all__ = [
    "Decision",
    "FileSource",
    "FixedSource",
    "RoutingSettings",
    "StageRule",
    "StageSettings",
    "StageSource",
    "create_source",
    "require_ledger",
]
