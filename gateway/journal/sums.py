"""Reads sums of the rollups by queries over a few hundred rows, whatever the traffic."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

import sqlalchemy as sa

from gateway.journal.rollup_tables import ADDED, ALL_TENANTS, BOUNDS_S, COUNTS, LATENCY, MOMENTS, rollups, tenant_key
from gateway.journal.store import Store

Sums = dict[str, Any]


def sums(
    store: Store, span_s: int, since_s: float, until_s: float, *, by: Sequence[str] = (), route: str = "",
    tenant: str = "", names: Sequence[str] = ADDED,
) -> list[Sums]:
    """Sums per group of `by` (start_s, route, model); exactly one row, perhaps of zeros, where `by` is empty."""
    query = _summed(span_s, since_s, until_s, by, names, route, tenant)
    with store.engine.connect() as connection:
        return [_numbers(dict(row)) for row in connection.execute(query).mappings()]


def _summed(
    span_s: int, since_s: float, until_s: float, by: Sequence[str], names: Sequence[str], route: str, tenant: str
) -> sa.Select[Any]:
    groups = [rollups.c[name] for name in by]
    whose = tenant_key(tenant) if tenant else ALL_TENANTS
    query = sa.select(*groups, *(sa.func.sum(rollups.c[name]).label(name) for name in names)).where(
        rollups.c.span_s == span_s, rollups.c.tenant == whose,
        rollups.c.start_s >= int(since_s), rollups.c.start_s < int(until_s),
    )  # fmt: skip
    if route:
        query = query.where(rollups.c.route == route)
    return query.group_by(*groups) if groups else query


def sums_by_tenant(
    store: Store, span_s: int, since_s: float, until_s: float, *, route: str = "", names: Sequence[str] = COUNTS
) -> list[Sums]:
    """Sums per tenant, by the tenant's name."""
    name_of = sa.func.substr(rollups.c.tenant, 2).label("tenant")
    query = sa.select(name_of, *(sa.func.sum(rollups.c[name]).label(name) for name in names)).where(
        rollups.c.span_s == span_s, rollups.c.tenant != ALL_TENANTS,
        rollups.c.start_s >= int(since_s), rollups.c.start_s < int(until_s),
    )  # fmt: skip
    if route:
        query = query.where(rollups.c.route == route)
    with store.engine.connect() as connection:
        return [_numbers(dict(row)) for row in connection.execute(query.group_by(rollups.c.tenant)).mappings()]


def merged(rows: Sequence[Sums]) -> Sums:
    """The sum of several groups; zeros where there are none."""
    names = [name for name in (rows[0] if rows else {}) if name in _NUMBERS]
    return {name: sum(row[name] for row in rows) for name in names} if rows else dict.fromkeys(ADDED, 0)


def quantile_s(row: Sums, share: float, columns: Sequence[str] = LATENCY) -> float | None:
    """The quantile of a histogram in seconds, interpolated logarithmically within a bucket; None where it is empty.

    In the bucket beyond the last bound it is that bound.
    """
    counts = [row[name] for name in columns]
    rank, seen = share * sum(counts), 0.0
    if not sum(counts):
        return None
    for place, count in enumerate(counts):
        if count and seen + count >= rank:
            if place >= len(BOUNDS_S):
                return BOUNDS_S[-1]
            low = log(BOUNDS_S[place - 1] if place else BOUNDS_S[0] / 4)
            inside = max(0.0, min(1.0, (rank - seen) / count))
            return exp(low + inside * (log(BOUNDS_S[place]) - low))
        seen += count
    return BOUNDS_S[-1]


_NUMBERS = frozenset(ADDED)
_FLOATS = frozenset(MOMENTS)


def _numbers(row: Sums) -> Sums:
    """The row with sums as int or float: in PostgreSQL sums of integers are Decimal, and sums of no rows are NULL."""
    return {
        name: value if name not in _NUMBERS else float(value or 0) if name in _FLOATS else int(value or 0)
        for name, value in row.items()
    }
