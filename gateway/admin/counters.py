"""Counters for scripts: spend per tenant, key and route, and requests per time step, route and model.

Ten thousand keys have hundreds of thousands of rows, so the rows are encoded as they come from the store: as models,
which are validated, they would take several times as long.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from gateway.admin.guard import Services, Viewer
from gateway.errors import CallerError
from gateway.journal.retention import STATS_KEPT_S
from gateway.journal.tables import LATENCY_BOUNDS_S, LATENCY_COLUMNS
from gateway.journal.upsert import Row

router = APIRouter(prefix="/admin", tags=["counters"])
_DAY_S = 86400.0
_NANO = {"cost_nanousd": "cost_usd", "saved_nanousd": "saved_usd"}
MOST_STEPS = 11_000
"""Most time steps in one response: a week of minutes, or all hours that are stored."""


class SpendRow(BaseModel):
    """Spend of one tenant, key and route since the requested hour."""

    tenant: str
    key_id: str
    route: str
    requests: int
    cost_usd: float


class StatsRow(BaseModel):
    """One time step of one route and model. `latency_counts` has one count per bound of `Stats`, and one above."""

    time_s: int
    route: str
    model: str
    requests: int
    errors: int
    cache_hits: int
    escalations: int
    cost_usd: float
    saved_usd: float
    input_tokens: int
    output_tokens: int
    latency_counts: list[int]


Time = Annotated[float, Query(allow_inf_nan=False)]
"""A time in Unix seconds."""


class Stats(BaseModel):
    """Counters, oldest first, with the upper bounds of their latency histogram."""

    latency_bounds_s: list[float] = list(LATENCY_BOUNDS_S)
    data: list[StatsRow]


@router.get("/spend", response_model=list[SpendRow])
def list_spend(services: Services, who: Viewer, since_s: Time = 0.0) -> Response:
    """Spend per tenant, key and route, from the hour that holds `since_s`."""
    return _json([_in_dollars(row) for row in services.store.spend_since(since_s)])


@router.get("/stats", response_model=Stats)
def list_stats(
    services: Services,
    who: Viewer,
    since_s: Time | None = None,
    until_s: Time | None = None,
    route: str = "",
    step_s: Annotated[int, Query(ge=60, le=86400, multiple_of=60)] = 60,
) -> Response:
    """Request counters per step, route and model, of the last day by default."""
    until_s = time.time() + 60 if until_s is None else until_s
    since_s = until_s - _DAY_S if since_s is None else since_s
    if min(until_s - since_s, STATS_KEPT_S) / step_s > MOST_STEPS:
        raise CallerError(f"more than {MOST_STEPS} steps: ask for a longer step_s, or for less time at once",
                          status=422, param="step_s")  # fmt: skip
    rows = services.store.stats(since_s, until_s, route=route, step_s=step_s)
    return _json({"latency_bounds_s": LATENCY_BOUNDS_S, "data": [_stats_row(row) for row in rows]})


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _in_dollars(row: Row) -> Row:
    """The row with its columns of nano-dollars renamed and converted to dollars."""
    for nano, dollars in _NANO.items():
        if nano in row:
            row[dollars] = row.pop(nano) / 1e9
    return row


def _stats_row(row: Row) -> Row:
    """The row with the columns of its latency histogram as one list."""
    row["latency_counts"] = [row.pop(name) for name in LATENCY_COLUMNS]
    return _in_dollars(row)
