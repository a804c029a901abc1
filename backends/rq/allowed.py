"""Which functions may be named in pushed RQ calls: those of the modules that QUEUEBRIDGE_RQ_MODULES lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rq.utils import import_attribute

from queuebridge.backends.rq.settings import RQSettings
from queuebridge.errors import ConfigurationError, UnknownTask
from queuebridge.settings import environment_or, read_settings

_VARIABLE = "QUEUEBRIDGE_RQ_MODULES"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# RQ's own classes, and ours: nothing that a job could make them do.
_OF_RQ = (
    "rq.job.Job",
    "queuebridge.backends.rq.job_class.Job",
    "rq.serializers.DefaultSerializer",
    "rq.serializers.PickleSerializer",
    "rq.serializers.JSONSerializer",
)


class AllowList:
    """Tells names that may be imported from others.

    Args:
        prefixes: Modules and packages.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._prefixes = tuple(prefixes)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> AllowList:
        """Return the list that the environment has."""
        return cls(read_settings(RQSettings, environment_or(environ)).modules)

    def check(self, name: str) -> None:
        """Refuse a name outside the list; nothing is imported.

        Raises:
            ConfigurationError: It is.
        """
        if not _NAME.fullmatch(name):
            raise _not_allowed(name, "it is not of the form module.function")
        if not self._holds(name.rpartition(".")[0]):
            raise _not_allowed(name, "its module is not on the list" if self._prefixes else "there is no list")

    def find(self, name: str) -> Any:
        """Import what a name of the list stands for.

        Raises:
            ConfigurationError: It is not on the list, or a module on the list has it from one that is not.
            UnknownTask: There is no such thing.
        """
        self.check(name)
        try:
            found = import_attribute(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise _unknown(name, str(error)) from error
        home = getattr(found, "__module__", None)
        if not isinstance(home, str) or not self._holds(home):
            raise _not_allowed(name, f"what it stands for is defined elsewhere ({home})")
        return found

    def find_class(self, name: str) -> Any:
        """Import a class of RQ's own, or one on the list; raises as `find`."""
        return import_attribute(name) if name in _OF_RQ else self.find(name)

    def check_class(self, name: str) -> None:
        """Refuse a class that is neither RQ's own nor on the list; raises as `check`."""
        if name not in _OF_RQ:
            self.check(name)

    def _holds(self, name: str) -> bool:
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in self._prefixes)


def _not_allowed(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name!r} may not be named in a pushed RQ call: {why}. List its module, or a package above it, in "
        f"{_VARIABLE} (separated by commas), for producers and receivers alike."
    )


def _unknown(name: str, problem: str) -> UnknownTask:
    error = UnknownTask(name)
    # What that says of tasks is no help here.
    error.args = (f"The function {name!r} of an RQ call cannot be imported here: {problem}",)
    return error
