"""Adds decisions to the rollups of the admin pages as they are stored; takes a few microseconds each.

The savings against a model that was not asked can be computed later for any model and price, from the tokens of the
answers that clients got, and from sums of products for their variance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.journal.outcome import AUDIT_KEY, explored_nanousd, kept_attempt
from gateway.journal.record import DecisionRecord
from gateway.journal.rollup_tables import (
    ADDED,
    ALL_TENANTS,
    COUNTS,
    LATENCY,
    MOMENTS,
    SPANS_S,
    TTFT,
    bucket,
    tenant_key,
)
from gateway.wire.pass_through import PASSED

Key = tuple[int, str, str, str]
"""Minute, route, answered model, tenant."""
Sums = dict[Key, list[float]]
_AT = {name: place for place, name in enumerate(ADDED)}
_LATENCY_AT, _TTFT_AT = _AT[LATENCY[0]], _AT[TTFT[0]]
(
    _REQUESTS, _ERRORS, _EXACT, _SHARED, _SEMANTIC, _ESCALATIONS, _EXPLORED, _AUDITS, _COST, _SAVED, _JUDGE,
    _EXPLORATION, _CASCADE, _IN, _OUT, _ANSWERS, _ANSWER_IN, _ANSWER_OUT,
) = range(len(COUNTS))  # fmt: skip
(_ANSWER_S, _II, _IO, _OO, _IC, _OC, _CC, _SS) = range(len(COUNTS), len(COUNTS) + len(MOMENTS))
UNLIKE = frozenset({"embeddings", *PASSED})
"""Surfaces on which no other model could have given the answer, so that there are no savings."""
_HITS = {"hit": _EXACT, "shared": _SHARED, "semantic": _SEMANTIC}


def rollup_rows(records: Iterable[DecisionRecord]) -> list[dict[str, Any]]:
    """Rows to add to `rollups`, each key once."""
    by_minute: Sums = {}
    for record in records:
        tally(by_minute, record)
    return rows_of(by_minute)


def rows_of(by_minute: Sums) -> list[dict[str, Any]]:
    """Rows to add to `rollups` of what was tallied, each key once."""
    sums: dict[tuple[int, str, int, str, str], list[float]] = {}
    for (minute_s, route, model, tenant), counts in by_minute.items():
        for span_s in SPANS_S:
            start_s = minute_s // span_s * span_s
            for whose in (ALL_TENANTS, tenant_key(tenant)):
                total = sums.get((span_s, whose, start_s, route, model))
                if total is None:
                    sums[span_s, whose, start_s, route, model] = counts.copy()
                else:
                    total[:] = map(float.__add__, total, counts)
    return [_row(key, counts) for key, counts in sums.items()]


def _row(key: tuple[int, str, int, str, str], counts: list[float]) -> dict[str, Any]:
    row = dict(zip(("span_s", "tenant", "start_s", "route", "model"), key, strict=True))
    whole = len(COUNTS), len(COUNTS) + len(MOMENTS)
    values = [*map(int, counts[: whole[0]]), *counts[whole[0] : whole[1]], *map(int, counts[whole[1] :])]
    return row | dict(zip(ADDED, values, strict=True))


def tally(sums: Sums, record: DecisionRecord) -> None:
    """Add one decision to its minute."""
    key = (int(record.time_s) // 60 * 60, _plain(record.route), _plain(record.answered_model), _plain(record.tenant))
    row = sums.get(key)
    if row is None:
        row = sums[key] = [0.0] * len(ADDED)
    cost = record.cost_nanousd
    row[_COST] += cost
    row[_CC] += float(cost) * cost
    used = _tally_attempts(row, record)
    if record.key_id == AUDIT_KEY:
        row[_AUDITS] += 1
        row[_JUDGE] += cost
        return
    row[_REQUESTS] += 1
    if record.status >= 400:
        row[_ERRORS] += 1
    if record.cache in _HITS:
        row[_HITS[record.cache]] += 1
        row[_SAVED] += record.saved_nanousd
        row[_SS] += float(record.saved_nanousd) * record.saved_nanousd
    elif used is not None and record.status < 400 and record.surface not in UNLIKE:
        _tally_answer(row, used[0], used[1], cost)
        if record.latency_s is not None:
            row[_ANSWER_S] += record.latency_s
    if record.model and record.answered_model in record.plan[1:]:
        row[_ESCALATIONS] += 1
    explored = explored_nanousd(record)
    if explored is not None:
        row[_EXPLORED] += 1
        row[_EXPLORATION] += explored
    if record.latency_s is not None:
        row[_LATENCY_AT + bucket(record.latency_s)] += 1
    if record.ttft_s is not None:
        row[_TTFT_AT + bucket(record.ttft_s)] += 1


def _tally_attempts(row: list[float], record: DecisionRecord) -> tuple[int, int] | None:
    """Add the tokens of all attempts, and the cost of those whose answers were not kept. Returns the input and output
    tokens of the kept one, or None where there is none.
    """
    kept, used = kept_attempt(record), None
    for attempt in record.attempts:
        into, out = attempt.tokens
        row[_IN] += into
        row[_OUT] += out
        if attempt is kept:
            used = into, out
        elif record.key_id != AUDIT_KEY:
            row[_CASCADE] += attempt.cost_nanousd
    return used


def _tally_answer(row: list[float], into: int, out: int, cost: int) -> None:
    row[_ANSWERS] += 1
    row[_ANSWER_IN] += into
    row[_ANSWER_OUT] += out
    row[_II] += into * into
    row[_IO] += into * out
    row[_OO] += out * out
    row[_IC] += float(into) * cost
    row[_OC] += float(out) * cost


def _plain(text: str) -> str:
    return text.replace("\x00", "") if "\x00" in text else text
