"""The events of responses that are made and streamed in the background, for whoever takes their streams up again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "response_events",
        sa.Column("response", sa.Text, primary_key=True),
        sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("last", sa.Boolean, nullable=False),
        sa.Column("events", sa.Text, nullable=False),
    )
    op.create_index("response_events_time", "response_events", ["time_s"])
