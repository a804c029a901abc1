"""Are there workers of the old backend that would run a job without claiming it?"""

from __future__ import annotations

import click

from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.loading import load_backend
from queuebridge.outcome import describe
from queuebridge.registry import default_registry
from queuebridge.routing import RoutingSettings, StageRule
from queuebridge.runner import Runner
from queuebridge.settings import Settings, environment_or
from queuebridge.strangers import unclaiming_workers as problem_of
from queuebridge.strangers import writes_two


def unclaiming_workers(rule: StageRule) -> list[str]:
    """Return what speaks against a rule by which two copies may run; nothing, if nobody knows the workers.

    That they could not be asked is said as a warning.
    """
    environ = environment_or(None)
    if not writes_two(rule):
        return []
    try:
        legacy = RoutingSettings.from_environment(environ).legacy
        if legacy is None:
            return []
        backend = load_backend(
            legacy,
            settings=Settings.from_environment(environ),
            environ=environ,
            registry=default_registry,
            runner=Runner(default_registry),
        )
        try:
            found = problem_of(backend, [rule])
        finally:
            backend.close()
    except QueueBridgeError as error:
        click.echo(f"Warning: the workers could not be asked whether they claim: {redact(describe(error))}", err=True)
        return []
    return [found] if found is not None else []
