"""Which tasks there are, and the modules that declare them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import threading
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from queuebridge.errors import ConfigurationError, TaskRegistrationError, UnknownTask
from queuebridge.task import Task

AnyTask = Task[..., Any]


class TaskRegistry:
    """The tasks of a program by name and alias. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._aliases: dict[str, AnyTask] = {}
        self._lock = threading.Lock()

    def add(self, task: AnyTask) -> None:
        """Register a task under its name and its aliases.

        Raises:
            TaskRegistrationError: A different function has the name or an alias already.
        """
        with self._lock:
            for name in (task.name, *task.aliases):
                present = self._tasks.get(name) or self._aliases.get(name)
                if present is not None and not _same_function(present, task):
                    raise TaskRegistrationError(
                        f"Two tasks want the name {name!r}: {_place(present)} and {_place(task)}. "
                        "Give one of them another name=."
                    )
            self._tasks[task.name] = task
            for alias in task.aliases:
                self._aliases[alias] = task

    def get(self, name: str) -> AnyTask:
        """Return the task with this name or alias.

        Raises:
            UnknownTask: There is none.
        """
        found = self._tasks.get(name) or self._aliases.get(name)
        if found is None:
            close = difflib.get_close_matches(name, [*self._tasks, *self._aliases], n=1)
            raise UnknownTask(name, known=list(self._tasks), suggestion=close[0] if close else None)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._tasks or name in self._aliases

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(sorted(self._tasks.values(), key=lambda task: task.name))

    def __len__(self) -> int:
        return len(self._tasks)

    def check(self) -> None:
        """Build the argument schema of every task, so that a wrong type hint is found at the start.

        Raises:
            TaskRegistrationError: Arguments of a task have no JSON form.
        """
        for task in self:
            task.arguments  # noqa: B018 - built on access


default_registry = TaskRegistry()


def discover(modules: Sequence[str]) -> None:
    """Import the modules that declare tasks; `package.*` means the package and all modules below it.

    Raises:
        ConfigurationError: There is no such module. An error inside a module is raised as it is.
    """
    for name in modules:
        package = name.removesuffix(".*")
        if not all(part.isidentifier() for part in package.split(".")):
            raise ConfigurationError("QUEUEBRIDGE_TASKS must be names of modules, such as shop.tasks or shop.*.")
        if not _exists(package):
            raise ConfigurationError(
                f"QUEUEBRIDGE_TASKS names the module {package!r}, which cannot be found. Start the program in the "
                "folder that contains it, or set PYTHONPATH."
            )
        imported = importlib.import_module(package)
        if package == name:
            continue
        if not hasattr(imported, "__path__"):
            raise ConfigurationError(f"QUEUEBRIDGE_TASKS names {name!r}, but {package!r} is a module without others.")
        for child in pkgutil.walk_packages(imported.__path__, prefix=f"{package}."):
            # Importing that would start the program it belongs to.
            if child.name.rpartition(".")[2] != "__main__":
                importlib.import_module(child.name)


def _exists(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        # Looking for a.b imports a. What is missing may be something that a itself wants to import.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return False


def _same_function(one: AnyTask, other: AnyTask) -> bool:
    # A module may be loaded twice (as __main__ and by name); that is the same task, not a clash.
    return (_code(one).co_filename, one.function.__qualname__) == (
        _code(other).co_filename,
        other.function.__qualname__,
    )


def _place(task: AnyTask) -> str:
    code = _code(task)
    return f"{task.function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def _code(task: AnyTask) -> CodeType:
    # Below other decorators: their own code is the same for every function that they decorate.
    innermost = inspect.unwrap(task.function)
    code: CodeType = getattr(innermost, "__code__", task.function.__code__)
    return code
