"""Settings of the RQ backend."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from queuebridge.settings import split_list


class RQSettings(BaseModel):
    """Where RQ's Redis is, and which functions may be pushed.

    Attributes:
        redis_url: The address.
        result_ttl_seconds: How long RQ keeps results, and with them the memory of idempotency keys.
        publish_timeout_seconds: How long one command may take.
        modules: The modules and packages whose functions the receiver may import and call for pushed RQ calls.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("RQ_REDIS_URL", "REDIS_URL"))
    result_ttl_seconds: Annotated[int, Field(ge=0)] = Field(500, validation_alias="QUEUEBRIDGE_RQ_RESULT_TTL_SECONDS")
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        5.0, validation_alias="QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS"
    )
    modules: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        (), validation_alias="QUEUEBRIDGE_RQ_MODULES"
    )
