"""Settings of the ledger, of claims and of what is done with both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from queuebridge.settings import split_list

# Names of arguments and metadata whose values are not shown, wherever they stand in a job.
DEFAULT_REDACTED = ("password", "passwd", "secret", "token", "api_key", "apikey", "authorization", "card_number")


class LedgerSettings(BaseModel):
    """How the ledger is used.

    Attributes:
        lease_seconds: How long a claim holds without being renewed; it is renewed every third of that.
        hedge_seconds: How long a safety copy is held back.
        ledger_down: What an executor does when the ledger cannot be reached: have the job delivered again later,
            or execute it without a claim.
        on_publish_error: Whether a job whose writes all failed is refused, or kept in the ledger and published later.
        lost_after_seconds: An accepted job without an end counts as lost so long after it could have started.
        reconcile_seconds: How often a worker looks for held, unpublished and abandoned jobs.
        grace_seconds: How long after the end of a lease reconcile waits for the transport's own redelivery.
        shadow_percent: Which share of jobs gets a copy in stage `shadow`.
        redact: Names of arguments and metadata whose values are never stored in clear.
        key: Encrypts stored jobs that have such values.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="ignore", hide_input_in_errors=True)

    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = Field(60.0, validation_alias="QUEUEBRIDGE_LEASE_SECONDS")
    hedge_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(60.0, validation_alias="QUEUEBRIDGE_HEDGE_SECONDS")
    ledger_down: Literal["defer", "execute"] = Field("defer", validation_alias="QUEUEBRIDGE_LEDGER_DOWN")
    on_publish_error: Literal["raise", "spool"] = Field("raise", validation_alias="QUEUEBRIDGE_ON_PUBLISH_ERROR")
    lost_after_seconds: Annotated[float, Field(gt=0)] = Field(3600.0, validation_alias="QUEUEBRIDGE_LOST_AFTER_SECONDS")
    reconcile_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        1.0, validation_alias="QUEUEBRIDGE_RECONCILE_SECONDS"
    )
    grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(10.0, validation_alias="QUEUEBRIDGE_GRACE_SECONDS")
    shadow_percent: Annotated[float, Field(ge=0, le=100)] = Field(100.0, validation_alias="QUEUEBRIDGE_SHADOW_PERCENT")
    redact: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        DEFAULT_REDACTED, validation_alias="QUEUEBRIDGE_REDACT"
    )
    key: SecretStr | None = Field(None, validation_alias="QUEUEBRIDGE_LEDGER_KEY")

    @property
    def lease_ms(self) -> int:
        """Return the lease in milliseconds."""
        return int(self.lease_seconds * 1000)

    @property
    def grace_ms(self) -> int:
        """Return the grace in milliseconds."""
        return int(self.grace_seconds * 1000)
