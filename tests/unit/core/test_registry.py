"""Which tasks there are, under which names."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from queuebridge import ConfigurationError, Task, TaskRegistry, UnknownTask, task
from queuebridge.errors import TaskRegistrationError
from queuebridge.registry import default_registry, discover


def send() -> None: ...


def fetch() -> None: ...


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def declare(registry: TaskRegistry, function: Callable[..., Any], name: str, **options: Any) -> Task[..., Any]:
    return task(name=name, registry=registry, **options)(function)


def test_task_is_found_by_its_name(registry: TaskRegistry) -> None:
    declared = declare(registry, send, "mail.send")

    assert registry.get("mail.send") is declared


def test_task_is_found_by_its_former_names(registry: TaskRegistry) -> None:
    declared = declare(registry, send, "mail.send", aliases=["mail.post", "post"])

    assert registry.get("post") is registry.get("mail.post") is declared


def test_names_and_aliases_are_contained(registry: TaskRegistry) -> None:
    declare(registry, send, "mail.send", aliases=["post"])

    assert [name in registry for name in ("mail.send", "post", "other")] == [True, True, False]


def test_tasks_are_listed_once_and_sorted(registry: TaskRegistry) -> None:
    declare(registry, send, "b", aliases=["c"])
    declare(registry, fetch, "a")

    assert [found.name for found in registry] == ["a", "b"]
    assert len(registry) == 2


def test_unknown_task_names_a_similar_one(registry: TaskRegistry) -> None:
    declare(registry, send, "mail.send")
    declare(registry, fetch, "files.fetch")

    with pytest.raises(UnknownTask) as caught:
        registry.get("mail.snd")

    assert "Did you mean 'mail.send'? Registered: files.fetch, mail.send." in str(caught.value)
    assert "QUEUEBRIDGE_TASKS" in str(caught.value)


def test_unknown_task_names_a_similar_alias(registry: TaskRegistry) -> None:
    declare(registry, send, "mail.send", aliases=["post_letter"])

    with pytest.raises(UnknownTask, match="Did you mean 'post_letter'"):
        registry.get("post_leter")


def test_unknown_task_without_any_task_says_so(registry: TaskRegistry) -> None:
    with pytest.raises(UnknownTask, match="No task is registered at all"):
        registry.get("x")


def test_unknown_task_may_be_known_to_a_newer_deployment() -> None:
    assert UnknownTask.retryable


def test_long_list_of_tasks_is_cut(registry: TaskRegistry) -> None:
    for number in range(12):
        declare(registry, send, f"task{number:02}")

    with pytest.raises(UnknownTask, match=r"task09, \.\.\."):
        registry.get("x")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": "same"}, {"name": "same"}),
        ({"name": "same"}, {"name": "b", "aliases": ["same"]}),
        ({"name": "a", "aliases": ["same"]}, {"name": "same"}),
        ({"name": "a", "aliases": ["same"]}, {"name": "b", "aliases": ["same"]}),
    ],
    ids=str,
)
def test_two_functions_cannot_have_one_name(
    registry: TaskRegistry, first: dict[str, Any], second: dict[str, Any]
) -> None:
    declare(registry, send, **first)

    with pytest.raises(TaskRegistrationError, match=r"'same': send \(.*test_registry.py:\d+\) and fetch \("):
        declare(registry, fetch, **second)


def test_refused_task_leaves_nothing_behind(registry: TaskRegistry) -> None:
    declare(registry, send, "same")

    with pytest.raises(TaskRegistrationError):
        declare(registry, fetch, "other", aliases=["same"])

    assert "other" not in registry


def test_two_functions_under_one_decorator_cannot_have_one_name(registry: TaskRegistry, tmp_path: Path) -> None:
    def load(file: str) -> Callable[..., Any]:
        names: dict[str, Any] = {}
        source = compile("def work(): ...", str(tmp_path / file), "exec")
        exec(source, names)
        return quiet(names["work"])

    declare(registry, load("a.py"), "same")

    with pytest.raises(TaskRegistrationError, match=r"work \(.*a.py:1\) and work \(.*b.py:1\)"):
        declare(registry, load("b.py"), "same")


def test_function_of_a_module_that_is_loaded_twice_is_no_clash(registry: TaskRegistry) -> None:
    source = compile("def work(): ...", "/app/jobs.py", "exec")
    first: dict[str, Any] = {"__name__": "__main__"}
    second: dict[str, Any] = {"__name__": "jobs"}
    exec(source, first)
    exec(source, second)

    declare(registry, first["work"], "jobs.work")
    later = declare(registry, second["work"], "jobs.work")

    assert registry.get("jobs.work") is later


def test_check_finds_hints_without_a_json_form(registry: TaskRegistry) -> None:
    def bad(hook: Callable[[], None]) -> None: ...

    declare(registry, bad, "bad")

    with pytest.raises(TaskRegistrationError, match="'bad'"):
        registry.check()


def test_tasks_can_be_added_from_several_threads(registry: TaskRegistry) -> None:
    def add_many(thread: int) -> None:
        for number in range(50):
            declare(registry, send, f"{thread}-{number}")
            assert registry.get(f"{thread}-{number}") in list(registry)

    threads = [threading.Thread(target=add_many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(registry) == 200


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, whose modules are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    known = dict(default_registry._tasks)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    default_registry._tasks.clear()
    default_registry._tasks.update(known)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, code in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")


TASK = "from queuebridge import task\n@task\ndef work() -> None: ...\n"


def test_named_modules_are_imported(package: Path) -> None:
    write(package, {"shop_one.py": TASK, "shop_two.py": TASK})

    discover(["shop_one", "shop_two"])

    assert "shop_one.work" in default_registry
    assert "shop_two.work" in default_registry


def test_only_the_named_module_of_a_package_is_imported(package: Path) -> None:
    write(package, {"shop/__init__.py": "", "shop/jobs.py": TASK, "shop/other.py": TASK})

    discover(["shop.jobs"])

    assert "shop.jobs.work" in default_registry
    assert "shop.other" not in sys.modules


def test_star_imports_all_modules_below_a_package(package: Path) -> None:
    write(package, {"shop/__init__.py": TASK, "shop/jobs.py": TASK, "shop/a/__init__.py": "", "shop/a/deep.py": TASK})

    discover(["shop.*"])

    assert [name in default_registry for name in ("shop.work", "shop.jobs.work", "shop.a.deep.work")] == [True] * 3


def test_star_does_not_start_the_program_of_a_package(package: Path) -> None:
    write(package, {"shop/__init__.py": "", "shop/__main__.py": "raise SystemExit('started')", "shop/jobs.py": TASK})

    discover(["shop.*"])

    assert "shop.jobs.work" in default_registry


@pytest.mark.parametrize("name", ["nowhere_at_all", "nowhere.at_all", "shop.missing", "shop.jobs.missing", "missing.*"])
def test_missing_module_is_a_wrong_setting(package: Path, name: str) -> None:
    write(package, {"shop/__init__.py": "", "shop/jobs.py": ""})

    with pytest.raises(ConfigurationError, match=f"module {name.removesuffix('.*')!r}, which cannot be found"):
        discover([name])


def test_star_on_a_single_module_is_a_wrong_setting(package: Path) -> None:
    write(package, {"single.py": ""})

    with pytest.raises(ConfigurationError, match="'single' is a module without others"):
        discover(["single.*"])


@pytest.mark.parametrize(
    "files",
    [
        {"shop/__init__.py": "", "shop/jobs.py": "import not_installed"},
        {"shop/__init__.py": "import not_installed", "shop/jobs.py": ""},
        {"shop/__init__.py": "", "shop/jobs.py": "import shop.not_installed"},
    ],
    ids=str,
)
def test_module_whose_own_import_fails_raises_that_error(package: Path, files: dict[str, str]) -> None:
    write(package, files)

    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        discover(["shop.jobs"])


def test_error_inside_a_module_is_raised_as_it_is(package: Path) -> None:
    write(package, {"shop.py": "1 / 0"})

    with pytest.raises(ZeroDivisionError):
        discover(["shop"])


def test_error_inside_a_subpackage_is_not_swallowed(package: Path) -> None:
    write(package, {"shop/__init__.py": "", "shop/sub/__init__.py": "import not_installed"})

    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        discover(["shop.*"])


@pytest.mark.parametrize("name", ["", ".", "shop/jobs.py", "redis://:hunter2@host", "shop jobs", "*", ".jobs"])
def test_what_is_no_module_name_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_TASKS must be names of modules") as caught:
        discover([name])

    assert "hunter2" not in str(caught.value)


def test_module_that_runs_already_is_taken_as_found() -> None:
    discover(["__main__"])

    assert "__main__" in sys.modules
