"""The first schema.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite counts rows only in its own INTEGER.
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "queuebridge_deliveries",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("dispatch_id", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("side", sa.String()),
        sa.Column("role", sa.String()),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("lag_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer()),
        sa.Column("digest", sa.String()),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("queuebridge_deliveries_dispatch", "queuebridge_deliveries", ["dispatch_id", "id"])
    op.create_table(
        "queuebridge_dispatches",
        sa.Column("seq", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("dispatch_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("stage", sa.String()),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until_ms", sa.BigInteger()),
        sa.Column("retry_at_ms", sa.BigInteger()),
        sa.Column("next_check_at_ms", sa.BigInteger()),
        sa.Column("deadline_ms", sa.BigInteger(), nullable=False),
        sa.Column("enqueued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger()),
        sa.Column("expires_at_ms", sa.BigInteger()),
        sa.Column("accepted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger()),
        sa.Column("finished_at_ms", sa.BigInteger()),
        sa.Column("executed_by", sa.String()),
        sa.Column("executed_role", sa.String()),
        sa.Column("user_id", sa.Text()),
        sa.Column("organization_id", sa.Text()),
        sa.Column("settled_by", sa.BigInteger()),
        sa.Column("stale_settles", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String()),
        sa.Column("first_side", sa.String()),
        sa.Column("legacy_backend", sa.String()),
        sa.Column("legacy_role", sa.String()),
        sa.Column("legacy_state", sa.String()),
        sa.Column("legacy_due_at_ms", sa.BigInteger()),
        sa.Column("legacy_message_id", sa.String()),
        sa.Column("legacy_error", sa.Text()),
        sa.Column("push_backend", sa.String()),
        sa.Column("push_role", sa.String()),
        sa.Column("push_state", sa.String()),
        sa.Column("push_due_at_ms", sa.BigInteger()),
        sa.Column("push_message_id", sa.String()),
        sa.Column("push_error", sa.Text()),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.Column("body", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("queuebridge_dispatches_accepted", "queuebridge_dispatches", ["accepted_at_ms", "seq"])
    op.create_index(
        "queuebridge_dispatches_due",
        "queuebridge_dispatches",
        ["next_check_at_ms"],
        postgresql_where=sa.text("next_check_at_ms IS NOT NULL"),
        sqlite_where=sa.text("next_check_at_ms IS NOT NULL"),
    )
    op.create_index(
        "queuebridge_dispatches_finished",
        "queuebridge_dispatches",
        ["finished_at_ms"],
        postgresql_where=sa.text("finished_at_ms IS NOT NULL"),
        sqlite_where=sa.text("finished_at_ms IS NOT NULL"),
    )
    op.create_index("queuebridge_dispatches_id", "queuebridge_dispatches", ["dispatch_id"], unique=True)
    op.create_index("queuebridge_dispatches_job", "queuebridge_dispatches", ["job_id", "accepted_at_ms"])
    op.create_index(
        "queuebridge_dispatches_state",
        "queuebridge_dispatches",
        ["state", "accepted_at_ms", "seq"],
        postgresql_where=sa.text("state <> 'done'"),
        sqlite_where=sa.text("state <> 'done'"),
    )
    op.create_index("queuebridge_dispatches_task", "queuebridge_dispatches", ["task", "accepted_at_ms", "seq"])
    op.create_table(
        "queuebridge_payloads",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("keep_until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("queuebridge_payloads_keep", "queuebridge_payloads", ["keep_until_ms"])
    op.create_table(
        "queuebridge_processes",
        sa.Column("process_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("process_id"),
    )
    op.create_index("queuebridge_processes_seen", "queuebridge_processes", ["seen_at_ms"])
    op.create_table(
        "queuebridge_stage_revisions",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
