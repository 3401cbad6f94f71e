"""Exports the journal as outcome data: `queries.parquet` and `outcomes.parquet`, for `train` and `evaluate`.

There is one query per scored decision that a model answered, and one outcome per model that answered it and has a
score. Of several feedbacks on one decision the most trusted source counts (an operator's label, then user, check,
judge, and any other), and of one source the latest with a score. The answer of a cascade that was not kept has no
feedback and is only scored where a judge did so. Cache hits are left out, because no model was called.

The propensity of an outcome is the decision's where its model was planned; that of a fallback is unknown, since the
router did not choose it. Train and test are split by a hash of the text (or vector), so that equal queries are never
on both sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.journal.record import AttemptRecord, DecisionRecord
from gateway.journal.schema import check_schema, open_engine
from gateway.journal.tables import decisions, feedback
from gateway.journal.upsert import Row
from gateway.journal.vectors import vector_bytes
from gateway.wire.pass_through import PASSED

_PAGE_ROWS = 1000
_TRUST = {"label": 0, "user": 1, "check": 2, "judge": 3}
_TEST_SHARE = 0.2
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


@dataclass(slots=True)
class Exported:
    """What was exported: the numbers of queries and outcomes, and the models."""

    queries: int = 0
    outcomes: int = 0
    models: set[str] = field(default_factory=set)


def export(url: str, folder: Path, *, since_s: float = 0.0, route: str = "") -> Exported:
    """Write the scored decisions since `since_s`, of one route or of all; existing files are replaced."""
    import pyarrow as pa  # heavy, and only exports need it
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    engine = open_engine(url)
    check_schema(engine)
    done = Exported()
    query_schema, outcome_schema = _schemas(pa)
    try:
        with (
            pq.ParquetWriter(folder / "queries.parquet", query_schema) as queries,
            pq.ParquetWriter(folder / "outcomes.parquet", outcome_schema) as outcomes,
        ):
            for page in scored_decisions(engine, since_s, route):
                rows = [
                    (_query_row(record), found)
                    for record, score in page
                    if (found := _outcomes(record, score))
                ]
                found_rows = [row for _, found in rows for row in found]
                queries.write_table(pa.Table.from_pylist([row for row, _ in rows], query_schema))
                outcomes.write_table(pa.Table.from_pylist(found_rows, outcome_schema))
                done.queries += len(rows)
                done.outcomes += len(found_rows)
                done.models |= {row["model"] for row in found_rows}
    finally:
        engine.dispose()
    return done


def settle_score(rows: Sequence[Row]) -> float | None:
    """The one score of several feedbacks on a decision; None where none has one."""
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        return None
    best = min(scored, key=lambda row: (_TRUST.get(row["source"], len(_TRUST)), -row["time_s"]))
    return float(best["score"])


def scored_decisions(
    engine: sa.Engine, since_s: float = 0.0, route: str = ""
) -> Iterator[list[tuple[DecisionRecord, float | None]]]:
    """Decisions since `since_s` with feedback or a judge's score, each with its feedback's score or None, in pages, in
    the order of time. Decisions of passed-through requests, which have no query, are left out.
    """
    after: tuple[float, str] = (since_s, "")
    has_feedback = sa.exists().where(feedback.c.decision_id == decisions.c.id, feedback.c.score.is_not(None))
    scored = sa.or_(has_feedback, decisions.c.payload.contains('"judged"'))  # so that few other records are decoded
    while True:
        query = (
            sa.select(decisions.c.time_s, decisions.c.id, decisions.c.payload)
            .where(sa.tuple_(decisions.c.time_s, decisions.c.id) > sa.tuple_(*after), scored)
            .order_by(decisions.c.time_s, decisions.c.id)
            .limit(_PAGE_ROWS)
        )
        if route:
            query = query.where(decisions.c.route == route)
        with engine.connect() as connection:
            rows = connection.execute(query).all()
            if not rows:
                return
            feedbacks = feedback_on(connection, [row.id for row in rows])
        after = (rows[-1].time_s, rows[-1].id)
        read = ((_decode(row.payload), row.id) for row in rows)
        yield [(record, settle_score(feedbacks.get(id, []))) for record, id in read if record.surface not in PASSED]


def feedback_on(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[Row]]:
    """The feedback on these decisions, by decision id."""
    found: dict[str, list[Row]] = {}
    query = sa.select(feedback.c.decision_id, feedback.c.score, feedback.c.source, feedback.c.time_s)
    for row in connection.execute(query.where(feedback.c.decision_id.in_(ids))).mappings():
        found.setdefault(row["decision_id"], []).append(dict(row))
    return found


def _outcomes(record: DecisionRecord, score: float | None) -> list[Row]:
    """One row per model that answered and has a score; none for a cache hit."""
    if record.from_cache:
        return []
    answers = {attempt.model: attempt for attempt in record.attempts if not attempt.failure}
    rows = []
    for model, attempt in answers.items():
        kept = model == record.answered_model
        judged = attempt.evidence.judged if attempt.evidence else None
        worth = score if kept and score is not None else judged
        if worth is not None and math.isfinite(worth) and 0.0 <= worth <= 1.0:
            rows.append(_outcome_row(record, attempt, worth, kept))
    return rows


def _outcome_row(record: DecisionRecord, answer: AttemptRecord, score: float, kept: bool) -> Row:
    spent = sum(attempt.cost_nanousd for attempt in record.attempts if attempt.model == answer.model)
    planned = answer.model == record.model or answer.model in record.plan
    into, out = answer.tokens
    return {
        "query_id": record.id,
        "model": answer.model,
        "score": score,
        "cost_usd": spent / 1e9,
        "answer_cost_usd": answer.cost_nanousd / 1e9,
        "input_tokens": into,
        "output_tokens": out,
        "latency_s": _known(answer.latency_s),
        "confidence": _known(answer.evidence.confidence) if answer.evidence else None,
        "response": record.answer_text if kept else "",
        "propensity": _known(record.propensity) if planned else None,
    }


def _query_row(record: DecisionRecord) -> Row:
    return {
        "query_id": record.id,
        "task": record.route,
        "split": _split(record),
        "text": record.prompt_text,
        "time_s": record.time_s,
        "tenant": record.tenant,
        "features_version": record.features_version,
        "vector": vector_bytes(record),
    }


def _split(record: DecisionRecord) -> str:
    what = record.prompt_text.encode() or vector_bytes(record) or record.id.encode()
    draw = int.from_bytes(hashlib.sha256(what).digest()[:8]) / 2**64
    return "test" if draw < _TEST_SHARE else "train"


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _schemas(pa: Any) -> tuple[Any, Any]:  # pyarrow is untyped
    text, number = pa.string(), pa.float64()
    queries = {
        "query_id": text, "task": text, "split": text, "text": text, "time_s": number, "tenant": text,
        "features_version": text, "vector": pa.binary(),
    }  # fmt: skip
    outcomes = {
        "query_id": text, "model": text, "score": number, "cost_usd": number, "answer_cost_usd": number,
        "input_tokens": pa.int64(), "output_tokens": pa.int64(), "latency_s": number, "confidence": number,
        "response": text, "propensity": number,
    }  # fmt: skip
    return pa.schema(list(queries.items())), pa.schema(list(outcomes.items()))
