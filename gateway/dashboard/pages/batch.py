"""Batch jobs: what a budget would buy before anything is spent, how far a job is, and what came of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from gateway.admin.guard import Actor, desk_of, operator, viewer
from gateway.batch.jobs import ENDED, Jobs, Wish
from gateway.batch.types import PLAN_FILE, Point
from gateway.batch.view import job_view
from gateway.dashboard.charts import Spot
from gateway.dashboard.page import render
from gateway.errors import CallerError

router = APIRouter()
PAGE = 50
SHOWN_ITEMS = 50
WISHES: dict[str, Wish] = {"pause": "pause", "resume": "", "cancel": "cancel"}


class _Planned(msgspec.Struct):
    """What of a plan is shown; the rest of plan.json is not read."""

    frontier: tuple[Point, ...]
    chosen: Point
    budget_usd: float | None = None
    deadline_s: float | None = None


@router.get("/batch")
def show_all(request: Request, who: Annotated[Actor, Depends(viewer)], after: str = "") -> Response:
    """Newest first."""
    found = [job_view(job) for job in Jobs(desk_of(request).store.engine).page(after=after, limit=PAGE)]
    context = {
        "title": "Batch jobs", "rows": found, "further": found[-1]["id"] if len(found) == PAGE else "",
        "first": bool(after),
    }  # fmt: skip
    return render(request, who, "batch.html", context)


@router.get("/batch/{id}")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], id: str) -> Response:
    """One job: its plan, its progress, its latest answers."""
    return _page(request, who, id)


@router.post("/batch/{id}/{turn}")
def turn(request: Request, who: Annotated[Actor, Depends(operator)], id: str, turn: str) -> Response:
    """`turn`: pause, resume, cancel."""
    if turn not in WISHES:
        raise CallerError(f"there is no turn '{turn}'", status=404)
    desk = desk_of(request)
    Jobs(desk.store.engine).ask(id, WISHES[turn], time.time())
    desk.store.note(who.name, f"batch.{turn}", id)
    said = {"pause": "It pauses once the calls under way have ended.", "resume": "It goes on.",
            "cancel": "It is being cancelled; calls under way are still paid for."}  # fmt: skip
    return _page(request, who, id, said=said[turn])


def _page(request: Request, who: Actor, id: str, said: str = "") -> Response:
    jobs = Jobs(desk_of(request).store.engine)
    job = jobs.find(id)
    planned = _planned(job.card.folder)
    context = {
        "title": job.card.source or "Batch job", "job": job_view(job), "ended": job.state in ENDED,
        "planned": planned, "spots": _spots(planned), "hull": _hull(planned),
    }  # fmt: skip
    return render(request, who, "batch_job.html", context, said=said)


def _planned(folder: str) -> _Planned | None:
    """None: made on another machine, or gone."""
    if not folder:
        return None
    try:
        return msgspec.json.decode((Path(folder) / PLAN_FILE).read_bytes(), type=_Planned)
    except (OSError, msgspec.MsgspecError):
        return None


def _spots(planned: _Planned | None) -> list[Spot]:
    if planned is None:
        return []
    return [*(_spot(one, "model") for one in planned.frontier), _spot(planned.chosen, "now")]


def _spot(point: Point, mark: str) -> Spot:
    cost, worth = point.cost_usd, point.quality
    name = "chosen" if mark == "now" else ""
    return Spot(name, cost.value, worth.value, cost.low, cost.high, worth.low, worth.high, mark)


def _hull(planned: _Planned | None) -> list[tuple[float, float]]:
    points: Any = planned.frontier if planned is not None else ()
    return sorted((p.cost_usd.value, p.quality.value) for p in points if math.isfinite(p.cost_usd.value))
