"""Write the reference pages, and the tables inside other pages, that come from the code.

python docs/generate.py            write them
python docs/generate.py --check    say which ones differ, and exit with 1 if any does
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bridge_app import replies
from queuebridge import errors, settings, stages
from queuebridge.backend import Backend
from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.inventory.rules import APP_RULES, TASK_RULES
from queuebridge.backends.celery.settings import CelerySettings
from queuebridge.backends.inline import InlineBackend, InlineSettings
from queuebridge.backends.qstash.backend import QStashBackend
from queuebridge.backends.qstash.settings import PublishSettings, VerificationSettings
from queuebridge.backends.rq.backend import RQBackend
from queuebridge.backends.rq.settings import RQSettings
from queuebridge.cli.app import ExitCode, root
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.outcome import Status
from queuebridge.processes import ProcessFailed
from queuebridge.routing.settings import RoutingSettings

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code: change the code, then run it. -->"

SETTINGS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The core and the receiver", "Read by every program that enqueues or runs jobs.", settings.Settings),
    ("QStash: publishing", "Read by programs that enqueue through QStash.", PublishSettings),
    ("QStash: deliveries", "Read by the receiver.", VerificationSettings),
    ("Celery", "Read by producers and workers of the `celery` backend.", CelerySettings),
    ("RQ", "Read by producers and workers of the `rq` backend.", RQSettings),
    ("Inline", "Read by the `inline` backend.", InlineSettings),
    (
        "The ledger and claims",
        "Read by every program that enqueues or runs jobs, if QUEUEBRIDGE_LEDGER is set; see [Ledger](../ledger.md).",
        LedgerSettings,
    ),
    ("Stages of a migration", "Read by every program that enqueues; see [Stages](../stages.md).", RoutingSettings),
)
BACKENDS: tuple[type[Backend], ...] = (QStashBackend, CeleryBackend, RQBackend, InlineBackend)
# Capability -> the option as users write it, and its name in the errors and reasons of backends.
CAPABILITIES = {
    "delay": ("`countdown=`, `eta=`", "countdown/eta"),
    "priority": ("`priority=`", "priority"),
    "deduplication": ("`idempotency_key=`", "idempotency_key"),
    "publish_retry": ("`retry=`", "retry"),
}
EXIT_CODES = {
    ExitCode.DONE: "Done.",
    ExitCode.FAILED: "Failed: a job was refused, a process ended, a task cannot move, the demo lost or doubled a job.",
    ExitCode.USAGE: "The command line is wrong.",
    ExitCode.CONFIGURATION: "A setting is missing, wrong or contradictory, or an extra is not installed.",
    ExitCode.UNREACHABLE: "The backend cannot be reached, or did not say whether it took the job.",
}
OUTCOMES = {
    Status.DONE: "the task returned",
    Status.EXPIRED: "the job arrived after its `expires`; it was not run",
    Status.RETRIED: "the job failed, and Celery or RQ has published it anew, as another dispatch",
    Status.RETRY: "the task failed, and attempts are left",
    Status.FAILED: "the task failed for good: attempts used up, `PermanentFailure`, or `give_up_on`",
    Status.INVALID_ARGUMENTS: "the arguments do not fit the task's signature and type hints",
    Status.UNKNOWN_TASK: "no task is registered under this name (a newer deployment may know it)",
    Status.DUPLICATE: "the job had ended already, by another copy or delivery; it was not run",
    Status.SHADOWED: "a shadow copy: looked at and recorded, not run",
    Status.BUSY: "another execution is under way, and the delivery could not be parked",
    Status.DEFERRED: "the ledger cannot be reached, or could not be told how the job ended",
}
# Statuses whose answer tells QStash when to come again.
WITH_RETRY_AFTER = (Status.RETRY, Status.BUSY, Status.DEFERRED)


def generated() -> dict[str, str]:
    """Return the text of every file that is written, whole or in part, by its path below `docs`."""
    return {
        "reference/cli.md": cli_page(),
        "reference/settings.md": settings_page(),
        "reference/errors.md": errors_page(),
        "inventory.md": with_regions("inventory.md", {"rules": rule_table}),
        "backends.md": with_regions("backends.md", {"capabilities": capability_table}),
        "receiver.md": with_regions("receiver.md", {"replies": reply_table}),
        "stages.md": with_regions("stages.md", {"stages": stage_table}),
    }


def with_regions(page: str, regions: dict[str, Callable[[], str]]) -> str:
    """Return a page with the text between its `<!-- generated: name -->` and `<!-- end -->` marks made anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, make in regions.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"docs/{page} needs the marks of the region {name!r} once.")
        text = pattern.sub(lambda marks, make=make: f"{marks[1]}\n{make()}\n{marks[2]}", text)  # type: ignore[misc]
    return text


def cli_page() -> str:
    """Return the page about the commands, their options and exit statuses."""
    parts = [
        NOTE,
        "# Command line",
        (
            "`queuebridge COMMAND`, or `python -m queuebridge COMMAND`. It needs the extra `cli`; single commands need "
            "the extras of the backend that they touch. Results go to standard output, everything else to standard "
            "error."
        ),
        "Options of `queuebridge` itself, before the command:",
        table(("option", "meaning"), [option_row(option) for option in options_of(root)]),
        "## Exit status",
        table(("status", "meaning"), [(f"{code.value}", EXIT_CODES[code]) for code in ExitCode]),
    ]
    for path, command in commands_of(root):
        pieces = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path)))
        # Commands of a group stand one level below it.
        parts += [f"{'#' * (path.count(' ') + 2)} queuebridge {path}", f"```text\nqueuebridge {path} {pieces}\n```"]
        parts += [unwrapped(paragraph) for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]
        rows = [option_row(option) for option in options_of(command)]
        if rows:
            parts.append(table(("option", "meaning"), rows))
    return joined(parts)


def commands_of(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, groups before the commands in them (`stage`, then `stage show`)."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise LookupError(f"The command {name} is listed, but cannot be loaded.")
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix}{name} ")


def options_of(command: click.Command) -> list[click.Option]:
    """Return the options that a command declares itself."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option) and parameter.help]


def option_row(option: click.Option) -> tuple[str, str]:
    """Return one option and what it does."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    meaning = unwrapped(option.help or "")
    if isinstance(option.type, click.Choice):
        meaning += f" One of {', '.join(f'`{choice}`' for choice in option.type.choices)}."
    if option.show_default:
        meaning += f" Default: `{option.default}`."
    return names, meaning


def settings_page() -> str:
    """Return the page about every environment variable."""
    parts = [
        NOTE,
        "# Settings",
        (
            "Settings come from environment variables. A variable that is set to nothing counts as unset. A wrong "
            "value is refused at the start by an error that names the variable, and not the value, which may be a "
            "secret. A variable that begins with `QUEUEBRIDGE_` and is not known gives a warning with the nearest "
            "known name."
        ),
        (
            "Where several variables stand in one row, the first one that is set counts. Those marked *secret* are "
            "shown by no command, log or endpoint. Lists are separated by commas; switches are `true` or `false`."
        ),
    ]
    for title, who, model in SETTINGS:
        parts += [f"## {title}", who, table(("variable", "default", "meaning"), setting_rows(model))]
    parts += [
        "## Production or development",
        (
            "In production, development conveniences are refused: the published signing keys of the embedded server, "
            "unverified deliveries, and the choice of the embedded server where no backend is configured."
        ),
        (
            f"The first of {listed(settings._ENVIRONMENT_VARIABLES)} that is set decides: "
            f"{listed(settings._PRODUCTION, 'or')} mean production, any other value means development. If none is set, "
            "`RENDER` (which that platform sets) means production, and its absence means development."
        ),
    ]
    return joined(parts)


def setting_rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Yield variable, default and meaning of each field that is read from the environment."""
    meanings = attributes_of(model)
    for name, field in model.model_fields.items():
        variables = variables_of(field)
        if not variables:
            continue
        secret = " *secret*" if mentions(field.annotation, SecretStr) else ""
        limits = limits_of(field)
        shown = ", ".join(f"`{variable}`" for variable in variables)
        # What is None in Python is a variable that is not set.
        meaning = sentence(re.sub(r"\bNone\b", "unset", meanings[name]))
        yield shown + secret, default_of(field), f"{meaning} {limits}".rstrip()


def variables_of(field: FieldInfo) -> list[str]:
    """Return the environment variables that a field is read from, the most important first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias)] if alias else []


def default_of(field: FieldInfo) -> str:
    """Return the default in the form that an environment variable would have."""
    if field.default in (None, (), ""):
        return "-"
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    number = isinstance(field.default, float) and field.default.is_integer()
    return f"`{int(field.default) if number else field.default}`"


def limits_of(field: FieldInfo) -> str:
    """Return the bounds of a number in words."""
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"))
    found = [
        f"{word} {getattr(limit, name)}" for limit in field.metadata for name, word in words if hasattr(limit, name)
    ]
    return f"Must be {' and '.join(found)}." if found else ""


def mentions(annotation: Any, wanted: type) -> bool:
    """Return whether a type hint is, or contains, a type."""
    return annotation is wanted or any(mentions(part, wanted) for part in getattr(annotation, "__args__", ()))


def errors_page() -> str:
    """Return the page about every error class."""
    tree = (errors.__doc__ or "").split("\n\n", 1)[1].strip()
    parts = [
        NOTE,
        "# Errors",
        (
            "All errors derive from `QueueBridgeError` and live in `queuebridge.errors`; those that callers and tasks "
            "meet can be imported from `queuebridge` too. `retryable` says whether the same operation may succeed when "
            "it is repeated unchanged. What to do about those that an enqueue raises is in "
            "[Enqueueing](../enqueueing.md#when-it-fails)."
        ),
        f"```text\n{tree}\n```",
    ]
    classes: list[type[errors.QueueBridgeError]] = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.QueueBridgeError) and value.__module__ == errors.__name__
    ]
    classes.append(ProcessFailed)
    for error in classes:
        parts += [f"## {error.__name__}", *docstring_parts(error)]
        base = error.__bases__[0].__name__
        fields = listed(fields_of(error)) or "none of its own"
        parts.append(f"Derives from `{base}`. Retryable: {'yes' if error.retryable else 'no'}. Fields: {fields}.")
    return joined(parts)


def fields_of(error: type[Exception]) -> list[str]:
    """Return the public attributes that the constructor of an error sets."""
    if "__init__" not in vars(error):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(error.__init__)))
    targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    return [target.attr for target in targets if isinstance(target, ast.Attribute)]


def capability_table() -> str:
    """Return what each backend honours, and why it does not."""
    rows = []
    reasons = []
    for capability, (option, name) in CAPABILITIES.items():
        rows.append((option, *("yes" if getattr(one.capabilities, capability) else "no" for one in BACKENDS)))
        reasons += [
            f"- `{one.name}`, {option}: {one.capabilities.reasons.get(name, 'it has no such feature.')}"
            for one in BACKENDS
            if not getattr(one.capabilities, capability)
        ]
    heading = ("option", *(f"`{one.name}`" for one in BACKENDS))
    return "\n\n".join([table(heading, rows), "Why not:", "\n".join(reasons)]) + "\n"


def reply_table() -> str:
    """Return how the receiver answers."""
    rows = [
        (OUTCOMES[status], str(code), headers_of(status, code), consequence(code))
        for status, code in replies.STATUS_CODES.items()
    ]
    never = replies.NON_RETRYABLE
    rows += [
        ("another execution is under way, and the delivery was parked", "200", "-", "is done with this message"),
        ("the delivery came far before its time, and makes another hop", "200", "-", "is done with this message"),
        (
            "the request is not authentic",
            str(replies.NOT_AUTHENTIC),
            "-",
            consequence(replies.NOT_AUTHENTIC),
        ),
        ("the body is no envelope, or no JSON object", str(never), headers_of(None, never), consequence(never)),
        (
            "the envelope is of a newer version than this installation knows",
            str(replies.UNSUPPORTED),
            "`Retry-After`",
            consequence(replies.UNSUPPORTED),
        ),
    ]
    return table(("what happened", "status", "header", "QStash then"), rows) + "\n"


def rule_table() -> str:
    """Return the rules of the inventory."""
    parts = []
    for title, rules in (("About a task:", TASK_RULES), ("About the app as a whole:", APP_RULES)):
        rows = [(f"`{rule.name}`", rule.severity.value, rule.why, rule.do) for rule in rules]
        parts += [title, table(("rule", "severity", "why it matters", "what to do"), rows)]
    return "\n\n".join(parts) + "\n"


def stage_table() -> str:
    """Return what each stage does."""
    return stages.render_table() + "\n"


def headers_of(status: Status | None, code: int) -> str:
    """Return the headers that matter to QStash."""
    if code == replies.NON_RETRYABLE:
        return ", ".join(f"`{name}: {value}`" for name, value in replies.NON_RETRYABLE_HEADERS.items())
    return "`Retry-After`" if status in WITH_RETRY_AFTER else "-"


def consequence(code: int) -> str:
    """Return what QStash makes of a status code."""
    if 200 <= code < 300:
        return "is done"
    return "gives up at once" if code == replies.NON_RETRYABLE else "tries again, while retries are left"


def attributes_of(documented: type) -> dict[str, str]:
    """Return the meaning of each attribute from the section `Attributes` of a docstring."""
    lines = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        entry = re.fullmatch(r" {4}(\w[\w, ]*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif line.startswith(" " * 8):
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            break
    return found


def docstring_parts(documented: type) -> Iterator[str]:
    """Yield the paragraphs of a docstring, its sections as lists."""
    for paragraph in inspect.cleandoc(documented.__doc__ or "").split("\n\n"):
        title = paragraph.partition("\n")[0]
        if title in ("Args:", "Attributes:"):
            text = paragraph.replace("Args:", "Attributes:", 1)
            entries = attributes_of(type("_", (), {"__doc__": text}))
            yield "\n".join(f"- `{name}`: {meaning}" for name, meaning in entries.items())
        else:
            yield unwrapped(paragraph)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def unwrapped(text: str) -> str:
    """Return a paragraph in one line, without the marks of click."""
    return " ".join(text.replace("\b", "").split())


def sentence(text: str) -> str:
    """Return a text with a full stop at its end."""
    return text if text.endswith((".", ")")) else f"{text}."


def listed(names: Sequence[str], last: str = "and") -> str:
    """Return names as an enumeration."""
    shown = [f"`{name}`" for name in names]
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def joined(parts: Iterable[str]) -> str:
    """Return a page of these parts."""
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write or compare, and return the exit status."""
    differing = []
    for page, text in generated().items():
        path = DOCS / page
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            differing.append(page)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    for page in differing:
        print(f"docs/{page} {'differs from the code' if '--check' in arguments else 'written'}")
    return 1 if differing and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
