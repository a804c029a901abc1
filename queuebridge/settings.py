"""Settings from the environment. Modules named `settings` are the only ones that read it."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from queuebridge.errors import ConfigurationError

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

_PREFIX = "QUEUEBRIDGE_"

# The address of the embedded server and of the receiver that `queuebridge dev` starts.
DEV_SERVER_URL = "http://127.0.0.1:8080"
DEV_PUBLIC_URL = "http://127.0.0.1:8000"

# In this order. Platforms set some of them without a scheme.
PUBLIC_URL_VARIABLES = (
    "QUEUEBRIDGE_PUBLIC_URL",
    "PUBLIC_URL",
    "BASE_URL",
    "API_URL",
    "RENDER_EXTERNAL_URL",
    "RAILWAY_PUBLIC_DOMAIN",
    "VERCEL_PROJECT_PRODUCTION_URL",
    "VERCEL_URL",
)
_ENVIRONMENT_VARIABLES = ("QUEUEBRIDGE_ENV", "APP_ENV", "ENVIRONMENT", "ENV", "FLASK_ENV", "VERCEL_ENV")
_PRODUCTION = ("production", "prod", "live")

# Settings of the adapters and of the migration, known here so that a misspelt variable can be told from theirs.
ADAPTER_VARIABLES = (
    "QUEUEBRIDGE_CELERY_APP",
    "QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS",
    "QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS",
    "QUEUEBRIDGE_GRACE_SECONDS",
    "QUEUEBRIDGE_HEDGE_SECONDS",
    "QUEUEBRIDGE_INLINE_PROPAGATE",
    "QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION",
    "QUEUEBRIDGE_LEASE_SECONDS",
    "QUEUEBRIDGE_LEDGER_DOWN",
    "QUEUEBRIDGE_LEDGER_KEY",
    "QUEUEBRIDGE_LEGACY",
    "QUEUEBRIDGE_LOST_AFTER_SECONDS",
    "QUEUEBRIDGE_ON_PUBLISH_ERROR",
    "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS",
    "QUEUEBRIDGE_QSTASH_FAILURE_CALLBACK",
    "QUEUEBRIDGE_QSTASH_MAX_BYTES",
    "QUEUEBRIDGE_QSTASH_MAX_DELAY_SECONDS",
    "QUEUEBRIDGE_QSTASH_RETRIES",
    "QUEUEBRIDGE_RECONCILE_SECONDS",
    "QUEUEBRIDGE_REDACT",
    "QUEUEBRIDGE_RQ_MODULES",
    "QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS",
    "QUEUEBRIDGE_SHADOW_PERCENT",
    "QUEUEBRIDGE_STAGE",
    "QUEUEBRIDGE_STAGE_KEY",
    "QUEUEBRIDGE_STAGE_PERCENT",
    "QUEUEBRIDGE_STAGE_RULES",
    "QUEUEBRIDGE_TEST_SERVICES",
)


def split_list(value: Any) -> Any:
    """Turn comma-separated text into a tuple; anything else is left to pydantic."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _with_scheme(urls: Any) -> Any:
    return tuple(url if "://" in url else f"https://{url}" for url in split_list(urls))


def _check_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        scheme, _, rest = url.partition("://")
        host = rest.partition("/")[0]
        if scheme not in ("http", "https") or not host or any(c in "?#" or c.isspace() for c in rest):
            raise ValueError("it is not an http(s) address without query")
    return tuple(url.rstrip("/") for url in urls)


def _check_path(path: str) -> str:
    if not path.startswith("/") or path.endswith("/") or any(c in "?#" or c.isspace() for c in path):
        raise ValueError("a path must begin with '/', not end with it, and have no query")
    return path


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Path = Annotated[str, AfterValidator(_check_path)]


class Settings(BaseModel):
    """What the core and the receiver need to know.

    Attributes:
        backend: The backend to use; None lets the environment decide.
        tasks: Modules that declare tasks; `package.*` includes all below it.
        production: Whether development conveniences are refused.
        public_urls: Where the receiver is reached from outside; the first one is published to, deliveries
            to any of them are accepted.
        prefix: The path below which the receiver answers.
        aliases: Further paths at which it takes envelopes.
        default_queue: The queue of tasks that name none.
        ledger_url: The address of the ledger, which may have a password; None for no ledger.
        qstash_token_present, celery_broker_present, redis_present: What the automatic choice goes by.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="ignore", hide_input_in_errors=True)

    backend: Annotated[str | None, BeforeValidator(_lower)] = Field(None, validation_alias="QUEUEBRIDGE_BACKEND")
    tasks: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field((), validation_alias="QUEUEBRIDGE_TASKS")
    production: bool = False
    public_urls: Annotated[tuple[str, ...], BeforeValidator(_with_scheme), AfterValidator(_check_urls)] = Field(
        (), validation_alias=AliasChoices(*PUBLIC_URL_VARIABLES)
    )
    prefix: Path = Field("/queuebridge", validation_alias="QUEUEBRIDGE_PREFIX")
    aliases: Annotated[tuple[Path, ...], BeforeValidator(split_list)] = Field(
        (), validation_alias="QUEUEBRIDGE_ALIASES"
    )
    default_queue: Annotated[str, Field(min_length=1)] = Field("default", validation_alias="QUEUEBRIDGE_DEFAULT_QUEUE")
    ledger_url: SecretStr | None = Field(None, validation_alias="QUEUEBRIDGE_LEDGER")
    qstash_token_present: bool = False
    celery_broker_present: bool = False
    redis_present: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from `environ`, by default the process's.

        Raises:
            ConfigurationError: A variable has an impossible value; the message names it.
        """
        environ = os.environ if environ is None else environ
        _warn_about_unknown(environ)
        return read_settings(
            cls,
            environ,
            production=_is_production(environ),
            qstash_token_present=bool(environ.get("QSTASH_TOKEN", "").strip()),
            celery_broker_present=any(
                environ.get(name, "").strip() for name in ("CELERY_BROKER_URL", "QUEUEBRIDGE_CELERY_APP")
            ),
            redis_present=any(environ.get(name, "").strip() for name in ("RQ_REDIS_URL", "REDIS_URL")),
        )


def read_settings(model: type[Model], environ: Mapping[str, str], **derived: Any) -> Model:
    """Return `model` filled from the variables that its fields name; empty variables count as unset.

    Raises:
        ConfigurationError: A variable has an impossible value. The value is not shown: it may be a secret.
    """
    present = {name: value.strip() for name, value in environ.items() if value.strip()}
    try:
        return model.model_validate({**present, **derived})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        variable = _variable_of(problem["loc"], present)
        more = ""
        if variable in PUBLIC_URL_VARIABLES[1:]:
            more = " If it is not meant for queuebridge, set QUEUEBRIDGE_PUBLIC_URL, which comes first."
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigurationError(f"{variable}: {message}.{more}") from None


def environment_or(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return `environ`, or the process's environment if it is None."""
    return os.environ if environ is None else environ


def _variable_of(location: tuple[int | str, ...], present: Mapping[str, str]) -> str:
    name = str(location[0]) if location else "the environment"
    if name in PUBLIC_URL_VARIABLES:
        return next((variable for variable in PUBLIC_URL_VARIABLES if variable in present), name)
    return name


def _is_production(environ: Mapping[str, str]) -> bool:
    for variable in _ENVIRONMENT_VARIABLES:
        value = environ.get(variable, "").strip().lower()
        if value:
            return value in _PRODUCTION
    # Render sets this on every service, and nothing that tells production from anything else.
    return bool(environ.get("RENDER", "").strip())


def _warn_about_unknown(environ: Mapping[str, str]) -> None:
    known = {
        *ADAPTER_VARIABLES,
        "QUEUEBRIDGE_ENV",
        "QUEUEBRIDGE_PUBLIC_URL",
        *(str(field.validation_alias) for field in Settings.model_fields.values() if field.validation_alias),
    }
    # Compared without their prefix, which alone would make any two names similar.
    names = {name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)}
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable.removeprefix(_PREFIX), names, n=1)
            hint = f" Did you mean {_PREFIX}{close[0]}?" if close else ""
            logger.warning("The environment variable %s is not a setting of queuebridge.%s", variable, hint)
