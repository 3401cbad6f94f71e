"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_LATENCY = tuple(f"latency_{number:02d}" for number in range(13))


def upgrade() -> None:
    """Decisions, what is said of them, what is made from them, and the control plane's own state."""
    _create_decisions()
    _create_feedback()
    _create_responses()
    _create_keys()
    _create_settings()
    _create_router_versions()
    _create_audit()
    _create_spool_offsets()
    _create_spend()
    _create_stats()


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("response_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("answered_model", sa.Text, nullable=False),
        sa.Column("router", sa.Text, nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("cache", sa.Text, nullable=False),
        sa.Column("latency_s", sa.Double),
        sa.Column("payload", sa.Text, nullable=False),
    )
    op.create_index("decisions_time", "decisions", ["time_s", "id"])
    op.create_index("decisions_tenant_time", "decisions", ["tenant", "time_s"])
    op.create_index("decisions_route_time", "decisions", ["route", "time_s"])
    op.create_index("decisions_model_time", "decisions", ["answered_model", "time_s"])
    op.create_index("decisions_request", "decisions", ["request_id"])
    op.create_index("decisions_response", "decisions", ["response_id"])


def _create_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("decision_id", sa.Text),
        sa.Column("response_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
    )
    op.create_index("feedback_time", "feedback", ["time_s"])
    op.create_index("feedback_decision", "feedback", ["decision_id"])


def _create_responses() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("decision_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("previous_response_id", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_index("responses_time", "responses", ["time_s"])


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("key_hash", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("revoked_s", sa.Double),
        sa.Column("payload", sa.Text, nullable=False),
    )


def _create_settings() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
    )


def _create_router_versions() -> None:
    op.create_table(
        "router_versions",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("artifact", sa.Text, nullable=False),
        sa.Column("checksum", sa.Text, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("audit_time", "audit", ["time_s"])


def _create_spool_offsets() -> None:
    op.create_table(
        "spool_offsets",
        sa.Column("segment", sa.Text, primary_key=True),
        sa.Column("shipped_bytes", sa.BigInteger, nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
    )


def _create_spend() -> None:
    op.create_table(
        "spend",
        sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
    )


def _create_stats() -> None:
    op.create_table(
        "stats",
        sa.Column("minute_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("cache_hits", sa.BigInteger, nullable=False),
        sa.Column("escalations", sa.BigInteger, nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
        sa.Column("saved_nanousd", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _LATENCY),
    )
