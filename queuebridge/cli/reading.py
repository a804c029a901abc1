"""What the commands that read the ledger share: their options, and how they print."""

from __future__ import annotations

import enum
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queuebridge.ledger import Ledger
from queuebridge.stages import Stage

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000}
_DURATION = re.compile(r"(?:[0-9]{1,9}[dhms])+")


def parse_duration(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001
    """Return the milliseconds of a length of time such as `90s`, `24h`, `7d` or `1d12h`; None stays None."""
    if value is None:
        return None
    if _DURATION.fullmatch(value) is None:
        raise click.BadParameter(f"{value!r} is no length of time; write for example 90s, 15m, 24h, 7d or 1d12h.")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", value))


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
since_option: Decorator = click.option(
    "--since",
    "since_ago_ms",
    metavar="DURATION",
    callback=parse_duration,
    help="Only jobs accepted within this time, as in 90s, 24h or 7d.",
)
stage_option: Decorator = click.option(
    "--stage", type=click.Choice([stage.value for stage in Stage]), help="Only jobs written by this stage."
)


def limit_option(default: int) -> Decorator:
    """Return the option that says how many jobs are shown."""
    return click.option(
        "--limit", default=default, show_default=True, type=click.IntRange(min=1), help="Show so many at most."
    )


def since_ms(ledger: Ledger, ago_ms: int | None) -> int | None:
    """Return the time that was so long ago, on the store's clock; None if it does not matter."""
    return None if ago_ms is None else ledger.now_ms() - ago_ms


def print_json(value: Any) -> None:
    """Print a value as JSON; members of enumerations as their values."""
    click.echo(json.dumps(value, default=_plain))


def _plain(value: object) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows: as a table on a terminal, otherwise with tabs between the columns, for other programs."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in (columns, *cells):
            click.echo("\t".join(" ".join(cell.split()) for cell in line))
        return
    table = Table(*columns)
    for line in cells:
        # Text, since what is in brackets would be taken for markup.
        table.add_row(*map(Text, line))
    Console().print(table)


def clock(at_ms: int | None) -> str | None:
    """Return a time for people."""
    if at_ms is None:
        return None
    return f"{datetime.fromtimestamp(at_ms / 1000, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
