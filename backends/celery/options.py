"""The options of a job that only Celery knows."""

from __future__ import annotations

from typing import Annotated

from kombu.compression import get_encoder
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_PRIORITY = 255


def _known_compression(name: str) -> str:
    try:
        get_encoder(name)
    except KeyError:
        raise ValueError("kombu knows no such compression here; gzip, bzip2 and lzma are always there") from None
    return name


class PublishRetryPolicy(BaseModel):
    """How a failed publish is tried again, within the publish timeout. As Celery's `retry_policy`."""

    model_config = ConfigDict(extra="forbid")

    max_retries: Annotated[int, Field(ge=0)] | None = None
    interval_start: Annotated[float, Field(ge=0)] = 0
    interval_step: Annotated[float, Field(ge=0)] = 0
    interval_max: Annotated[float, Field(ge=0)] = 0
    retry_errors: tuple[type[Exception], ...] | None = None


class CeleryOptions(BaseModel):
    """`options={"celery": {...}}`: what only Celery knows; the names are those of `apply_async`."""

    model_config = ConfigDict(extra="forbid")

    exchange: str | None = None
    routing_key: str | None = None
    compression: Annotated[str, AfterValidator(_known_compression)] | None = None
    shadow: str | None = None
    ignore_result: bool | None = None
    priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] | None = None
    retry_policy: PublishRetryPolicy | None = None
