"""Tables of the admin pages: rollups of the traffic, and the control plane's own data.

`rollups` has a row per span (minute, hour, day), tenant, start, route and model. One tenant stands for all of them
together, so that a page reads a few hundred rows whatever the traffic.
"""

from __future__ import annotations

from bisect import bisect_left

import sqlalchemy as sa

from gateway.journal.tables import metadata

SPANS_S = (60, 3600, 86400)
KEPT_S = {60: 2 * 86400, 3600: 62 * 86400, 86400: 800 * 86400}
"""Seconds for which rows are kept, by their span in seconds."""
ALL_TENANTS = ""

BOUNDS_S = tuple(round(0.004 * 1.5**step, 6) for step in range(26))
"""Upper bounds of the histograms' buckets, 4 ms to 101 s; the last bucket has none."""
LATENCY = tuple(f"latency_{number:02d}" for number in range(len(BOUNDS_S) + 1))
TTFT = tuple(f"ttft_{number:02d}" for number in range(len(BOUNDS_S) + 1))
COUNTS = (
    "requests", "errors", "exact_hits", "shared_hits", "semantic_hits", "escalations", "explored", "audits",
    "cost_nanousd", "saved_nanousd", "judge_nanousd", "exploration_nanousd", "cascade_nanousd",
    "input_tokens", "output_tokens", "answers", "answer_input_tokens", "answer_output_tokens",
)  # fmt: skip
"""Tokens are counted for all attempts, and for the answers that clients got. `requests` doesn't include the gateway's
own calls (`audits`).
"""
MOMENTS = (
    "answer_s", "input_input", "input_output", "output_output", "input_cost", "output_cost", "cost_cost",
    "saved_saved",
)  # fmt: skip
"""Seconds of answers, and sums of products over requests, from which the variance of savings is computed."""
ADDED = (*COUNTS, *MOMENTS, *LATENCY, *TTFT)


def bucket(seconds: float) -> int:
    """Number of the histogram bucket of a latency."""
    return bisect_left(BOUNDS_S, seconds)


def tenant_key(tenant: str) -> str:
    """The value of the column `tenant` for one tenant; no name can give `ALL_TENANTS`."""
    return f"={tenant}"


rollups = sa.Table(
    "rollups",
    metadata,
    sa.Column("span_s", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("start_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
    *(sa.Column(name, sa.Double, nullable=False) for name in MOMENTS),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in (*LATENCY, *TTFT)),
    sa.Index("rollups_time", "span_s", "start_s"),
)

insights = sa.Table(
    "insights",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
)
"""Latest results that take seconds to compute (frontiers, alarms, what to label)."""

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("issued_s", sa.Double, nullable=False),
    sa.Column("standing", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Index("certificates_route", "route", "issued_s"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("last_seen_s", sa.Double),
    sa.Column("version", sa.Integer, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double, nullable=False),
    sa.Index("sessions_expires", "expires_s"),
    sa.Index("sessions_user", "user_name"),
)
