"""Finds cases for a route's file of demonstrations: questions in the journal whose answers were scored as right.

Only single turns whose text was stored are used, because a case must make sense alone. Of several feedbacks on an
answer the newest counts, and of several right answers to a question the newest.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from gateway.journal.recent import joined_to_route
from gateway.journal.record import DecisionRecord
from gateway.journal.store import Store
from gateway.journal.tables import decisions, feedback
from gateway.solved import CaseLine

MOST_ROWS = 20_000
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


def solved_cases(store: Store, route: str, *, least: float = 0.9, most: int = 1000) -> list[CaseLine]:
    """At most `most` cases with a score of at least `least`, oldest first, because a route keeps the file's last lines.
    """
    query = (
        sa.select(decisions.c.id, decisions.c.payload, feedback.c.score)
        .join_from(feedback, decisions, feedback.c.decision_id == decisions.c.id)
        .where(joined_to_route(store.engine, route), feedback.c.score.is_not(None))
        .order_by(feedback.c.time_s.desc(), feedback.c.id)
        .limit(MOST_ROWS)
    )
    found, judged = dict[tuple[str, str], CaseLine](), set[str]()
    with store.engine.connect() as connection:
        for row in connection.execute(query):
            if row.id in judged:
                continue
            judged.add(row.id)
            record = _decode(row.payload)
            told = record.prompt_text and record.answer_text and record.turns == 1
            if row.score >= least and told:
                case = CaseLine(record.prompt_text, record.answer_text, record.tenant)
                found.setdefault((record.tenant, record.prompt_text), case)
            if len(found) == most:
                break
    return list(found.values())[::-1]
