"""Settings of the RQ backend."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr


class RQSettings(BaseModel):
    """Where RQ's Redis is.

    Attributes:
        redis_url: The address.
        result_ttl_seconds: How long RQ keeps results, and with them the memory of idempotency keys.
        publish_timeout_seconds: How long one command may take.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("RQ_REDIS_URL", "REDIS_URL"))
    result_ttl_seconds: Annotated[int, Field(ge=0)] = Field(500, validation_alias="QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS")
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        5.0, validation_alias="QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS"
    )
