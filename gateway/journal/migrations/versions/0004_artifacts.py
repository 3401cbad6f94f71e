"""Artefacts: the trained files that replicas take over from each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("checksum", sa.Text, primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
    )
