"""Writes feedback as rows attached to its decision, whichever of the two is shipped first.

Feedback names its decision by the id of the decision, of the response or of the request. It is only attached to a
decision of the tenant that gave it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from gateway.journal.record import ANY_TENANT, FeedbackRecord
from gateway.journal.tables import decisions, feedback
from gateway.journal.upsert import Row, clean, json_list, put_rows

_OTHER_IDS = ("response_id", "request_id")
"""Columns by which feedback may name its decision instead of the decision's id, the more specific one first."""
_FEEDBACK_ON = "SELECT id, decision_id, tenant FROM feedback WHERE decision_id IN (SELECT value FROM json_each(?))"
_TURN_LOCK = 0x7475726E
"""PostgreSQL advisory lock of the transaction that attaches feedback to decisions."""
_TAKE_TURN = sa.select(sa.func.pg_advisory_xact_lock(_TURN_LOCK))
_ANY_WAITING = sa.select(feedback.c.id).where(feedback.c.decision_id.is_(None)).limit(1)


def take_turn(connection: sa.Connection) -> None:
    """Wait until no other transaction is between this call and its commit. Of two at the same time, of which one stores
    a decision and the other its feedback, neither would see the other's rows. An SQLite file has one shipper.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_TAKE_TURN)


def write_feedback(connection: sa.Connection, records: Sequence[FeedbackRecord]) -> None:
    """Store new or newer feedback, attached to its decision where that is stored already."""
    if not records:
        return
    take_turn(connection)
    rows = [_feedback_row(record) for record in sorted(records, key=lambda record: record.time_s)]
    _find_decisions(connection, rows)
    put_rows(connection, feedback, rows, newer_than=feedback.c.time_s)


def attach_waiting(connection: sa.Connection, ids: Collection[str]) -> None:
    """Attach feedback that was shipped before its decision, as it may be where another worker wrote it. Usually none
    waits. `ids`: the new decisions, which are stored already.
    """
    _own_early(connection, ids)
    if connection.execute(_ANY_WAITING).first() is None:
        return
    columns = decisions.c.id, decisions.c.tenant, decisions.c.response_id, decisions.c.request_id
    latest_last = sa.select(*columns).where(decisions.c.id.in_(ids)).order_by(decisions.c.time_s)
    owners = {
        (tenant, name, row[name]): (row["id"], row["tenant"])
        for row in connection.execute(latest_last).mappings()
        for name in _OTHER_IDS
        if row[name]
        for tenant in (row["tenant"], ANY_TENANT)
    }
    names = {id for _, _, id in owners}
    waiting = sa.select(feedback).where(
        feedback.c.decision_id.is_(None),
        sa.or_(feedback.c.response_id.in_(names), feedback.c.request_id.in_(names)),
    )
    for row in connection.execute(waiting).mappings().all():
        owner = next((owners.get((row["tenant"], name, row[name])) for name in _OTHER_IDS if row[name]), None)
        if owner:
            update = sa.update(feedback).where(feedback.c.id == row["id"])
            connection.execute(update.values(decision_id=owner[0], tenant=owner[1]))


def _find_decisions(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Set `decision_id` by the response's or request's id, among decisions of the feedback's own tenant only."""
    _own_only(connection, rows)
    for name in _OTHER_IDS:
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
    """Detach feedback from decisions of other tenants, whose ids a caller may know or guess."""
    owners = _tenants_of(connection, {row["decision_id"] for row in rows if row["decision_id"]})
    for row in rows:
        owner = owners.get(row["decision_id"], row["tenant"])
        if row["tenant"] == ANY_TENANT:
            row["tenant"] = owner
        elif row["tenant"] != owner:
            row["decision_id"] = None


def _own_early(connection: sa.Connection, ids: Collection[str]) -> None:
    """Detach feedback of other tenants from decisions that are shipped after it, as `_own_only` does."""
    if connection.dialect.name == "sqlite":  # binding the ids one by one takes more than twice as long
        found = connection.exec_driver_sql(_FEEDBACK_ON, (json_list(ids),)).all()
    else:
        query = sa.select(feedback.c.id, feedback.c.decision_id, feedback.c.tenant)
        found = connection.execute(query.where(feedback.c.decision_id.in_(ids))).all()
    tenants = _tenants_of(connection, {decision_id for _, decision_id, _ in found})
    for id, decision_id, tenant in found:
        owner = tenants[decision_id]
        if tenant != owner:
            values = {"tenant": owner} if tenant == ANY_TENANT else {"decision_id": None}
            connection.execute(sa.update(feedback).where(feedback.c.id == id).values(values))


def _tenants_of(connection: sa.Connection, ids: Collection[str]) -> dict[str, str]:
    """The tenants of those of the decisions that are stored."""
    if not ids:
        return {}
    query = sa.select(decisions.c.id, decisions.c.tenant).where(decisions.c.id.in_(ids))
    return {row.id: row.tenant for row in connection.execute(query)}


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
