from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.journal.backfill import count_old, waiting
from gateway.journal.outcome import CACHED, ERROR, ESCALATED, EXPLORED, explored_nanousd, flags_of, named
from gateway.journal.record import CandidateRecord, DecisionRecord
from gateway.journal.rollup_tables import LATENCY, TTFT, rollups, tenant_key
from gateway.journal.store import Store
from gateway.journal.tables import decisions
from gateway.journal.write import write_records
from tests.gateway.journal.records import NOON_S, attempt, decision

EXPLORING = (
    CandidateRecord(model="small", quality=0.7, cost_usd=1e-6, probability=0.9),
    CandidateRecord(model="large", quality=0.9, cost_usd=9e-6, probability=0.1),
)


def traffic() -> list[DecisionRecord]:
    """One decision of each kind, over two minutes, routes and tenants."""
    return [
        decision(0, ttft_s=0.05),
        decision(1, status=502, attempts=(attempt("small", failure="timeout", cost_nanousd=300),), answered_model="",
                 cost_nanousd=300),
        decision(2, cache="semantic", attempts=(), model="", candidates=(), cost_nanousd=0, saved_nanousd=700),
        decision(3, plan=("small", "large"), attempts=(attempt("small"), attempt("large", cost_nanousd=9000)),
                 answered_model="large", cost_nanousd=10_000),
        decision(4, model="large", propensity=0.1, candidates=EXPLORING, answered_model="large",
                 attempts=(attempt("large", cost_nanousd=9000),), cost_nanousd=9000),
        decision(5, key_id="audit", route="auto", cost_nanousd=1000),
        decision(70, route="code", tenant="other"),
    ]  # fmt: skip


def rows(store: Store, **where: Any) -> list[dict[str, Any]]:
    query = sa.select(rollups).where(*(rollups.c[name] == value for name, value in where.items()))
    with store.engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(*rollups.primary_key)).mappings()]


def total(found: list[dict[str, Any]], name: str) -> int:
    return sum(row[name] for row in found)


def write(store: Store, records: list[DecisionRecord]) -> None:
    with store.engine.begin() as connection:
        write_records(connection, records)


def test_sums_agree_at_every_resolution(store: Store) -> None:
    """Minutes, hours and days have the same sums, and so have all tenants together."""
    write(store, traffic())
    for name in ("requests", "errors", "cost_nanousd", "cascade_nanousd", "judge_nanousd", "input_cost"):
        sums = {span_s: total(rows(store, span_s=span_s, tenant=""), name) for span_s in (60, 3600, 86400)}
        assert len(set(sums.values())) == 1
        apart = sum(total(rows(store, span_s=60, tenant=tenant_key(one)), name) for one in ("acme", "other"))
        assert apart == sums[60]


def test_searches_are_not_counted_as_tokens(store: Store) -> None:
    """One-hour cache writes are; unknown buckets in a record of another version are ignored."""
    usage = {"input": 10, "cache_write_1h": 7, "output": 5, "web_search": 3, "to_come": 9}
    write(store, [decision(1, attempts=(attempt("small", usage=usage),))])
    (day,) = rows(store, span_s=86400, tenant="")
    assert (day["input_tokens"], day["output_tokens"]) == (17, 5)
    assert (day["answer_input_tokens"], day["answer_output_tokens"]) == (17, 5)
    (minute,) = store.stats(NOON_S - 60, NOON_S + 3600)
    assert (minute["input_tokens"], minute["output_tokens"]) == (17, 5)


def test_each_kind_of_decision_is_counted(store: Store) -> None:
    """These are errors, hits, escalations, explored choices, judging, double spending, and the answers' tokens."""
    write(store, traffic())
    day = rows(store, span_s=86400, tenant="")
    counted = {name: total(day, name) for name in (
        "requests", "errors", "semantic_hits", "exact_hits", "escalations", "explored", "audits", "judge_nanousd",
        "exploration_nanousd", "cascade_nanousd", "saved_nanousd", "answers", "answer_input_tokens",
    )}  # fmt: skip
    assert counted == {
        "requests": 6, "errors": 1, "semantic_hits": 1, "exact_hits": 0, "escalations": 1, "explored": 1, "audits": 1,
        "judge_nanousd": 1000, "exploration_nanousd": 8000, "cascade_nanousd": 300 + 1000, "saved_nanousd": 700,
        "answers": 4, "answer_input_tokens": 4 * 12,
    }  # fmt: skip
    assert sum(total(day, name) for name in LATENCY) == 6
    assert sum(total(day, name) for name in TTFT) == 1


def test_a_record_that_is_shipped_twice_is_counted_once(store: Store) -> None:
    write(store, traffic())
    before = rows(store)
    write(store, traffic())
    assert rows(store) == before


def test_decisions_without_sums_are_added_later(store: Store) -> None:
    """Decisions from before there were sums get the same sums, in batches, and each only once."""
    write(store, traffic())
    wanted, flags = rows(store), stored_flags(store)
    with store.engine.begin() as connection:
        connection.execute(sa.delete(rollups))
        connection.execute(sa.update(decisions).values(counted=0, flags=0))
    assert waiting(store.engine)
    assert [count_old(store.engine, batch_rows=3) for _ in range(4)] == [3, 3, 1, 0]
    assert not waiting(store.engine)
    assert rows(store) == wanted
    assert stored_flags(store) == flags


def stored_flags(store: Store) -> dict[str, int]:
    with store.engine.connect() as connection:
        return {row.id: row.flags for row in connection.execute(sa.select(decisions.c.id, decisions.c.flags))}


@pytest.mark.parametrize(
    ("place", "flags"),
    [(0, 0), (1, ERROR), (2, CACHED), (3, ESCALATED), (4, EXPLORED)],
)
def test_a_decisions_kinds_are_bits(place: int, flags: int) -> None:
    """There is one bit per kind, each with a name."""
    record = traffic()[place]
    assert flags_of(record) == flags
    assert len(named(flags)) == bool(flags)


def test_chance_alone_is_no_exploration() -> None:
    """A router that splits traffic without estimates explores nothing, and the most likely choice isn't exploration."""
    blind = tuple(CandidateRecord(model=name, probability=p) for name, p in (("small", 0.2), ("large", 0.8)))
    assert flags_of(decision(1, candidates=blind)) == 0
    assert flags_of(decision(2, candidates=EXPLORING)) == 0


@settings(deadline=None)
@given(st.floats(0, 1e-3), st.floats(0, 1e-3), st.integers(0, 10**6))
def test_exploration_costs_at_most_what_was_paid(likely_usd: float, chosen_usd: float, cost_nanousd: int) -> None:
    """However wrong the estimates are, the parts of the cost add up to it."""
    candidates = (
        CandidateRecord(model="small", quality=0.7, cost_usd=likely_usd, probability=0.9),
        CandidateRecord(model="large", quality=0.9, cost_usd=chosen_usd, probability=0.1),
    )
    extra = explored_nanousd(
        decision(1, model="large", propensity=0.1, candidates=candidates, cost_nanousd=cost_nanousd)
    )
    assert extra is not None and 0 <= extra <= cost_nanousd


def test_the_fixtures_begin_at_a_whole_minute() -> None:
    """Therefore traffic() covers two minutes."""
    assert NOON_S % 60 == 0
