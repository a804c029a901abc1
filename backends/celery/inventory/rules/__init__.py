"""The rules by which tasks and apps are judged: one small function each, with its texts beside it."""

from queuebridge.backends.celery.inventory.rules import bodies, delivery, limits, results, routing, whole_app, wire
from queuebridge.backends.celery.inventory.rules.table import AppSubject, Rule, TaskSubject

TASK_RULES: tuple[Rule[TaskSubject], ...] = tuple(
    rule for module in (wire, routing, limits, results, bodies, delivery) for rule in module.TABLE.rules
)
APP_RULES: tuple[Rule[AppSubject], ...] = tuple(whole_app.TABLE.rules)

__all__ = ["APP_RULES", "TASK_RULES"]
