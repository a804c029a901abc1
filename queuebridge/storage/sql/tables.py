"""The ledger's tables and indexes.

Their names have a prefix, because the ledger may live in a database of the application. Times are Unix milliseconds.

The cost of every operation stays the same however many dispatches have ended: what is unsettled is found by partial
indexes that hold nothing else.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

# The newest revision in migrations/versions.
SCHEMA_REVISION = "0001"
VERSION_TABLE = "queuebridge_alembic_version"

metadata = MetaData()

# SQLite counts rows only in its own INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")


class Words(TypeDecorator[str]):
    """Text from anywhere: what a database would refuse (NUL, half a surrogate pair) is replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return what can be stored of `value`."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _copy_columns(side: str) -> list[Column[Any]]:
    return [
        Column(f"{side}_backend", String),
        Column(f"{side}_role", String),
        Column(f"{side}_state", String),
        Column(f"{side}_due_at_ms", BigInteger),
        Column(f"{side}_message_id", String),
        Column(f"{side}_error", Words),
    ]


dispatches = Table(
    "queuebridge_dispatches",
    metadata,
    # Tells the order of those that were accepted in the same millisecond.
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("dispatch_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("task", String, nullable=False),
    Column("queue", String, nullable=False),
    Column("stage", String),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("owner", Words),
    Column("lease_until_ms", BigInteger),
    Column("retry_at_ms", BigInteger),
    Column("next_check_at_ms", BigInteger),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("enqueued_at_ms", BigInteger, nullable=False),
    Column("not_before_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("accepted_at_ms", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger),
    Column("finished_at_ms", BigInteger),
    Column("executed_by", String),
    Column("executed_role", String),
    Column("user_id", Words),
    Column("organization_id", Words),
    # The token whose settlement was accepted; none if the ledger itself has ended the dispatch.
    Column("settled_by", BigInteger),
    Column("stale_settles", Integer, nullable=False),
    Column("digest", String),
    # The side of the copy that comes first.
    Column("first_side", String),
    *_copy_columns("legacy"),
    *_copy_columns("push"),
    Column("payload", Words, nullable=False),
    Column("result", Words),
    Column("error", Words),
    Column("traceback", Words),
    # Last, and empty once the dispatch is settled.
    Column("body", LargeBinary),
)

# Written into queries as they are: with parameters, no planner could tell that a partial index will do.
CHECKED = text("next_check_at_ms IS NOT NULL")
FINISHED = text("finished_at_ms IS NOT NULL")
NOT_DONE = text("state <> 'done'")


def _partial(name: str, *columns: str, where: Any) -> Index:
    return Index(
        f"queuebridge_dispatches_{name}",
        *(dispatches.c[column] for column in columns),
        postgresql_where=where,
        sqlite_where=where,
    )


Index("queuebridge_dispatches_id", dispatches.c.dispatch_id, unique=True)
Index("queuebridge_dispatches_job", dispatches.c.job_id, dispatches.c.accepted_at_ms)
Index("queuebridge_dispatches_accepted", dispatches.c.accepted_at_ms, dispatches.c.seq)
Index("queuebridge_dispatches_task", dispatches.c.task, dispatches.c.accepted_at_ms, dispatches.c.seq)
_partial("due", "next_check_at_ms", where=CHECKED)
_partial("finished", "finished_at_ms", where=FINISHED)
# Nearly all dispatches are done: the index of the others stays small, and is touched twice in an ordinary life.
_partial("state", "state", "accepted_at_ms", "seq", where=NOT_DONE)

deliveries = Table(
    "queuebridge_deliveries",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("dispatch_id", String, nullable=False),
    Column("backend", String, nullable=False),
    Column("message_id", String, nullable=False),
    Column("side", String),
    Column("role", String),
    Column("at_ms", BigInteger, nullable=False),
    Column("lag_ms", BigInteger, nullable=False),
    Column("outcome", String, nullable=False),
    Column("attempt", Integer),
    Column("digest", String),
    Column("problem", Words),
    Index("queuebridge_deliveries_dispatch", "dispatch_id", "id"),
)

payloads = Table(
    "queuebridge_payloads",
    metadata,
    Column("key", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("keep_until_ms", BigInteger, nullable=False),
    Index("queuebridge_payloads_keep", "keep_until_ms"),
)

revisions = Table(
    "queuebridge_stage_revisions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("settings", Words, nullable=False),
    Column("author", Words, nullable=False),
    Column("reason", Words, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

processes = Table(
    "queuebridge_processes",
    metadata,
    Column("process_id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Index("queuebridge_processes_seen", "seen_at_ms"),
)
