"""When a failed job runs again: one policy for every backend."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# QStash caps every retry delay at one day (protocol 13.3); a longer one could not be honoured everywhere.
MAX_DELAY_SECONDS = 86_400.0

Seconds = Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS, allow_inf_nan=False)]


class RetryPolicy(BaseModel):
    """How often and after which delays a job is tried again after a failure.

    Attributes:
        retries: Attempts after the first one; 0 means one attempt only.
        delays: Seconds before the first, second, ... retry; the last one is used for all further retries.
            Empty: exponential, see `base`.
        base: Seconds before the first retry; each further one waits twice as long.
        cap: No exponential delay is longer, in seconds.
        jitter: Shorten each exponential delay by a random part of up to a half, so that jobs that failed
            together do not come back together.
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    delays: tuple[Seconds, ...] = ()
    base: Seconds = 10.0
    cap: Seconds = 3600.0
    jitter: bool = True

    @property
    def max_attempts(self) -> int:
        """Return how many executions there may be in all."""
        return self.retries + 1

    def delay_before_retry(self, retry: int) -> float:
        """Return the seconds to wait before retry number `retry`, counted from 1."""
        retry = max(retry, 1)
        if self.delays:
            return self.delays[min(retry, len(self.delays)) - 1]
        # 2**64 s is far beyond any cap, and a float overflow would lose the job.
        delay = min(self.cap, self.base * 2.0 ** min(retry - 1, 64))
        return delay * (1 - random.random() / 2) if self.jitter else delay  # noqa: S311 - spreads load, hides nothing


# Shared, so that it can be recognised without being compared; and made without validation, which would build
# the validator while the module is imported.
DEFAULT_RETRY = RetryPolicy.model_construct()
