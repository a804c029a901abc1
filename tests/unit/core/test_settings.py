"""Settings from the environment: read once, named when they are wrong, never shown."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel

import queuebridge.backends
from queuebridge import ConfigurationError
from queuebridge.settings import ADAPTER_VARIABLES, PUBLIC_URL_VARIABLES, Settings, read_settings

SECRET = "hunter2-TOP-SECRET"


def read(**environ: str) -> Settings:
    return Settings.from_environment(environ)


def settings_models() -> list[type[BaseModel]]:
    """Return the settings models of all adapters, and of the migration."""
    names = ["queuebridge.backends.inline", "queuebridge.ledger.settings", "queuebridge.routing.settings"]
    names += [
        module.name
        for module in pkgutil.walk_packages(queuebridge.backends.__path__, "queuebridge.backends.")
        if module.name.endswith(".settings")
    ]
    return [
        value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == name
    ]


def variables(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for field in model.model_fields.values():
        alias = field.validation_alias
        found |= {str(choice) for choice in alias.choices} if isinstance(alias, AliasChoices) else {str(alias)}
    return found


def test_nothing_set_gives_the_defaults() -> None:
    assert read() == Settings(
        QUEUEBRIDGE_BACKEND=None,
        QUEUEBRIDGE_TASKS=(),
        production=False,
        QUEUEBRIDGE_PUBLIC_URL=(),
        QUEUEBRIDGE_PREFIX="/queuebridge",
        QUEUEBRIDGE_ALIASES=(),
        QUEUEBRIDGE_DEFAULT_QUEUE="default",
    )


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUEBRIDGE_DEFAULT_QUEUE", "mail")

    assert Settings.from_environment().default_queue == "mail"


def test_every_setting_is_read() -> None:
    settings = read(
        QUEUEBRIDGE_BACKEND="rq",
        QUEUEBRIDGE_TASKS="shop.tasks, mail.*",
        QUEUEBRIDGE_PUBLIC_URL="https://a.example.com/,https://b.example.com/app/",
        QUEUEBRIDGE_PREFIX="/jobs",
        QUEUEBRIDGE_ALIASES="/api/v1/webhooks/qstash, /hooks",
        QUEUEBRIDGE_DEFAULT_QUEUE="mail",
    )

    assert (settings.backend, settings.tasks, settings.default_queue) == ("rq", ("shop.tasks", "mail.*"), "mail")
    assert settings.public_urls == ("https://a.example.com", "https://b.example.com/app")
    assert (settings.prefix, settings.aliases) == ("/jobs", ("/api/v1/webhooks/qstash", "/hooks"))


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_empty_variable_counts_as_unset(value: str) -> None:
    assert read(QUEUEBRIDGE_PREFIX=value, QUEUEBRIDGE_BACKEND=value, QSTASH_TOKEN=value) == read()


def test_name_of_a_backend_is_read_in_any_case() -> None:
    assert read(QUEUEBRIDGE_BACKEND=" QStash ").backend == "qstash"


@pytest.mark.parametrize(
    ("environ", "fact"),
    [
        ({"QSTASH_TOKEN": "t"}, "qstash_token_present"),
        ({"CELERY_BROKER_URL": "redis://h"}, "celery_broker_present"),
        ({"QUEUEBRIDGE_CELERY_APP": "shop:app"}, "celery_broker_present"),
        ({"REDIS_URL": "redis://h"}, "redis_present"),
        ({"RQ_REDIS_URL": "redis://h"}, "redis_present"),
    ],
)
def test_presence_of_each_backend_is_noticed(environ: dict[str, str], fact: str) -> None:
    facts = ("qstash_token_present", "celery_broker_present", "redis_present")

    assert [name for name in facts if getattr(read(**environ), name)] == [fact]


@pytest.mark.parametrize(
    ("environ", "production"),
    [
        ({}, False),
        ({"QUEUEBRIDGE_ENV": "production"}, True),
        ({"QUEUEBRIDGE_ENV": " Production "}, True),
        ({"APP_ENV": "prod"}, True),
        ({"ENVIRONMENT": "live"}, True),
        ({"ENV": "production"}, True),
        ({"FLASK_ENV": "production"}, True),
        ({"VERCEL_ENV": "production"}, True),
        ({"VERCEL_ENV": "preview"}, False),
        ({"APP_ENV": "staging"}, False),
        ({"QUEUEBRIDGE_ENV": "development", "APP_ENV": "production"}, False),
        ({"QUEUEBRIDGE_ENV": "", "APP_ENV": "production"}, True),
        ({"RENDER": "true"}, True),
        ({"RENDER": "true", "APP_ENV": "development"}, False),
    ],
    ids=str,
)
def test_production_is_told_from_development(environ: dict[str, str], production: bool) -> None:
    assert read(**environ).production is production


@pytest.mark.parametrize("first", range(len(PUBLIC_URL_VARIABLES)))
def test_public_url_is_taken_from_the_first_variable_that_is_set(first: int) -> None:
    environ = {name: f"https://{name.lower().replace('_', '-')}" for name in PUBLIC_URL_VARIABLES[first:]}

    assert read(**environ).public_urls == (f"https://{PUBLIC_URL_VARIABLES[first].lower().replace('_', '-')}",)


def test_public_url_without_a_scheme_is_https() -> None:
    assert read(VERCEL_URL="shop-git-main.vercel.app").public_urls == ("https://shop-git-main.vercel.app",)


@pytest.mark.parametrize("variable", PUBLIC_URL_VARIABLES)
@pytest.mark.parametrize(
    "value",
    [
        f"ftp://{SECRET}.example.com",
        f"https://a.example.com/?token={SECRET}",
        f"https://a.example.com/#{SECRET}",
        f"https://a.example.com/{SECRET} x",
        f"https:///{SECRET}",
        f"https://good.example.com, ftp://{SECRET}",
        f"/{SECRET}",
    ],
)
def test_impossible_public_url_names_its_variable_and_not_its_value(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{variable: value})

    assert str(caught.value).startswith(f"{variable}: it is not an http(s) address without query.")
    assert SECRET not in str(caught.value)


def test_error_in_a_foreign_variable_says_what_to_set_instead() -> None:
    with pytest.raises(ConfigurationError, match="set QUEUEBRIDGE_PUBLIC_URL, which comes first"):
        read(BASE_URL="/app")


def test_own_public_url_comes_before_a_foreign_one_that_is_no_address() -> None:
    assert read(BASE_URL="/app", QUEUEBRIDGE_PUBLIC_URL="https://a.example.com").public_urls == (
        "https://a.example.com",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QUEUEBRIDGE_PREFIX", f"{SECRET}"),
        ("QUEUEBRIDGE_PREFIX", f"/{SECRET}/"),
        ("QUEUEBRIDGE_PREFIX", f"/a?{SECRET}"),
        ("QUEUEBRIDGE_PREFIX", f"/a#{SECRET}"),
        ("QUEUEBRIDGE_PREFIX", f"/a {SECRET}"),
        ("QUEUEBRIDGE_ALIASES", f"/good,{SECRET}"),
    ],
)
def test_impossible_path_names_its_variable_and_not_its_value(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{variable: value})

    assert str(caught.value) == f"{variable}: a path must begin with '/', not end with it, and have no query."


BAD_ADAPTER_VALUES: list[tuple[str, str]] = [
    ("QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS", SECRET),
    ("QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS", "1"),
    ("QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS", SECRET),
    ("QUEUEBRIDGE_INLINE_PROPAGATE", SECRET),
    ("QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION", SECRET),
    ("QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS", SECRET),
    ("QUEUEBRIDGE_QSTASH_FAILURE_CALLBACK", SECRET),
    ("QUEUEBRIDGE_QSTASH_MAX_BYTES", SECRET),
    ("QUEUEBRIDGE_QSTASH_MAX_DELAY_SECONDS", "-1"),
    ("QUEUEBRIDGE_LEGACY", SECRET),
    ("QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS", SECRET),
    ("QUEUEBRIDGE_STAGE_PERCENT", SECRET),
    ("QUEUEBRIDGE_STAGE_PERCENT", "101"),
    ("QSTASH_URL", f"ftp://{SECRET}"),
]


@pytest.mark.parametrize(("variable", "value"), BAD_ADAPTER_VALUES)
def test_impossible_adapter_setting_names_its_variable_and_not_its_value(variable: str, value: str) -> None:
    models = [model for model in settings_models() if variable in variables(model)]
    assert models

    for model in models:
        with pytest.raises(ConfigurationError) as caught:
            read_settings(model, {variable: value})
        assert str(caught.value).startswith(f"{variable}: ")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("model", settings_models(), ids=lambda model: model.__name__)
def test_secrets_of_an_adapter_are_masked(model: type[BaseModel]) -> None:
    secret = {"QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"}
    secret |= {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REDIS_URL", "RQ_REDIS_URL"}
    environ = dict.fromkeys(variables(model) & secret, f"redis://:{SECRET}@host")

    assert SECRET not in repr(read_settings(model, environ))


def test_variables_of_the_adapters_are_known_to_the_core() -> None:
    used = {name for model in settings_models() for name in variables(model) if name.startswith("QUEUEBRIDGE_")}

    # The last one is for the project's own tests.
    assert set(ADAPTER_VARIABLES) == {*used, "QUEUEBRIDGE_TEST_SERVICES"}


def test_every_field_of_an_adapter_names_its_variable() -> None:
    unnamed = [
        f"{model.__name__}.{name}"
        for model in settings_models()
        for name, field in model.model_fields.items()
        if field.validation_alias is None
    ]

    assert unnamed == []


def warnings_about(caplog: pytest.LogCaptureFixture, **environ: str) -> list[str]:
    with caplog.at_level(logging.WARNING, "queuebridge"):
        read(**environ)
    return [record.getMessage() for record in caplog.records]


def test_misspelt_variable_is_reported_with_the_right_one(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_about(caplog, QUEUEBRIDGE_BAKEND=SECRET) == [
        "The environment variable QUEUEBRIDGE_BAKEND is not a setting of queuebridge. Did you mean QUEUEBRIDGE_BACKEND?"
    ]


def test_unknown_variable_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_about(caplog, QUEUEBRIDGE_XYZZY="1") == [
        "The environment variable QUEUEBRIDGE_XYZZY is not a setting of queuebridge."
    ]


def test_known_and_foreign_variables_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    known = dict.fromkeys(ADAPTER_VARIABLES, "")
    core: dict[str, Any] = {
        "QUEUEBRIDGE_BACKEND": "inline",
        "QUEUEBRIDGE_TASKS": "a",
        "QUEUEBRIDGE_ENV": "test",
        "QUEUEBRIDGE_PUBLIC_URL": "https://a.example.com",
        "QUEUEBRIDGE_PREFIX": "/a",
        "QUEUEBRIDGE_ALIASES": "/b",
        "QUEUEBRIDGE_DEFAULT_QUEUE": "q",
        "QUEUE_OTHER": "1",
    }

    assert warnings_about(caplog, **known, **core) == []
