"""The admin API: what the journal knows, and the keys. FastAPI, off the hot path; every answer is typed.

Endpoints hold no policy: they ask the store (in FastAPI's threads) and shape what it says.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse

from gateway.admin import keys
from gateway.admin.desk import Desk
from gateway.admin.guard import identify
from gateway.admin.views import (
    AuditRow,
    Breaker,
    DecisionDetail,
    DecisionPage,
    DecisionRow,
    FeedbackRow,
    Health,
    ModelRow,
    RouterVersionRow,
    SpendRow,
    Stats,
    in_dollars,
    stats_row,
)
from gateway.errors import CallerError, HeadgateError, NotFound
from gateway.journal.lookup import find_decision
from gateway.journal.store import DecisionFilter
from gateway.journal.view import decision_view
from gateway.metrics import Metrics, merge

Limit = Annotated[int, Query(ge=1, le=1000)]
_DAY_S = 86400.0
_STATES = ("closed", "half_open", "open")

public = APIRouter()
admin = APIRouter(prefix="/admin", dependencies=[Depends(identify)])


def make_admin(desk: Desk) -> FastAPI:
    """The application over these means. The dashboard is mounted beside it by whoever wants it."""
    app = FastAPI(
        title="Headgate admin", docs_url="/admin/docs", openapi_url="/admin/openapi.json", redoc_url=None
    )
    app.state.desk = desk
    app.add_exception_handler(HeadgateError, _say)
    app.add_exception_handler(sa.exc.SQLAlchemyError, _database_away)
    app.include_router(public)
    app.include_router(admin)
    app.include_router(keys.router)
    return app


def desk_of(request: Request) -> Desk:
    """The means of the application that answers this request."""
    desk: Desk = request.app.state.desk
    return desk


Means = Annotated[Desk, Depends(desk_of)]


@public.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers; asks nobody else."""
    return {"status": "ok"}


@public.get("/readyz")
def readyz(desk: Means, response: Response) -> Health:
    """503 until the database has been reached once; degraded while it is away later."""
    fault = desk.shipping.fault
    if not desk.opened:
        response.status_code = 503
    return Health(
        status="unready" if not desk.opened else "degraded" if fault else "ready",
        database="away" if fault or not desk.opened else "ok",
        waiting_bytes=desk.shipping.waiting_bytes,
        quarantined=desk.shipping.quarantined,
        fault=fault,
    )


@public.get("/metrics")
def metrics(desk: Means) -> Response:
    """All workers together, as they last said, and how far the store lags behind them."""
    own = Metrics()
    own.watch("headgate_journal_lag_bytes", lambda: {(): float(desk.shipping.waiting_bytes)})
    text = merge([own.snapshot(), *(snapshot for _, snapshot in desk.snapshots())])
    return Response(text, media_type="text/plain; version=0.0.4")


@admin.get("/decisions")
def list_decisions(
    desk: Means, wanted: Annotated[DecisionFilter, Depends()], cursor: str = "", limit: Limit = 100
) -> DecisionPage:
    """Newest first; `cursor` is `next` of the page before."""
    rows = desk.store.decisions(wanted, before=_read_cursor(cursor), limit=limit)
    following = f"{rows[-1]['time_s']!r}:{rows[-1]['id']}" if len(rows) == limit else None
    return DecisionPage(data=[DecisionRow(**in_dollars(row)) for row in rows], next=following)


@admin.get("/decisions/{id}")
async def get_decision(desk: Means, id: str) -> DecisionDetail:
    """By decision, response or request id, shipped or not."""
    record = await find_decision(desk.store, desk.spool_dir, id)
    if record is None:
        raise NotFound(f"no decision has the id {id!r}")
    said = desk.store.feedback(decision_id=record.id)
    return DecisionDetail(decision=decision_view(record), feedback=[FeedbackRow(**row) for row in said])


@admin.get("/feedback")
def list_feedback(
    desk: Means, decision_id: str = "", before_s: float | None = None, limit: Limit = 100
) -> list[FeedbackRow]:
    """Newest first."""
    rows = desk.store.feedback(decision_id=decision_id, before_s=before_s, limit=limit)
    return [FeedbackRow(**row) for row in rows]


@admin.get("/spend")
def list_spend(desk: Means, since_s: float = 0.0) -> list[SpendRow]:
    """Per tenant, key and route since the hour that `since_s` lies in."""
    return [SpendRow(**in_dollars(row)) for row in desk.store.spend_since(since_s)]


@admin.get("/stats")
def list_stats(
    desk: Means,
    since_s: float | None = None,
    until_s: float | None = None,
    route: str = "",
    step_s: Annotated[int, Query(ge=60, le=86400, multiple_of=60)] = 60,
) -> Stats:
    """Counters per step, route and model: the last day unless told otherwise."""
    until_s = time.time() + 60 if until_s is None else until_s
    since_s = until_s - _DAY_S if since_s is None else since_s
    rows = desk.store.stats(since_s, until_s, route=route, step_s=step_s)
    return Stats(data=[stats_row(row) for row in rows])


@admin.get("/models")
def list_models(desk: Means) -> list[ModelRow]:
    """Configured deployments with their breakers, the worst of what the workers say."""
    found = breakers(desk)
    return [
        ModelRow(
            name=model.name,
            provider=model.provider,
            upstream_name=model.upstream_name or model.name,
            input_usd_per_mtok=model.input_usd_per_mtok,
            output_usd_per_mtok=model.output_usd_per_mtok,
            breaker=found.get((model.name, model.provider)),
        )
        for model in desk.config.models
    ]


@admin.get("/routers")
def list_router_versions(desk: Means, name: str = "") -> list[RouterVersionRow]:
    """Newest first."""
    versions = desk.store.router_versions(name)
    return [RouterVersionRow.model_validate(version, from_attributes=True) for version in versions]


@admin.get("/audit")
def list_audit(desk: Means, before_s: float | None = None, limit: Limit = 100) -> list[AuditRow]:
    """Newest first."""
    return [AuditRow(**row) for row in desk.store.audit_log(before_s=before_s, limit=limit)]


def breakers(desk: Desk) -> dict[tuple[str, str], Breaker]:
    """By model and provider, from the workers' snapshots."""
    levels: dict[tuple[str, str], float] = {}
    in_flight: dict[tuple[str, str], float] = {}
    for _, snapshot in desk.snapshots():
        series = msgspec.json.decode(snapshot, type=dict[str, list[tuple[tuple[str, ...], list[float]]]])
        for (model, provider), (level,) in series.get("headgate_breaker_state", []):
            levels[model, provider] = max(levels.get((model, provider), 0.0), level)
        for (model, provider), (count,) in series.get("headgate_deployment_in_flight", []):
            in_flight[model, provider] = in_flight.get((model, provider), 0.0) + count
    return {
        (model, provider): Breaker.model_validate(
            {
                "model": model,
                "provider": provider,
                "state": _STATES[int(level)],
                "in_flight": int(in_flight.get((model, provider), 0)),
            }
        )
        for (model, provider), level in levels.items()
    }


def _read_cursor(cursor: str) -> tuple[float, str] | None:
    if not cursor:
        return None
    time_text, _, id = cursor.partition(":")
    try:
        return float(time_text), id
    except ValueError:
        raise CallerError("cursor is not one of ours", param="cursor") from None


async def _say(_request: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, HeadgateError)
    error = {"message": fault.message, "type": fault.kind, "code": fault.code, "param": fault.param}
    return JSONResponse({"error": error}, fault.status)


async def _database_away(_request: Request, _fault: Exception) -> JSONResponse:
    error = {"message": "the database is away", "type": "server_error", "code": "journal_unavailable"}
    return JSONResponse({"error": {**error, "param": None}}, 503, {"retry-after": "1"})
