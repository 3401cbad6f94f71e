"""Sums for the admin pages, what a search reads of a decision, and what the control plane keeps for itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BUCKETS = range(27)
_COUNTS = (
    "requests", "errors", "exact_hits", "shared_hits", "semantic_hits", "escalations", "explored", "audits",
    "cost_nanousd", "saved_nanousd", "judge_nanousd", "exploration_nanousd", "cascade_nanousd",
    "input_tokens", "output_tokens", "answers", "answer_input_tokens", "answer_output_tokens",
)  # fmt: skip
_MOMENTS = (
    "answer_s", "input_input", "input_output", "output_output", "input_cost", "output_cost", "cost_cost",
    "saved_saved",
)  # fmt: skip
_HISTOGRAMS = tuple(f"{name}_{number:02d}" for name in ("latency", "ttft") for number in _BUCKETS)


def upgrade() -> None:
    """Decisions stored so far get `counted` 0: the control process adds them up while it runs."""
    _widen_decisions()
    _create_rollups()
    _create_insights()
    _create_certificates()
    _create_users()


def _widen_decisions() -> None:
    op.add_column("decisions", sa.Column("flags", sa.Integer, nullable=False, server_default="0"))
    op.add_column("decisions", sa.Column("counted", sa.Integer, nullable=False, server_default="0"))
    columns = ["time_s", "id", "route", "tenant", "answered_model", "key_id", "flags", "cost_nanousd"]
    op.create_index("decisions_search", "decisions", columns)
    op.create_index(
        "decisions_uncounted", "decisions", ["counted"],
        sqlite_where=sa.text("counted = 0"), postgresql_where=sa.text("counted = 0"),
    )  # fmt: skip


def _create_rollups() -> None:
    op.create_table(
        "rollups",
        sa.Column("span_s", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("start_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
        *(sa.Column(name, sa.Double, nullable=False) for name in _MOMENTS),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _HISTOGRAMS),
    )
    op.create_index("rollups_time", "rollups", ["span_s", "start_s"])


def _create_insights() -> None:
    op.create_table(
        "insights",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
    )


def _create_certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("issued_s", sa.Double, nullable=False),
        sa.Column("standing", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
    )
    op.create_index("certificates_route", "certificates", ["route", "issued_s"])


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("password", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("last_seen_s", sa.Double),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("expires_s", sa.Double, nullable=False),
    )
    op.create_index("sessions_expires", "sessions", ["expires_s"])
    op.create_index("sessions_user", "sessions", ["user_name"])
