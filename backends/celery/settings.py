"""Settings of the Celery backend."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class CelerySettings(BaseModel):
    """How to get at a Celery app.

    Attributes:
        app: An existing app, as `package.module:attribute`.
        broker_url: The broker for an app of our own.
        result_backend: The result backend for an app of our own; None stores no results.
        visibility_timeout_seconds: After how long a Redis broker gives a message of a dead worker to another one;
            also the longest delay there.
        publish_timeout_seconds: How long one publish waits for the broker.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    app: str | None = Field(None, validation_alias="QUEUEBRIDGE_CELERY_APP")
    broker_url: SecretStr | None = Field(None, validation_alias="CELERY_BROKER_URL")
    result_backend: SecretStr | None = Field(None, validation_alias="CELERY_RESULT_BACKEND")
    visibility_timeout_seconds: Annotated[int, Field(ge=10)] = Field(
        3600, validation_alias="QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS"
    )
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        5.0, validation_alias="QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS"
    )
