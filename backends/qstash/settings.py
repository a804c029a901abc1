"""Settings of the QStash backend and of the verification of its deliveries."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from queuebridge.settings import DEV_SERVER_URL


class PublishSettings(BaseModel):
    """What publishing needs.

    Attributes:
        token: The QStash token.
        url: The address of the QStash API.
        publish_timeout_seconds: How long one enqueue may take in all, retries included.
        failure_callback: Whether QStash shall call the receiver's `failed` endpoint for a message that it
            gives up.
        max_bytes: The largest body to send; 1 MB is the limit of the smallest plan.
        max_delay_seconds: The longest delay of one message; seven days is the limit of the smallest plan. Longer
            delays are made in hops.
        reach_retries: How often QStash tries to reach the receiver again, where a ledger counts the attempts of a job.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="ignore", hide_input_in_errors=True)

    token: SecretStr | None = Field(None, validation_alias="QSTASH_TOKEN")
    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = Field(None, validation_alias="QSTASH_URL")
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        5.0, validation_alias="QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS"
    )
    failure_callback: bool = Field(True, validation_alias="QUEUEBRIDGE_QSTASH_FAILURE_CALLBACK")
    max_bytes: Annotated[int, Field(gt=0)] = Field(1_000_000, validation_alias="QUEUEBRIDGE_QSTASH_MAX_BYTES")
    max_delay_seconds: Annotated[float, Field(ge=300)] = Field(
        7 * 86_400.0, validation_alias="QUEUEBRIDGE_QSTASH_MAX_DELAY_SECONDS"
    )
    reach_retries: Annotated[int, Field(ge=0, le=1000)] = Field(5, validation_alias="QUEUEBRIDGE_QSTASH_RETRIES")

    @property
    def uses_embedded_server(self) -> bool:
        """Return whether nothing was configured, so that the embedded server is meant."""
        return self.token is None and self.url in (None, DEV_SERVER_URL)


class VerificationSettings(BaseModel):
    """What verifying a delivery needs.

    Attributes:
        current_key, next_key: The signing keys.
        clock_tolerance_seconds: How far the clocks of QStash and of this machine may differ.
        insecure: Accept deliveries unverified. For development only; refused in production.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="ignore", hide_input_in_errors=True)

    current_key: SecretStr | None = Field(None, validation_alias="QSTASH_CURRENT_SIGNING_KEY")
    next_key: SecretStr | None = Field(None, validation_alias="QSTASH_NEXT_SIGNING_KEY")
    clock_tolerance_seconds: Annotated[float, Field(ge=0, le=300)] = Field(
        5.0, validation_alias="QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS"
    )
    insecure: bool = Field(False, validation_alias="QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION")
