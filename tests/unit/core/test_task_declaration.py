"""Declaring tasks: names, defaults, and what is refused where it is written."""

from __future__ import annotations

import asyncio
import functools
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from queuebridge import RetryPolicy, Task, TaskRegistry, task
from queuebridge.errors import TaskRegistrationError


def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    Nothing else.
    """
    return a + b


class Mailer:
    def send(self, to: str) -> None: ...

    @classmethod
    def send_all(cls) -> None: ...

    @staticmethod
    def check(to: str) -> str:
        return to

    def __call__(self, to: str) -> None: ...


def declare(registry: TaskRegistry, function: Any = add, **options: Any) -> Task[..., Any]:
    declared: Task[..., Any] = task(registry=registry, **options)(function)
    return declared


def test_task_can_be_called_like_the_function(registry: TaskRegistry) -> None:
    assert declare(registry)(1, b=5) == 6


def test_direct_call_validates_nothing(registry: TaskRegistry) -> None:
    assert declare(registry)("a", "b") == "ab"


def test_direct_call_of_an_async_task_gives_its_coroutine(registry: TaskRegistry) -> None:
    async def double(a: int) -> int:
        return a * 2

    assert asyncio.run(declare(registry, double, name="double")(4)) == 8


def test_task_keeps_name_docstring_and_function(registry: TaskRegistry) -> None:
    declared = declare(registry)

    assert (declared.__name__, declared.__doc__, declared.__wrapped__) == ("add", add.__doc__, add)  # type: ignore[attr-defined]


def test_default_name_is_module_and_function(registry: TaskRegistry) -> None:
    assert declare(registry).name == f"{__name__}.add"


def test_name_can_be_chosen(registry: TaskRegistry) -> None:
    assert declare(registry, name="sum").name == "sum"


def test_description_is_the_first_line_of_the_docstring(registry: TaskRegistry) -> None:
    assert declare(registry).description == "Add two numbers."


def test_description_can_be_chosen_empty(registry: TaskRegistry) -> None:
    assert declare(registry, description="").description == ""


def test_defaults_of_a_task(registry: TaskRegistry) -> None:
    declared = declare(registry)

    assert declared.retry == RetryPolicy(retries=3, base=10, cap=3600, jitter=True)
    assert (declared.queue, declared.timeout, declared.priority) == (None, None, None)
    assert (declared.aliases, declared.give_up_on, declared.metadata, declared.options) == ((), (), {}, {})


def test_settings_of_a_task(registry: TaskRegistry) -> None:
    declared = declare(
        registry,
        queue="mail",
        retries=7,
        backoff=2,
        backoff_max=60,
        jitter=False,
        timeout=30,
        description="Adds.",
        aliases=["plus"],
        give_up_on=[ValueError],
        priority=3,
        metadata={"since": date(2024, 1, 1)},
        options={"qstash": {"label": "sum"}},
    )

    assert declared.retry == RetryPolicy(retries=7, base=2, cap=60, jitter=False)
    assert (declared.queue, declared.timeout, declared.description) == ("mail", 30.0, "Adds.")
    assert (declared.aliases, declared.give_up_on, declared.priority) == (("plus",), (ValueError,), 3)
    assert declared.metadata == {"since": "2024-01-01"}
    assert declared.options == {"qstash": {"label": "sum"}}


@pytest.mark.parametrize("timeout", [0.001, 1, 365 * 86_400])
def test_timeout_may_last_from_a_moment_to_a_year(registry: TaskRegistry, timeout: float) -> None:
    assert declare(registry, timeout=timeout).timeout == timeout


def test_delays_can_be_listed(registry: TaskRegistry) -> None:
    assert declare(registry, backoff=[1, 5.5]).retry == RetryPolicy(retries=3, delays=(1, 5.5))


def test_attributes_of_the_function_do_not_replace_those_of_the_task(registry: TaskRegistry) -> None:
    def function() -> None: ...

    function.name = "wrong"  # type: ignore[attr-defined]
    function.delay = None  # type: ignore[attr-defined]
    declared = declare(registry, function, name="right")

    assert declared.name == "right"
    assert callable(declared.delay)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": ""}, "name='' is not a name"),
        ({"name": 5}, "name=5 is not a name"),
        ({"retries": -1}, "impossible retry setting 'retries'"),
        ({"retries": 1001}, "impossible retry setting 'retries'"),
        ({"retries": 1.5}, "impossible retry setting 'retries'"),
        ({"retries": True}, "impossible retry setting 'retries'"),
        ({"retries": "3"}, "impossible retry setting 'retries'"),
        ({"retries": None}, "impossible retry setting 'retries'"),
        ({"backoff": -1}, "impossible retry setting 'backoff'"),
        ({"backoff": math.nan}, "impossible retry setting 'backoff'"),
        ({"backoff": 86_401}, "impossible retry setting 'backoff'"),
        ({"backoff": True}, "impossible retry setting 'backoff'"),
        ({"backoff": [1, -1]}, "impossible retry setting 'backoff'"),
        ({"backoff": ["1"]}, "impossible retry setting 'backoff'"),
        ({"backoff": []}, "backoff is empty"),
        ({"backoff": "123"}, "neither seconds nor a list of seconds"),
        ({"backoff": None}, "neither seconds nor a list of seconds"),
        ({"backoff_max": -1}, "impossible retry setting 'backoff_max'"),
        ({"jitter": "yes"}, "impossible retry setting 'jitter'"),
        ({"timeout": 0}, "timeout=0 is not a number of seconds"),
        ({"timeout": -1}, "timeout=-1 is not a number of seconds"),
        ({"timeout": math.nan}, "timeout=nan is not a number of seconds"),
        ({"timeout": math.inf}, "timeout=inf is not a number of seconds"),
        ({"timeout": 1e12}, "is not a number of seconds above 0, up to a year"),
        ({"timeout": True}, "timeout=True is not a number of seconds"),
        ({"timeout": "5"}, "timeout='5' is not a number of seconds"),
        ({"aliases": "old"}, "aliases='old' is not a list of names"),
        ({"aliases": [""]}, "is not a list of names"),
        ({"aliases": [5]}, "is not a list of names"),
        ({"give_up_on": ValueError}, "give_up_on is not a list of exception classes"),
        ({"give_up_on": [ValueError()]}, "give_up_on is not a list of exception classes"),
        ({"give_up_on": [KeyboardInterrupt]}, "give_up_on is not a list of exception classes"),
        ({"queue": ""}, "Invalid option queue"),
        ({"queue": 5}, "Invalid option queue"),
        ({"priority": "high"}, "Invalid option priority"),
        ({"metadata": {"a": object()}}, "Invalid option metadata"),
        ({"metadata": {1: "a"}}, "Invalid option metadata"),
        ({"options": {"sqs": {}}}, "Invalid option options: 'sqs' is no backend"),
        ({"options": {"qstash": 5}}, "Invalid option options"),
    ],
    ids=str,
)
def test_impossible_declaration_is_refused(registry: TaskRegistry, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskRegistrationError) as caught:
        declare(registry, **options)

    assert problem in str(caught.value)
    assert len(registry) == 0


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (Mailer, "type is not a plain function"),
        (Mailer(), "Mailer is not a plain function"),
        (Mailer().send, "method is not a plain function"),
        (Mailer.send_all, "method is not a plain function"),
        (Mailer.send, "it is a method, and a job has no 'self'"),
        (staticmethod(add), "staticmethod is not a plain function"),
        (classmethod(add), "classmethod is not a plain function"),
        (functools.partial(add, 1), "partial is not a plain function"),
        (functools.lru_cache(add), "_lru_cache_wrapper is not a plain function"),
        (len, "builtin_function_or_method is not a plain function"),
        (generator, "it is a generator function"),
        (async_generator, "it is a generator function"),
        (5, "int is not a plain function"),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"name": "chosen"}], ids=["unnamed", "named"])
def test_what_cannot_run_as_a_job_is_refused(
    registry: TaskRegistry, function: Any, problem: str, options: dict[str, str]
) -> None:
    with pytest.raises(TaskRegistrationError) as caught:
        declare(registry, function, **options)

    assert problem in str(caught.value)


def test_method_is_refused_in_its_class(registry: TaskRegistry) -> None:
    with pytest.raises(TaskRegistrationError, match="it is a method"):

        class _Service:
            @task(registry=registry, name="method")
            def run(self, a: int) -> None: ...


def test_static_method_outside_the_decorator_is_a_task(registry: TaskRegistry) -> None:
    class Service:
        @staticmethod
        @task(registry=registry, name="static")
        def run(a: int) -> int:
            return a + 1

    assert Service.run(1) == 2
    assert Service().run(2) == 3


def test_function_may_have_a_parameter_called_self(registry: TaskRegistry) -> None:
    def function(self: int) -> int:
        return self

    assert declare(registry, function, name="f")(self=5) == 5


def test_task_is_not_declared_twice(registry: TaskRegistry) -> None:
    with pytest.raises(TaskRegistrationError, match="is the task 'one' already"):
        declare(registry, declare(registry, name="one"), name="two")


def test_function_inside_a_function_needs_a_name(registry: TaskRegistry) -> None:
    def inner() -> None: ...

    with pytest.raises(TaskRegistrationError, match=r"declared inside a function.*give it a name="):
        declare(registry, inner)


def test_lambda_needs_a_name(registry: TaskRegistry) -> None:
    assert declare(registry, lambda a: a, name="same")(3) == 3


def test_async_function_is_known_as_such(registry: TaskRegistry) -> None:
    async def function() -> None: ...

    assert declare(registry, function, name="a").is_async
    assert not declare(registry).is_async


def test_representation_is_the_name(registry: TaskRegistry) -> None:
    assert repr(declare(registry, name="sum")) == "<Task sum>"


def test_decorator_works_without_parentheses(tmp_path: Path) -> None:
    code = """
from queuebridge import task
from queuebridge.registry import default_registry

@task
def hello(name: str) -> str:
    return f"hello {name}"

print(hello("you"), default_registry.get(hello.name) is hello)
"""

    assert run_python(tmp_path, "app.py", code, ["app.py"]) == "hello you True"


NAMED = """
from queuebridge import task

@task
def work() -> None: ...

print(work.name)
"""


def test_name_in_a_started_file_is_that_of_its_module(tmp_path: Path) -> None:
    assert run_python(tmp_path, "jobs.py", NAMED, ["jobs.py"]) == "jobs.work"


def test_name_in_a_module_started_by_name_is_its_full_name(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()

    assert run_python(tmp_path, "shop/jobs.py", NAMED, ["-m", "shop.jobs"]) == "shop.jobs.work"


def test_name_in_an_interactive_session_is_main(tmp_path: Path) -> None:
    assert run_python(tmp_path, "unused.py", "", ["-c", NAMED]) == "__main__.work"


def test_name_in_a_spawned_process_is_that_of_the_started_file(tmp_path: Path) -> None:
    code = """
import multiprocessing
from queuebridge import task

@task
def work() -> None: ...

def show() -> None:
    print(work.name)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=show)
    process.start()
    process.join()
"""

    assert run_python(tmp_path, "jobs.py", code, ["jobs.py"]) == "jobs.work"


def test_declaring_needs_no_bridge_and_no_settings(tmp_path: Path) -> None:
    code = """
import os
os.environ["QUEUEBRIDGE_BACKEND"] = "nonsense"
from queuebridge import bridge, task

@task(queue="mail")
def work() -> None: ...

print(bridge._default)
"""

    assert run_python(tmp_path, "app.py", code, ["app.py"]) == "None"


def run_python(folder: Path, file: str, code: str, arguments: list[str]) -> str:
    (folder / file).write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=50, check=True
    )
    return done.stdout.strip()


def test_wrapped_function_keeps_its_own_name(registry: TaskRegistry) -> None:
    def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    assert declare(registry, quiet(add)).name == f"{__name__}.add"
