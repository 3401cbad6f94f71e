"""Drop the index of decisions by time and id: the index for searches begins with the same columns."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("decisions_time", "decisions", if_exists=True)
