"""Where the stages come from: the environment, a file, or the ledger."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from queuebridge.errors import ConfigurationError, LedgerRequired
from queuebridge.ledger.port import Ledger
from queuebridge.routing.codec import parse_rules, parse_stage, parse_toml
from queuebridge.routing.ledger_source import LedgerSource
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.routing.settings import RoutingSettings

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0

_Signature = tuple[int, int, int]


class StageSource(Protocol):
    """The stages in force in this process. Safe to use from several threads and after a fork."""

    def settings(self) -> StageSettings:
        """Return the settings in force. Called for each job."""
        ...

    def revision(self) -> int:
        """Return the number of the ledger's revision that they are; 0 if they are none."""
        ...

    def close(self) -> None:
        """Give up what the source uses. It may be used again."""
        ...


class FixedSource:
    """Settings that do not change."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings

    def settings(self) -> StageSettings:
        """Return the settings."""
        return self._settings

    def revision(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Do nothing."""


class FileSource:
    """Settings from a TOML file, which is read again when it changes.

    It is looked at once a second at most. A file that cannot be read, or that is wrong, leaves the last good settings
    in force, and is logged once.

    Args:
        path: The file.
        has_ledger: Whether stages that need one are allowed.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: The file cannot be read, or is wrong.
        LedgerRequired: A stage needs a ledger, and there is none.
    """

    def __init__(self, path: Path, *, has_ledger: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._has_ledger = has_ledger
        self._clock = clock
        self._next_check = clock() + _CHECK_SECONDS
        try:
            # Looked at before it is read: what is written in between is then seen as a change.
            self._signature: _Signature | None = self._look()
            self._settings = self._read()
        except OSError as error:
            raise ConfigurationError(f"QUEUEBRIDGE_STAGE: {path} cannot be read: {error.strerror}.") from error
        except LedgerRequired:
            raise
        except ConfigurationError as error:
            raise ConfigurationError(f"QUEUEBRIDGE_STAGE: {path}: {error}") from error

    def settings(self) -> StageSettings:
        """Return the settings of the last good file."""
        now = self._clock()
        if now >= self._next_check:
            # No lock: two threads that read at once set the same, and one that was overtaken is put right next time.
            self._next_check = now + _CHECK_SECONDS
            self._refresh()
        return self._settings

    def revision(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Do nothing: the file is open only while it is read."""

    def _refresh(self) -> None:
        signature: _Signature | None = None
        try:
            signature = self._look()
            if signature == self._signature:
                return
            settings = self._read()
        except (OSError, ConfigurationError) as error:
            if signature != self._signature:
                reason = error.strerror if isinstance(error, OSError) else error
                logger.error("%s is not used, the stages stay as they were: %s", self._path, reason)
        else:
            self._settings = settings
            logger.info("The stages were read again from %s.", self._path)
        self._signature = signature

    def _look(self) -> _Signature:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> StageSettings:
        try:
            text = self._path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigurationError("it is not UTF-8 text.") from None
        settings = parse_toml(text)
        require_ledger(settings, has_ledger=self._has_ledger)
        return settings


def require_ledger(settings: StageSettings, *, has_ledger: bool) -> None:
    """Check that there is a ledger if any stage needs one.

    Raises:
        LedgerRequired: There is none; names the stage and the rule.
    """
    for rule in settings.all_rules:
        for stage in rule.stages:
            if stage.plan.needs_ledger and not has_ledger:
                raise LedgerRequired(f"The stage {stage.value} ({rule.label})")


def create_source(routing: RoutingSettings, ledger: Ledger | None, *, kind: str) -> StageSource:
    """Return the source that the environment names. Connects to nothing.

    Args:
        routing: What the environment says; there must be a migration.
        ledger: The ledger, if one is configured.
        kind: What this process does: `producer`, `receiver`, `worker` or `reconcile`.

    Raises:
        ConfigurationError: A stage or a rule is wrong; names the variable.
        LedgerRequired: The stages are in the ledger, or need one, and there is none.
    """
    if routing.from_ledger:
        if ledger is None:
            raise LedgerRequired("QUEUEBRIDGE_STAGE=ledger")
        return LedgerSource(ledger.stages, kind=kind)
    if routing.from_file:
        return FileSource(Path(routing.stage or ""), has_ledger=ledger is not None)
    settings = _from_variables(routing)
    require_ledger(settings, has_ledger=ledger is not None)
    return FixedSource(settings)


def _from_variables(routing: RoutingSettings) -> StageSettings:
    variable = "QUEUEBRIDGE_STAGE"
    try:
        stage = parse_stage(routing.stage or "legacy")
    except ConfigurationError as error:
        text = str(error).removesuffix(".")
        raise ConfigurationError(f"{variable}: {text}; or a path that ends in .toml, or ledger.") from None
    try:
        # What is wrong with the default alone is told by its field: percent and key have variables of their own.
        default = StageRule(stage=stage, percent=routing.stage_percent, key=routing.stage_key)
    except ConfigurationError as error:
        field, _, problem = str(error).partition(": ")
        raise ConfigurationError(f"{variable}_{field.upper()}: {problem}") from None
    try:
        return StageSettings(default=default, rules=parse_rules(routing.stage_rules, key=routing.stage_key))
    except ConfigurationError as error:
        raise ConfigurationError(f"{variable}_RULES: {error}") from None
