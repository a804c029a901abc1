"""`queuebridge check`: is everything configured and reachable?"""

from __future__ import annotations

import json
import sys

import click

from queuebridge.bridge import Bridge
from queuebridge.cli.app import ExitCode
from queuebridge.errors import ConfigurationError, QueueBridgeError
from queuebridge.loading import load_verifier
from queuebridge.settings import environment_or
from queuebridge.stages import Side
from queuebridge.strangers import rules_with_two_copies, unclaiming_workers


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Check settings, tasks, and the connections of the backends in use and of the ledger, a line each.

    From stage dual on, also that no worker of the old backend takes jobs without claiming them.
    """
    checks: list[tuple[str, ExitCode, str]] = []
    bridge = Bridge()
    try:
        bridge.load_tasks()
        count = len(bridge.registry)
        checks.append(
            ("tasks", ExitCode.DONE, f"{count} registered")
            if count
            else ("tasks", ExitCode.CONFIGURATION, "none; name their modules in QUEUEBRIDGE_TASKS")
        )
    except QueueBridgeError as error:
        checks.append(("tasks", ExitCode.CONFIGURATION, str(error)))
    pings = {backend.name: backend.ping for backend in bridge.backends.values()}
    if bridge.ledger is not None:
        pings["ledger"] = bridge.ledger.ping
    for name, ping in pings.items():
        try:
            checks.append((name, ExitCode.DONE, ping()))
        except ConfigurationError as error:
            checks.append((name, ExitCode.CONFIGURATION, str(error)))
        except QueueBridgeError as error:
            checks.append((name, ExitCode.UNREACHABLE, str(error)))
    checks += _workers(bridge)
    bridge.close()
    if bridge.backend.name == "qstash":
        try:
            problems = load_verifier(bridge.settings, environment_or(None)).problems()
        except ConfigurationError as error:
            problems = [str(error)]
        checks.append(
            ("receiver", ExitCode.CONFIGURATION, " ".join(problems))
            if problems
            else ("receiver", ExitCode.DONE, f"deliveries to {', '.join(bridge.settings.public_urls)} can be verified")
        )
    if as_json:
        click.echo(json.dumps({name: {"ok": code is ExitCode.DONE, "detail": text} for name, code, text in checks}))
    else:
        for name, code, text in checks:
            click.echo(f"{'ok  ' if code is ExitCode.DONE else 'FAIL'} {name}: {text}")
    sys.exit(max(code for _, code, _ in checks))


def _workers(bridge: Bridge) -> list[tuple[str, ExitCode, str]]:
    """Check that all workers claim, if they have to; nothing is said if not."""
    try:
        rules = rules_with_two_copies(bridge)
        if not rules:
            return []
        problem = unclaiming_workers(bridge.backends[Side.LEGACY], rules)
    except QueueBridgeError as error:
        return [("workers", ExitCode.UNREACHABLE, f"they could not be asked whether they claim: {error}")]
    if problem is not None:
        return [("workers", ExitCode.CONFIGURATION, problem)]
    return [("workers", ExitCode.DONE, "none takes jobs without claiming them")]
