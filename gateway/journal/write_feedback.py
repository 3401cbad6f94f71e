"""Feedback into rows, attached to the decision it speaks of, whichever of the two is shipped first.

Feedback names its decision by the decision's id, or by the id of the response or the request. It is attached only to a
decision of the tenant that gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from gateway.journal.record import ANY_TENANT, DecisionRecord, FeedbackRecord
from gateway.journal.tables import decisions, feedback
from gateway.journal.upsert import Row, clean, json_list, put_rows

_SAID_BY = ("response_id", "request_id")
"""Other names a decision goes by, the more telling one first."""
_SPOKEN_OF = "SELECT id, decision_id, tenant FROM feedback WHERE decision_id IN (SELECT value FROM json_each(?))"
_ANY_WAITING = sa.select(feedback.c.id).where(feedback.c.decision_id.is_(None)).limit(1)


def write_feedback(connection: sa.Connection, records: Sequence[FeedbackRecord]) -> None:
    """New or newer feedback, attached to its decision where that is known already."""
    if not records:
        return
    rows = [_feedback_row(record) for record in sorted(records, key=lambda record: record.time_s)]
    _find_decisions(connection, rows)
    put_rows(connection, feedback, rows, newer_than=feedback.c.time_s)


def attach_waiting(connection: sa.Connection, records: Iterable[DecisionRecord]) -> None:
    """Feedback can be shipped before its decision: another worker wrote it. Mostly none is waiting."""
    _own_early(connection, records)
    if connection.execute(_ANY_WAITING).first() is None:
        return
    owners = {
        (tenant, name, clean(id)): (clean(record.id), clean(record.tenant))
        for record in records
        for name, id in (("response_id", record.response_id), ("request_id", record.request_id))
        if id
        for tenant in (clean(record.tenant), ANY_TENANT)
    }
    names = {id for _, _, id in owners}
    waiting = sa.select(feedback).where(
        feedback.c.decision_id.is_(None),
        sa.or_(feedback.c.response_id.in_(names), feedback.c.request_id.in_(names)),
    )
    for row in connection.execute(waiting).mappings().all():
        owner = next((owners.get((row["tenant"], name, row[name])) for name in _SAID_BY if row[name]), None)
        if owner:
            update = sa.update(feedback).where(feedback.c.id == row["id"])
            connection.execute(update.values(decision_id=owner[0], tenant=owner[1]))


def _find_decisions(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Fills `decision_id` from the response or request id, within the feedback's own tenant; another's is none."""
    _own_only(connection, rows)
    for name in _SAID_BY:
        wanted = {row[name] for row in rows if row["decision_id"] is None and row[name]}
        if not wanted:
            continue
        column = decisions.c[name]
        query = sa.select(column, decisions.c.tenant, decisions.c.id).where(column.in_(wanted))
        latest_last = connection.execute(query.order_by(decisions.c.time_s))
        found = {}
        for key, tenant, id in latest_last:
            found[key, tenant] = found[key, ANY_TENANT] = (id, tenant)
        for row in rows:
            if row["decision_id"] is None and (owner := found.get((row[name], row["tenant"]))):
                row["decision_id"], row["tenant"] = owner


def _own_only(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Whoever knows or guesses a decision's id can't speak of it but within its tenant."""
    wanted = {row["decision_id"] for row in rows if row["decision_id"]}
    if not wanted:
        return
    query = sa.select(decisions.c.id, decisions.c.tenant).where(decisions.c.id.in_(wanted))
    owners = {row.id: row.tenant for row in connection.execute(query)}
    for row in rows:
        owner = owners.get(row["decision_id"], row["tenant"])
        if row["tenant"] == ANY_TENANT:
            row["tenant"] = owner
        elif row["tenant"] != owner:
            row["decision_id"] = None


def _own_early(connection: sa.Connection, records: Iterable[DecisionRecord]) -> None:
    """As `_own_only`, for what was said of these decisions before they came."""
    tenants = {clean(record.id): clean(record.tenant) for record in records}
    if connection.dialect.name == "sqlite":  # binding the ids one by one takes more than twice as long
        found = connection.exec_driver_sql(_SPOKEN_OF, (json_list(tenants),))
    else:
        query = sa.select(feedback.c.id, feedback.c.decision_id, feedback.c.tenant)
        found = connection.execute(query.where(feedback.c.decision_id.in_(tenants)))
    for id, decision_id, tenant in found.all():
        owner = tenants[decision_id]
        if tenant != owner:
            right = {"tenant": owner} if tenant == ANY_TENANT else {"decision_id": None}
            connection.execute(sa.update(feedback).where(feedback.c.id == id).values(right))


def _feedback_row(record: FeedbackRecord) -> Row:
    return {
        "id": clean(record.id),
        "time_s": record.time_s,
        "tenant": clean(record.tenant),
        "decision_id": clean(record.decision_id) or None,
        "response_id": clean(record.response_id),
        "request_id": clean(record.request_id),
        "score": record.score,
        "label": clean(record.label),
        "comment": clean(record.comment),
        "source": clean(record.source),
    }
