"""The options of a job that only QStash knows."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Options travel as HTTP headers: one line of ASCII without spaces at its ends.
HeaderText = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
CallbackUrl = Annotated[str, Field(pattern=r"^https?://[!-~]+$")]
Headers = dict[HeaderName, Annotated[str, Field(pattern=r"^([!-~]([ -~]*[!-~])?)?$")]]


class FlowControl(BaseModel):
    """Limits that messages with the same key share (protocol 3.5). `period` is a QStash duration or seconds."""

    model_config = ConfigDict(extra="forbid")

    key: HeaderText
    parallelism: Annotated[int, Field(ge=1)] | None = None
    rate: Annotated[int, Field(ge=1)] | None = None
    period: Annotated[str, Field(pattern=r"^([0-9]+[smhd])+$")] | Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> FlowControl:
        if self.parallelism is None and self.rate is None:
            raise ValueError("give parallelism or rate, or both")
        return self


class QStashOptions(BaseModel):
    """`options={"qstash": {...}}`: what only QStash knows.

    Attributes:
        label: Label of the message, instead of the names of the task and its queue.
        queue: A FIFO queue to enqueue on; such messages are delivered one after the other, and cannot be delayed.
        flow_control: Limits of rate and parallelism.
        callback: URL that QStash calls after each attempt.
        failure_callback: URL that QStash calls when it gives up, instead of the receiver's own.
        callback_headers, failure_callback_headers: Headers of those calls.
        retry_delay: Expression for the delay before a retry in milliseconds (protocol 3.4), for retries whose delay
            the receiver could not say because it was not reached.
        timeout: Seconds that QStash waits for the receiver, instead of the task's timeout.
        headers: Headers that QStash forwards to the receiver.
    """

    model_config = ConfigDict(extra="forbid")

    label: HeaderText | None = None
    queue: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    flow_control: FlowControl | None = None
    callback: CallbackUrl | None = None
    failure_callback: CallbackUrl | None = None
    callback_headers: Headers | None = None
    failure_callback_headers: Headers | None = None
    retry_delay: HeaderText | None = None
    timeout: Annotated[int, Field(ge=1)] | None = None
    headers: Headers | None = None
