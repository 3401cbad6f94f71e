"""Stored responses that follow one another: which come next, and which were deleted while others still need them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    follows, held = sa.text("previous_response_id <> ''"), sa.text("deleted AND input <> ''")
    op.create_index("responses_previous", "responses", ["previous_response_id"], sqlite_where=follows,
                    postgresql_where=follows)  # fmt: skip
    op.create_index("responses_held", "responses", ["time_s", "id"], sqlite_where=held, postgresql_where=held)
