"""The first page: is it well, what did it cost, what was saved and how sure is that."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import overview as admin_overview
from gateway.admin.guard import Actor, admin, services_of, viewer
from gateway.admin.shapes.common import Window
from gateway.admin.shapes.overview import Overview
from gateway.dashboard.charts import Series
from gateway.dashboard.forms import Fields, seen
from gateway.dashboard.page import render

router = APIRouter()


@router.get("/")
def show(
    request: Request, who: Annotated[Actor, Depends(viewer)], window: Window = "day", route: str = "", tenant: str = ""
) -> Response:
    """Of a window, over everything or one route or tenant."""
    return _page(request, who, window, route, tenant)


@router.post("/baseline")
def declare(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """The model that savings are counted against."""
    admin_overview.declare_baseline(services_of(request), who, fields.get("model", ""), seen(fields))
    return _page(request, who, "day", "", "", said="The baseline is declared; savings are counted against it.")


def _page(request: Request, who: Actor, window: Window, route: str, tenant: str, said: str = "") -> Response:
    services = services_of(request)
    told = admin_overview.overview(services, window, route, tenant)
    context = {
        "title": "Overview", "told": told, "lines": _lines(told), "baseline": admin_overview.baseline_setting(services),
        "models": sorted({(model.name, model.name) for model in services.current.models}),
        "routes": [one.name for one in services.config.routes],
    }  # fmt: skip
    return render(request, who, "overview.html", context, said=said)


def _lines(told: Overview) -> dict[str, list[Series]]:
    """The charts' series: rates per minute, so that windows compare."""
    per_minute = 60 / told.step_s
    points = told.series

    def series(name: str, values: list[float | None]) -> Series:
        return Series(name, [(float(point.time_s), value) for point, value in zip(points, values, strict=True)])

    return {
        "requests": [
            series("requests", [p.requests * per_minute for p in points]),
            series("errors", [p.errors * per_minute for p in points]),
            series("from the cache", [p.cache_hits * per_minute for p in points]),
        ],
        "latency": [
            series("whole answer, median", [p.latency_p50_s for p in points]),
            series("whole answer, 95th percentile", [p.latency_p95_s for p in points]),
            series("first token, 95th percentile", [p.ttft_p95_s for p in points]),
        ],
        "spend": [
            series("spent", [p.cost_usd for p in points]),
            series(f"all to {told.baseline.model}" if told.baseline.model else "baseline",
                   [p.baseline_usd for p in points]),
        ],
    }  # fmt: skip
