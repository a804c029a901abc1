"""The names that users rely on: pinned, documented, and complete."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest
from source import Module, modules

import queuebridge
from queuebridge import errors

# A change here is a change for users: it belongs into the changelog.
PUBLIC = {
    "queuebridge": [
        "AllWritesFailed",
        "BackendUnavailable",
        "Bridge",
        "Call",
        "ConfigurationError",
        "CurrentJob",
        "EnqueueManyError",
        "EnqueueOptions",
        "InvalidArguments",
        "InvalidOption",
        "LeaseLost",
        "LedgerRequired",
        "LedgerUnavailable",
        "OptionNotSupported",
        "PermanentFailure",
        "PublishError",
        "PublishOutcomeUnknown",
        "PublishRejected",
        "QueueBridgeError",
        "Receipt",
        "RetryLater",
        "RetryPolicy",
        "Task",
        "TaskRegistry",
        "TaskTimeout",
        "UnknownTask",
        "Write",
        "current_job",
        "get_bridge",
        "set_bridge",
        "task",
    ],
    "queuebridge.reporting": [
        "DEFAULT_THRESHOLDS",
        "Percentiles",
        "ShadowReport",
        "SideReport",
        "StageReport",
        "TaskStatistics",
        "Thresholds",
        "Verdict",
        "build_report",
        "judge",
        "judge_advance",
        "task_statistics",
    ],
    "queuebridge.testing": ["BridgeReceiver", "QStashReceiver", "QStashServer", "ReceivedRequest", "RecordedDelivery"],
    "bridge_app": ["FailedDelivery", "create_app", "create_blueprint"],
}
PACKAGES = [module for module in modules() if module.is_package]


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_the_pinned_ones(package: str) -> None:
    assert importlib.import_module(package).__all__ == PUBLIC[package]


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_public_names_are_sorted_and_exist(package: Module) -> None:
    module = importlib.import_module(package.name)
    names = list(getattr(module, "__all__", []))

    assert names == sorted(names)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", modules(), ids=str)
def test_module_has_a_docstring_and_no_star_import(module: Module) -> None:
    stars = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]

    assert ast.get_docstring(module.tree)
    assert stars == []


@pytest.mark.parametrize("name", [f"{package}.{name}" for package, names in PUBLIC.items() for name in names])
def test_public_object_and_its_public_methods_have_docstrings(name: str) -> None:
    package, _, attribute = name.rpartition(".")
    target = getattr(importlib.import_module(package), attribute)
    undocumented = [] if own_docstring(target) else [name]
    if inspect.isclass(target):
        undocumented += [
            f"{name}.{method}"
            for method, value in vars(target).items()
            if not method.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property))
            and not inspect.getdoc(value)
        ]

    assert undocumented == []


def own_docstring(target: object) -> str | None:
    """Return the docstring that was written for an object: not inherited, and not made by `@dataclass`."""
    text = target.__dict__.get("__doc__") if inspect.isclass(target) else target.__doc__
    if text and inspect.isclass(target) and text.startswith(f"{target.__name__}("):
        return None
    return text


def error_classes() -> dict[str, str]:
    """Return the error classes of `queuebridge.errors` with their parents."""
    found = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    return {
        name: value.__base__.__name__
        for name, value in found.items()
        if issubclass(value, Exception) and value.__module__ == errors.__name__
    }


def error_tree() -> dict[str, str]:
    """Return the error classes that the docstring draws, with their parents."""
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([│├└─ ]*)([A-Z]\w+)(?=\s{2,}|$)", line)
        if match:
            depth = len(match.group(1)) // 4
            above[depth:] = [match.group(2)]
            drawn[match.group(2)] = above[depth - 1] if depth else "Exception"
    return drawn


def test_tree_of_errors_shows_every_class_below_its_parent() -> None:
    assert error_tree() == error_classes()


def test_there_is_one_root_of_all_errors() -> None:
    assert [name for name, parent in error_classes().items() if parent == "Exception"] == ["QueueBridgeError"]


@pytest.mark.parametrize("name", sorted(set(error_classes()) - set(error_classes().values())))
def test_error_says_when_it_is_raised(name: str) -> None:
    text = own_docstring(getattr(errors, name)) or ""

    assert re.match(r"Raised .+\.", text)


def test_every_public_error_descends_from_the_root() -> None:
    exported = [getattr(queuebridge, name) for name in queuebridge.__all__]
    raised = [value for value in exported if inspect.isclass(value) and issubclass(value, BaseException)]

    assert [error for error in raised if not issubclass(error, errors.QueueBridgeError)] == []
