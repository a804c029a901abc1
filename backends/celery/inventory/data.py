"""An inventory as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from queuebridge.backends.celery.inventory.facts import AppFacts
from queuebridge.backends.celery.inventory.records import Finding
from queuebridge.backends.celery.inventory.rules.table import TaskSubject
from queuebridge.backends.celery.inventory.source.calls import Call
from queuebridge.backends.celery.inventory.source.values import Value
from queuebridge.backends.celery.inventory.taking import Inventory, TaskInventory, counts, is_blocked
from queuebridge.failures import redact

# Options whose values are shown. Those of others, such as headers, may be secrets.
_SHOWN = frozenset(
    (
        *("**", "countdown", "eta", "expires", "priority", "queue", "exchange", "exchange_type", "routing_key"),
        *("serializer", "compression", "time_limit", "soft_time_limit", "retry", "ignore_result", "immediate"),
        *("mandatory", "delivery_mode", "shadow", "add_to_parent", "confirm_timeout"),
    )
)
_HIDDEN = "..."
_LIMITS = ("time_limit", "soft_time_limit", "rate_limit", "expires")


def as_data(inventory: Inventory) -> dict[str, Any]:
    """Return an inventory as plain values. Texts of the source are without passwords in addresses."""
    subject = inventory.subject
    return {
        "app": _app(subject.app),
        "files_read": inventory.files,
        "counts": counts(inventory),
        "blocked": is_blocked(inventory),
        "findings": _findings(inventory.findings),
        "tasks": [_task(task) for task in inventory.tasks],
        "unresolved": [_call(call) | {"reason": redact(call.unresolved or "")} for call in subject.unresolved],
        "unread": [{"where": str(one.place), "problem": one.problem} for one in subject.unread],
    }


def _app(app: AppFacts) -> dict[str, Any]:
    return {
        "name": app.name,
        "path": app.path,
        "broker": app.broker,
        "result_backend": app.result_backend,
        "accept_content": list(app.accept_content),
        "settings": dict(app.settings),
        "queues": [asdict(queue) for queue in app.queues.values()],
        "schedules": [
            {
                **asdict(schedule),
                "options": {name: value if name in _SHOWN else _HIDDEN for name, value in schedule.options.items()},
            }
            for schedule in app.schedules
        ],
        "custom": dict(app.custom),
    }


def _task(task: TaskInventory) -> dict[str, Any]:
    subject = task.subject
    facts = subject.task
    return {
        "name": facts.name,
        "where": str(facts.place) if facts.place is not None else None,
        "verdict": task.verdict.value,
        "uses": {
            "arguments": [asdict(parameter) for parameter in subject.parameters],
            "serializers": _values(subject, "serializer"),
            "options": dict(facts.options),
            "route": dict(facts.route),
            "limits": {name: facts.options[name] for name in _LIMITS if name in facts.options},
            "call_options": _call_options(subject),
            "canvas": _distinct(one for call in subject.calls for one in call.canvas),
            "results": _distinct(one for call in subject.calls for one in call.results),
            "schedules": [{"name": one.name, "when": one.when} for one in subject.schedules],
            "body": [
                {"kind": one.kind, "what": redact(one.detail), "where": str(one.place)} for one in subject.uses
            ],
            "bases": list(facts.bases),
            "bound": facts.bound,
            "seen": asdict(subject.seen) if subject.seen is not None else None,
        },
        "calls": [_call(call) for call in subject.calls],
        "findings": _findings(task.findings),
    }


def _values(subject: TaskSubject, option: str) -> list[str]:
    return _distinct(str(value) for value, _, _ in subject.option(option))


def _call_options(subject: TaskSubject) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for call in subject.calls:
        for name, value in call.options.items():
            found[name] = _distinct([*found.get(name, []), _text(name, value)])
    return found


def _text(name: str, value: Value) -> str:
    return redact(value.text) if name in _SHOWN else _HIDDEN


def _call(call: Call) -> dict[str, Any]:
    return {
        "where": str(call.place),
        "text": redact(call.text),
        "how": call.how,
        "options": {name: _text(name, value) for name, value in call.options.items()},
        "canvas": list(call.canvas),
        "results": list(call.results),
        "inside": call.inside,
    }


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "rule": finding.rule,
            "severity": finding.severity.value,
            "what": redact(finding.what),
            "where": [str(place) for place in finding.where],
            "why": finding.why,
            "do": finding.do,
        }
        for finding in findings
    ]


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(values))
