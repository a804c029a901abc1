"""The examples on the pages and in the README: run, compared with the output shown, checked against the commands."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import pytest
from processes import ChildProcess, Spawner, child_environment, wait_until
from source import ROOT, setup_cfg

from queuebridge.cli.app import root
from queuebridge.registry import default_registry

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# Run by a test of its own, with real processes.
QUICKSTART = ROOT / "docs" / "quickstart.md"

_PIECE = re.compile(
    r"^<!-- (?P<mark>run|file): ?(?P<name>\S+)? ?-->\n"
    r"|^<!-- run\n(?P<hidden>.*?)^-->\n"
    r"|^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or a hidden `<!-- run ... -->` comment, which counts as Python.

    Attributes:
        language: What stands after the opening fence.
        code: What is between the fences.
        line: The line of the page on which the code begins.
        file: The name under which the reader is told to save it, from `<!-- file: name -->`.
        output: What the page shows as its output: the `text` block after it, with nothing in between.
    """

    language: str
    code: str
    line: int
    file: str | None = None
    output: str | None = None


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page in order."""
    found: list[Block] = []
    file: str | None = None
    end = 0
    for piece in _PIECE.finditer(text):
        adjacent = not text[end : piece.start()].strip()
        end = piece.end()
        if piece["mark"]:
            file = piece["name"]
            continue
        group = "hidden" if piece["hidden"] is not None else "code"
        line = text.count("\n", 0, piece.start(group)) + 1
        language = piece["language"] or "python"
        if language == "text" and adjacent and found and found[-1].language == "python":
            last = found[-1]
            found[-1] = Block(last.language, last.code, last.line, last.file, piece["code"])
        else:
            found.append(Block(language, piece[group], line, file))
        file = None
    return found


def wildcard(shown: str) -> re.Pattern[str]:
    """Return a pattern for output as a page shows it, in which `...` stands for anything."""
    return re.compile(".*".join(re.escape(part) for part in shown.rstrip().split("...")), re.DOTALL)


def matches(shown: str, given: str) -> bool:
    """Say whether a page shows the output that was given."""
    return wildcard(shown).fullmatch(given.rstrip()) is not None


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def of_language(*languages: str) -> list[object]:
    return [
        pytest.param(page, block, id=f"{short(page)}:{block.line}")
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.language in languages
    ]


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """The names of a page: a module `tasks` in an empty folder, without tasks of others, on the inline backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")
    for table in ("_tasks", "_aliases"):
        monkeypatch.setattr(default_registry, table, {})
    # A page may set variables; these are put back.
    for line in PAGE_VARIABLES:
        monkeypatch.setenv(line, "")
    spec = importlib.util.spec_from_loader("tasks", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look up the module of a class.
    monkeypatch.setitem(sys.modules, "tasks", module)
    return vars(module)


# Variables that hidden parts of pages set.
PAGE_VARIABLES = (
    "QUEUEBRIDGE_RQ_MODULES",
    "QUEUEBRIDGE_TASKS",
    "QUEUEBRIDGE_PUBLIC_URL",
    "QSTASH_TOKEN",
    "QSTASH_CURRENT_SIGNING_KEY",
    "QSTASH_NEXT_SIGNING_KEY",
)


def run(block: Block, page: Path, namespace: dict[str, object]) -> str:
    """Run a Python block and return what it printed."""
    # Errors name the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(code, namespace)
        except Exception:  # noqa: BLE001 - whatever an example raises is its failure
            pytest.fail(f"{short(page)}, block at line {block.line}:\n{traceback.format_exc()}", pytrace=False)
    return printed.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if page != QUICKSTART], ids=short)
def test_python_examples_run_and_print_what_is_shown(page: Path, namespace: dict[str, object]) -> None:
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.file is not None:
            Path(block.file).write_text(block.code, encoding="utf-8")
        if block.language != "python":
            continue
        printed = run(block, page, namespace)
        if block.output is not None:
            assert matches(block.output, printed), f"{short(page)}, block at line {block.line} printed:\n{printed}"


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command in a `sh` block, and of those after `$` in a `console` block."""
    script = block.code
    if block.language == "console":
        script = "\n".join(line.removeprefix("$ ") for line in script.splitlines() if line.startswith("$ "))
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        # As `shlex.split` does; '<' and '>' stand for placeholders.
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", "||", "|", ";"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def problem_with(command: list[str]) -> str | None:
    """Return what is wrong with a `queuebridge` command; None if nothing is, or if it is another command."""
    if Path(command[0]).name != "queuebridge":
        return None
    leading = list(itertools.takewhile(lambda word: word.startswith("-"), command[1:]))
    known = {option for parameter in root.params for option in parameter.opts}
    unknown = [word for word in leading if word not in known]
    if unknown:
        return f"The root command has no option {unknown[0]}."
    name, *rest = command[1 + len(leading) :]
    context = click.Context(root, info_name="queuebridge")
    found = root.get_command(context, name)
    if found is None:
        return f"There is no command {name}."
    try:
        found.make_context(name, rest, parent=context).close()
    except click.ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize(("page", "block"), of_language("sh", "console"))
def test_commands_exist_with_their_options(page: Path, block: Block) -> None:
    problems = [(command, problem_with(command)) for command in commands_of(block)]

    assert [(shlex.join(command), problem) for command, problem in problems if problem] == []


@pytest.mark.parametrize(("page", "block"), of_language("sh"))
def test_extras_to_install_exist(page: Path, block: Block) -> None:
    known = set(setup_cfg()["options.extras_require"])
    named = {
        extra
        for command in commands_of(block)
        if "install" in command
        for word in command
        for extra in re.findall(r"\[(.*)\]", word)
    }

    assert {extra for extras in named for extra in extras.split(",")} <= known


@pytest.mark.parametrize(
    "command",
    [
        "queuebridge frobnicate",
        "queuebridge --verbos dev",
        "queuebridge dev --prot 3",
        "bin/queuebridge demo --limit none",
        "queuebridge enqueue",
    ],
)
def test_wrong_command_is_noticed(command: str) -> None:
    (words,) = commands_of(Block("sh", command, 1))

    assert problem_with(words)


def test_wrong_output_and_failing_block_are_noticed(namespace: dict[str, object]) -> None:
    text = "<!-- run\nx = 1\n-->\n```python\nprint(x)\n```\n\n```text\n2\n```\n\n```python\n1 / 0\n```\n"
    hidden, shown, failing = blocks_of(text)

    run(hidden, QUICKSTART, namespace)
    printed = run(shown, QUICKSTART, namespace)

    assert shown.output is not None
    assert printed == "1\n"
    assert not matches(shown.output, printed)
    with pytest.raises(pytest.fail.Exception, match="line 13"):
        run(failing, QUICKSTART, namespace)


def test_every_block_has_a_known_language() -> None:
    # Another one would be neither run nor checked. A file in TOML is saved, for the examples after it.
    found = {
        (short(page), language)
        for page in PAGES
        for language in re.findall(r"^```(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert {language for _, language in found} <= {"python", "sh", "console", "text", "toml"}


def assignments(export: str) -> dict[str, str]:
    """Return the variables that an `export` command sets."""
    return dict(re.findall(r"(\w+)=(.*)", "\n".join(shlex.split(export)[1:])))


def type_in(command: str, folder: Path, variables: Mapping[str, str]) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=child_environment(variables),
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def prints(command: str, shown: str, folder: Path, variables: Mapping[str, str]) -> bool:
    """Say whether a command prints what a page shows."""
    return matches(shown, type_in(command, folder, variables))


@pytest.mark.timeout(120)
def test_quickstart_works_as_printed(spawn: Spawner, tmp_path: Path, free_port: Callable[[], int]) -> None:
    ports = {"8000": str(free_port()), "8080": str(free_port())}
    text = re.sub("8000|8080", lambda port: ports[port[0]], QUICKSTART.read_text(encoding="utf-8"))
    blocks = blocks_of(text)
    scripts = Path(sys.executable).parent
    variables = {"PATH": f"{scripts}:/usr/bin:/bin", "NO_COLOR": "1"}
    # The first terminal, which goes on running.
    running: list[ChildProcess] = []

    for block in blocks:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.code)
    for command, shown in typed_commands(blocks):
        if command.startswith("export "):
            variables.update(assignments(command))
        elif command == "queuebridge dev":
            options = ["--port", ports["8000"], "--server-port", ports["8080"]]
            dev = spawn([scripts / "queuebridge", "dev", *options], env=variables, cwd=tmp_path)
            dev.wait_for_line("Ctrl-C stops everything", timeout=40)
            assert missing_lines(shown, dev.output) == []
            running.append(dev)
            # What the reader is told to paste into the second terminal.
            for export in re.findall("^export .*$", dev.output, re.MULTILINE):
                variables.update(assignments(export))
        elif command.startswith("cat "):
            # The effects come when they come; everything else must be right at once.
            wait_until(partial(prints, command, shown, tmp_path, variables), what=f"$ {command}\n{shown}")
        else:
            given = type_in(command, tmp_path, variables)
            assert matches(shown, given), f"$ {command}\n{given}\nis not\n{shown}"
    (dev,) = running
    log = "".join(block.code for block in blocks if block.language == "text")
    assert log
    assert missing_lines(log, dev.output) == []
    dev.press_ctrl_c()
    assert dev.wait() == 0


def typed_commands(blocks: list[Block]) -> list[tuple[str, str]]:
    """Return the commands of all `console` blocks, each with the output shown."""
    return [
        (command, shown)
        for block in blocks
        if block.language == "console"
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.code, re.MULTILINE)
    ]


def missing_lines(shown: str, given: str) -> list[str]:
    """Return the lines shown that a process has not written."""
    written = given.splitlines()
    return [line for line in shown.splitlines() if line and not any(matches(line, other) for other in written)]
