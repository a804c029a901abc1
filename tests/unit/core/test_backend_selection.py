"""Which backend the environment selects, and what it says when it selects none."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from queuebridge import Bridge, ConfigurationError, TaskRegistry
from queuebridge.assembly import select_backend
from queuebridge.settings import Settings

TOKEN = {"QSTASH_TOKEN": "t"}
BROKER = {"CELERY_BROKER_URL": "redis://h"}
APP = {"QUEUEBRIDGE_CELERY_APP": "shop:app"}
REDIS = {"REDIS_URL": "redis://h"}
RQ_REDIS = {"RQ_REDIS_URL": "redis://h"}
PRODUCTION = {"QUEUEBRIDGE_ENV": "production"}


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        (TOKEN, "qstash"),
        (TOKEN | BROKER | REDIS, "qstash"),
        (TOKEN | PRODUCTION, "qstash"),
        (BROKER, "celery"),
        (APP, "celery"),
        (BROKER | REDIS, "celery"),
        (BROKER | PRODUCTION, "celery"),
        (REDIS, "rq"),
        (RQ_REDIS, "rq"),
        (REDIS | PRODUCTION, "rq"),
        ({}, "qstash"),
        ({"QUEUEBRIDGE_BACKEND": "inline"} | TOKEN, "inline"),
        ({"QUEUEBRIDGE_BACKEND": "rq"} | TOKEN | BROKER, "rq"),
        ({"QUEUEBRIDGE_BACKEND": "celery"} | TOKEN, "celery"),
        ({"QUEUEBRIDGE_BACKEND": "qstash"} | BROKER, "qstash"),
        ({"QUEUEBRIDGE_BACKEND": "inline"} | PRODUCTION, "inline"),
    ],
    ids=str,
)
def test_backend_that_the_environment_selects(environ: dict[str, str], backend: str) -> None:
    assert select_backend(Settings.from_environment(environ)) == backend


def test_embedded_server_is_chosen_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    select_backend(Settings.from_environment({}))

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "QSTASH_TOKEN, CELERY_BROKER_URL or REDIS_URL" in record.getMessage()


@pytest.mark.parametrize("environ", [TOKEN, BROKER, REDIS, {"QUEUEBRIDGE_BACKEND": "inline"}], ids=str)
def test_chosen_backend_is_no_reason_to_warn(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    select_backend(Settings.from_environment(environ))

    assert caplog.records == []


def test_nothing_configured_in_production_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"No backend is configured. Set QSTASH_TOKEN"):
        select_backend(Settings.from_environment(PRODUCTION))


def bridge(backend: Any = None, **environ: str) -> Bridge:
    return Bridge(backend, registry=TaskRegistry(), environ=environ)


def test_bridge_takes_the_backend_of_the_environment() -> None:
    assert bridge(QUEUEBRIDGE_BACKEND="inline").backend.name == "inline"


def test_bridge_takes_the_process_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_BACKEND", "inline")

    assert Bridge(registry=TaskRegistry()).backend.name == "inline"


def test_named_backend_comes_before_the_environment() -> None:
    assert bridge("inline", QSTASH_TOKEN="t").backend.name == "inline"


def test_given_backend_comes_before_the_environment(recorder: Any) -> None:
    assert bridge(recorder, QSTASH_TOKEN="t").backend is recorder


def test_given_backend_needs_no_environment_in_production(recorder: Any) -> None:
    assert bridge(recorder, **PRODUCTION).settings.production


def test_misspelt_backend_names_a_similar_one() -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean 'celery'\? There are: qstash, celery, rq, inline\."):
        bridge(QUEUEBRIDGE_BACKEND="cellery")


def test_address_in_place_of_a_backend_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_BACKEND does not name a backend") as caught:
        bridge(QUEUEBRIDGE_BACKEND="redis://:hunter2@host")

    assert "hunter2" not in str(caught.value)


def test_wrong_setting_is_found_when_the_bridge_is_made() -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_PREFIX"):
        bridge("inline", QUEUEBRIDGE_PREFIX="no-slash")


def test_tasks_of_the_environment_are_loaded_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "loaded_by_the_bridge.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    checked: list[bool] = []
    made = bridge("inline", QUEUEBRIDGE_TASKS="loaded_by_the_bridge")
    monkeypatch.setattr(made.registry, "check", lambda: checked.append(True))

    made.load_tasks()

    assert sys.modules.pop("loaded_by_the_bridge").LOADED
    assert checked == [True]
