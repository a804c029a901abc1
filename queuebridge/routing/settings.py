"""Settings of a migration: the old backend, and where the stages come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from queuebridge.errors import ConfigurationError
from queuebridge.settings import environment_or, read_settings

_DETAILS = ("QUEUEBRIDGE_STAGE_PERCENT", "QUEUEBRIDGE_STAGE_KEY", "QUEUEBRIDGE_STAGE_RULES")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class RoutingSettings(BaseModel):
    """Which migration there is, if any.

    Attributes:
        legacy: The old backend, `celery` or `rq`. Without it there is no migration.
        stage: The stage of all tasks, a path that ends in `.toml`, or `ledger`. In a migration, unset means `legacy`.
        stage_percent: The share of jobs that are in the stage; the others are in the stage before it.
        stage_key: What the share goes by: `job_id`, `user_id`, `organization_id` or `metadata.<name>`.
        stage_rules: Stages of single tasks: `mail.*=live:25, reports.*=shadow`. The first one that matches counts.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="ignore", hide_input_in_errors=True)

    legacy: Annotated[Literal["celery", "rq"] | None, BeforeValidator(_lower)] = Field(
        None, validation_alias="QUEUEBRIDGE_LEGACY"
    )
    stage: str | None = Field(None, validation_alias="QUEUEBRIDGE_STAGE")
    stage_percent: Annotated[float, Field(ge=0, le=100)] = Field(100.0, validation_alias="QUEUEBRIDGE_STAGE_PERCENT")
    stage_key: str = Field("job_id", validation_alias="QUEUEBRIDGE_STAGE_KEY")
    stage_rules: str = Field("", validation_alias="QUEUEBRIDGE_STAGE_RULES")

    @property
    def active(self) -> bool:
        """Return whether there is a migration."""
        return self.legacy is not None

    @property
    def from_ledger(self) -> bool:
        """Return whether the stages come from the ledger."""
        return self.stage is not None and self.stage.lower() == "ledger"

    @property
    def from_file(self) -> bool:
        """Return whether the stages come from a file."""
        return self.stage is not None and self.stage.endswith(".toml")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> RoutingSettings:
        """Read the settings from `environ`, by default the process's.

        Raises:
            ConfigurationError: A variable has an impossible value, or two of them contradict each other.
        """
        environ = environment_or(environ)
        settings = read_settings(cls, environ)
        present = {name for name, value in environ.items() if value.strip()}
        for name in ("QUEUEBRIDGE_STAGE", *_DETAILS):
            if name in present and not settings.active:
                raise ConfigurationError(
                    f"{name} is set, and QUEUEBRIDGE_LEGACY is not. Name the old backend there, celery or rq; or, "
                    f"without a migration, unset {name}."
                )
        if settings.active and "QUEUEBRIDGE_BACKEND" in present:
            raise ConfigurationError(
                "QUEUEBRIDGE_LEGACY and QUEUEBRIDGE_BACKEND are both set. For a migration unset QUEUEBRIDGE_BACKEND: "
                "the stage says where jobs go. To use one backend alone, unset QUEUEBRIDGE_LEGACY."
            )
        for name in _DETAILS:
            if name in present and (settings.from_ledger or settings.from_file):
                where = "the ledger" if settings.from_ledger else "the file"
                raise ConfigurationError(
                    f"{name} is set, but QUEUEBRIDGE_STAGE says that the stages come from {where}. Unset {name}, and "
                    "set it there."
                )
        return settings
