"""The journal's tables: columns for what queries need, and beside them the whole record as JSON text.

It is text and not a JSON type, so that it has the record's own bytes, is the same in SQLite and PostgreSQL, and can
hold any string of JSON. `migrations/` creates these tables; a test compares both.
"""

from __future__ import annotations

from bisect import bisect_left

import sqlalchemy as sa

metadata = sa.MetaData()

LATENCY_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets; the last bucket has none."""
LATENCY_COLUMNS = tuple(f"latency_{number:02d}" for number in range(len(LATENCY_BOUNDS_S) + 1))


def latency_bucket(latency_s: float) -> int:
    """Index into `LATENCY_COLUMNS` of a latency's bucket."""
    return bisect_left(LATENCY_BOUNDS_S, latency_s)


decisions = sa.Table(
    "decisions",
    metadata,
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
    sa.Column("flags", sa.Integer, nullable=False, server_default="0"),  # of gateway.journal.outcome
    sa.Column("counted", sa.Integer, nullable=False, server_default="0"),  # 1: it is in `rollups`
    sa.Index("decisions_search", "time_s", "id", "route", "tenant", "answered_model", "key_id", "flags",
             "cost_nanousd"),
    sa.Index("decisions_uncounted", "counted", sqlite_where=sa.text("counted = 0"),
             postgresql_where=sa.text("counted = 0")),
    sa.Index("decisions_tenant_time", "tenant", "time_s"),
    sa.Index("decisions_route_time", "route", "time_s"),
    sa.Index("decisions_model_time", "answered_model", "time_s"),
    sa.Index("decisions_request", "request_id"),
    sa.Index("decisions_response", "response_id"),
)

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("decision_id", sa.Text),  # NULL until its decision is stored
    sa.Column("response_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Index("feedback_time", "time_s"),
    sa.Index("feedback_decision", "decision_id"),
)

responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("decision_id", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("previous_response_id", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Index("responses_time", "time_s"),
    sa.Index("responses_previous", "previous_response_id", sqlite_where=sa.text("previous_response_id <> ''"),
             postgresql_where=sa.text("previous_response_id <> ''")),
    sa.Index("responses_held", "time_s", "id", sqlite_where=sa.text("deleted AND input <> ''"),
             postgresql_where=sa.text("deleted AND input <> ''")),
)

response_events = sa.Table(
    "response_events",
    metadata,
    sa.Column("response", sa.Text, primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),  # number of the first event
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("last", sa.Boolean, nullable=False),
    sa.Column("events", sa.Text, nullable=False),
    sa.Index("response_events_time", "time_s"),
)

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),  # last used
    sa.Column("metadata", sa.Text, nullable=False),
    sa.Column("places", sa.BigInteger, nullable=False),  # the next item's place
    sa.Column("items", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),  # of its items
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Index("conversations_time", "time_s"),
)

conversation_items = sa.Table(
    "conversation_items",
    metadata,
    sa.Column("conversation", sa.Text, primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Index("conversation_items_id", "conversation", "id", unique=True),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("key_hash", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("revoked_s", sa.Double),
    sa.Column("payload", sa.Text, nullable=False),
)

settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
)

router_versions = sa.Table(
    "router_versions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("artifact", sa.Text, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("audit_time", "time_s"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("checksum", sa.Text, primary_key=True),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
)

spool_offsets = sa.Table(
    "spool_offsets",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("shipped_bytes", sa.BigInteger, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),
)

spend = sa.Table(
    "spend",
    metadata,
    sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
)

stats = sa.Table(
    "stats",
    metadata,
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
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in LATENCY_COLUMNS),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("wish", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("lease_s", sa.Double, nullable=False),
    sa.Column("at_risk_nanousd", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Index("jobs_tenant_time", "tenant", "created_s"),
    sa.Index("jobs_state", "state"),
)

job_items = sa.Table(
    "job_items",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),  # started | open | done | failed
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("worst_nanousd", sa.BigInteger, nullable=False),  # of the call under way
    sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
    sa.Column("decision_id", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
)

job_parts = sa.Table(
    "job_parts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # sent | ended
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("worst_nanousd", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Index("job_parts_job", "job"),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("expires_s", sa.Double),
    sa.Index("files_tenant_time", "tenant", "created_s"),
)

file_chunks = sa.Table(
    "file_chunks",
    metadata,
    sa.Column("file", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
