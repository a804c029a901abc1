"""Names, limits and published credentials of the QStash HTTP protocol (v2).

The one source of these constants for the client adapter, the receiver and the development server.
Standard library only: the receiver imports it on a cold start. Where the public documentation is
silent, the comment beside a value says that it is a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DEFAULT_BASE_URL: Final = "https://qstash.upstash.io"
DEV_PORT: Final = 8080
DEFAULT_REGION: Final = "EU-CENTRAL-1"
TOKEN_PARAMETER: Final = "qstash_token"  # noqa: S105 - the name of a query parameter

# What a publisher sends.
HEADER_METHOD: Final = "Upstash-Method"
HEADER_DELAY: Final = "Upstash-Delay"
HEADER_NOT_BEFORE: Final = "Upstash-Not-Before"
HEADER_RETRIES: Final = "Upstash-Retries"
HEADER_RETRY_DELAY: Final = "Upstash-Retry-Delay"
HEADER_TIMEOUT: Final = "Upstash-Timeout"
HEADER_CALLBACK: Final = "Upstash-Callback"
HEADER_FAILURE_CALLBACK: Final = "Upstash-Failure-Callback"
HEADER_DEDUPLICATION_ID: Final = "Upstash-Deduplication-Id"
HEADER_CONTENT_BASED_DEDUPLICATION: Final = "Upstash-Content-Based-Deduplication"
HEADER_FLOW_CONTROL_KEY: Final = "Upstash-Flow-Control-Key"
HEADER_FLOW_CONTROL_VALUE: Final = "Upstash-Flow-Control-Value"
HEADER_LABEL: Final = "Upstash-Label"
HEADER_REDACT_FIELDS: Final = "Upstash-Redact-Fields"
HEADER_HEADER_FORWARD: Final = "Upstash-Header-Forward"
HEADER_CRON: Final = "Upstash-Cron"
HEADER_SCHEDULE_ID: Final = "Upstash-Schedule-Id"
HEADER_QUEUE_NAME: Final = "Upstash-Queue-Name"
FORWARD_PREFIX: Final = "Upstash-Forward-"
CALLBACK_PREFIX: Final = "Upstash-Callback-"
FAILURE_CALLBACK_PREFIX: Final = "Upstash-Failure-Callback-"
TELEMETRY_PREFIX: Final = "Upstash-Telemetry-"
WORKFLOW_PREFIX: Final = "Upstash-Workflow-"

# What a destination receives.
HEADER_SIGNATURE: Final = "Upstash-Signature"
HEADER_MESSAGE_ID: Final = "Upstash-Message-Id"
HEADER_RETRIED: Final = "Upstash-Retried"
HEADER_CALLER_IP: Final = "Upstash-Caller-Ip"
HEADER_TOPIC_NAME: Final = "Upstash-Topic-Name"
HEADER_REGION: Final = "Upstash-Region"
DELIVERY_USER_AGENT: Final = "Upstash-QStash"

# What a destination may answer.
NON_RETRYABLE_STATUS: Final = 489
HEADER_NON_RETRYABLE: Final = "Upstash-NonRetryable-Error"
# In order of precedence, which is a choice: the documentation only lists them.
RETRY_AFTER_HEADERS: Final = (
    "Retry-After",
    "X-RateLimit-Reset",
    "X-RateLimit-Reset-Requests",
    "X-RateLimit-Reset-Tokens",
)

METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
DEFAULT_METHOD: Final = "POST"
DEFAULT_RETRIES: Final = 3
BACKOFF_EXPONENT: Final = 2.5
MAX_RETRY_DELAY_SECONDS: Final = 86_400
DEDUPLICATION_WINDOW_SECONDS: Final = 600
DEFAULT_FLOW_PERIOD_SECONDS: Final = 1
MAX_FLOW_PERIOD_SECONDS: Final = 7 * 86_400
MAX_BATCH_BYTES: Final = 100 * 1024 * 1024
MAX_CANCEL_COUNT: Final = 500
MAX_DLQ_PAGE: Final = 100
DEFAULT_LOG_PAGE: Final = 100
MAX_LOG_PAGE: Final = 1000
# Undocumented beyond "a while"; callers do read a message right after publishing it.
FINISHED_MESSAGE_READABLE_SECONDS: Final = 60

SIGNATURE_ALGORITHM: Final = "HS256"
SIGNATURE_ISSUER: Final = "Upstash"
SIGNATURE_LIFETIME_SECONDS: Final = 300


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    """Quotas of one QStash plan; None means unlimited.

    Sizes are in bytes (the documentation's MB is read as MiB), times in seconds. `max_parallelism` is
    that of the account, `max_queue_parallelism` that of one queue.
    """

    name: str
    max_message_bytes: int
    max_delay_seconds: int | None
    max_timeout_seconds: int
    max_retries: int
    max_queues: int
    max_queue_parallelism: int
    max_parallelism: int
    max_url_groups: int
    max_endpoints_per_group: int
    max_schedules: int | None
    max_messages_per_day: int | None
    dlq_retention_seconds: int
    log_retention_seconds: int


_MIB: Final = 1024 * 1024
_DAY: Final = 86_400

# max_retries is no longer published for any plan. 5 on the free plan follows user reports of
# "quota maxRetries exceeded"; the figures of the paid plans are a choice. Schedules beyond the figure
# of a paid plan cost extra and are not refused.
PLANS: Final[Mapping[str, PlanLimits]] = MappingProxyType(
    {
        plan.name: plan
        for plan in (
            PlanLimits(
                name="free",
                max_message_bytes=1 * _MIB,
                max_delay_seconds=7 * _DAY,
                max_timeout_seconds=15 * 60,
                max_retries=5,
                max_queues=10,
                max_queue_parallelism=2,
                max_parallelism=10,
                max_url_groups=1,
                max_endpoints_per_group=100,
                max_schedules=10,
                max_messages_per_day=1_000,
                dlq_retention_seconds=3 * _DAY,
                log_retention_seconds=3 * _DAY,
            ),
            PlanLimits(
                name="payg",
                max_message_bytes=10 * _MIB,
                max_delay_seconds=365 * _DAY,
                max_timeout_seconds=2 * 3600,
                max_retries=100,
                max_queues=100,
                max_queue_parallelism=10,
                max_parallelism=100,
                max_url_groups=100,
                max_endpoints_per_group=100,
                max_schedules=None,
                max_messages_per_day=None,
                dlq_retention_seconds=7 * _DAY,
                log_retention_seconds=7 * _DAY,
            ),
            PlanLimits(
                name="fixed-1m",
                max_message_bytes=50 * _MIB,
                max_delay_seconds=None,
                max_timeout_seconds=6 * 3600,
                max_retries=100,
                max_queues=1_000,
                max_queue_parallelism=10,
                max_parallelism=200,
                max_url_groups=1_000,
                max_endpoints_per_group=1_000,
                max_schedules=None,
                max_messages_per_day=1_000_000,
                dlq_retention_seconds=30 * _DAY,
                log_retention_seconds=14 * _DAY,
            ),
            PlanLimits(
                name="fixed-10m",
                max_message_bytes=50 * _MIB,
                max_delay_seconds=None,
                max_timeout_seconds=12 * 3600,
                max_retries=100,
                max_queues=1_000,
                max_queue_parallelism=10,
                max_parallelism=1_000,
                max_url_groups=2_000,
                max_endpoints_per_group=2_000,
                max_schedules=None,
                max_messages_per_day=10_000_000,
                dlq_retention_seconds=90 * _DAY,
                log_retention_seconds=14 * _DAY,
            ),
        )
    }
)
DEFAULT_PLAN: Final = "payg"


@dataclass(frozen=True, kw_only=True)
class DevUser:
    """One of the four published users of the development server: public test credentials, no secrets.

    The read-only token is this server's own: none is published. It is the token's JSON, marked as such.
    """

    name: str
    token: str
    read_only_token: str
    current_signing_key: str
    next_signing_key: str


DEV_USERS: Final = (
    DevUser(
        name="defaultUser",
        token="eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",  # noqa: S106
        read_only_token="eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIiwiUmVhZE9ubHkiOnRydWV9",  # noqa: S106
        current_signing_key="sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        next_signing_key="sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    ),
    DevUser(
        name="testUser1",
        token="eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",  # noqa: S106
        read_only_token="eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCIsIlJlYWRPbmx5Ijp0cnVlfQ==",  # noqa: S106
        current_signing_key="sig_7GVPjvuwsfqF65iC8fSrs1dfYruM",
        next_signing_key="sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua",
    ),
    DevUser(
        name="testUser2",
        token="eyJVc2VySUQiOiJ0ZXN0VXNlcjIiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",  # noqa: S106
        read_only_token="eyJVc2VySUQiOiJ0ZXN0VXNlcjIiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCIsIlJlYWRPbmx5Ijp0cnVlfQ==",  # noqa: S106
        current_signing_key="sig_6jWGaWRxHsw4vMSPJprXadyvrybF",
        next_signing_key="sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx",
    ),
    DevUser(
        name="testUser3",
        token="eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",  # noqa: S106
        read_only_token="eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCIsIlJlYWRPbmx5Ijp0cnVlfQ==",  # noqa: S106
        current_signing_key="sig_5T8FcSsynBjn9mMLBsXhpacRovJf",
        next_signing_key="sig_7GFR4YaDshFcqsxWRZpRB161jguD",
    ),
)
DEFAULT_DEV_USER: Final = DEV_USERS[0]
