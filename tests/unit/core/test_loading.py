"""Adapters and the user's own objects are imported by name, with errors that say what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from queuebridge import ConfigurationError, TaskRegistry
from queuebridge.errors import MissingExtra
from queuebridge.loading import BACKEND_MODULES, OPTIONAL_LIBRARIES, import_attribute, import_optional, load_backend
from queuebridge.options import BACKEND_NAMES
from queuebridge.runner import Runner
from queuebridge.settings import Settings


def test_backends_that_options_may_address_are_those_that_exist() -> None:
    assert tuple(BACKEND_MODULES) == BACKEND_NAMES


def test_backend_is_made_from_its_module(registry: TaskRegistry) -> None:
    backend = load_backend("inline", settings=Settings(), environ={}, registry=registry, runner=Runner(registry))

    assert backend.name == "inline"


@pytest.mark.parametrize("library", sorted(OPTIONAL_LIBRARIES))
def test_missing_library_names_its_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{library}.part'", name=f"{library}.part")

    monkeypatch.setattr(importlib, "import_module", fail)

    with pytest.raises(MissingExtra) as caught:
        import_optional("queuebridge.backends.x", feature="The x backend")

    distribution, extra = OPTIONAL_LIBRARIES[library]
    assert str(caught.value) == (
        f"The x backend needs the library {distribution!r}, which is not installed. "
        f"Install it with: pip install 'qstash-queuebridge[{extra}]'"
    )


def test_adapter_that_needs_two_libraries_names_the_extra_that_installs_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr(importlib, "import_module", fail)

    with pytest.raises(MissingExtra, match=r"library 'redis'.*qstash-queuebridge\[rq\]"):
        import_optional("queuebridge.backends.rq.worker", feature="The rq worker")


def test_other_missing_module_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_adapter"):
        import_optional("queuebridge.no_such_adapter", feature="Nothing")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on the path, with a module `shop_for_loading`."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_for_loading.py").write_text("class Config:\n    app = 'the app'\n")
    (tmp_path / "broken_for_loading.py").write_text("import not_installed\n")
    yield
    for name in ("shop_for_loading", "broken_for_loading"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("shop")
def test_attribute_is_found_by_its_path() -> None:
    assert import_attribute("shop_for_loading:Config.app", variable="APP") == "the app"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_shop:app", "there is no module 'no_such_shop'"),
        ("shop_for_loading.inner:app", "there is no module 'shop_for_loading.inner'"),
        ("shop_for_loading:other", "shop_for_loading has no attribute 'other'"),
        ("shop_for_loading:Config.other", "shop_for_loading has no attribute 'Config.other'"),
    ],
)
def test_path_to_nowhere_names_the_variable(path: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        import_attribute(path, variable="APP")

    assert str(caught.value) == f"APP={path!r}: {problem}."


@pytest.mark.parametrize("path", ["", "shop", "shop:", ":app", "shop.py:app()", "redis://:hunter2@host/0", "a b:c"])
def test_path_of_another_form_is_not_shown(path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        import_attribute(path, variable="APP")

    assert str(caught.value) == "APP is not of the form package.module:attribute."


@pytest.mark.usefixtures("shop")
def test_error_inside_the_module_is_raised_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        import_attribute("broken_for_loading:app", variable="APP")
