"""The overview page: traffic, latency, spend and savings."""

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
    """The overview of a time window, over everything or one route or tenant."""
    return _page(request, who, window, route, tenant)


@router.post("/baseline")
def declare(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Set the model that savings are computed against."""
    admin_overview.declare_baseline(services_of(request), who, fields.get("model", ""), seen(fields))
    return _page(request, who, "day", "", "", said="The baseline is set; savings are computed against it.")


def _page(request: Request, who: Actor, window: Window, route: str, tenant: str, said: str = "") -> Response:
    services = services_of(request)
    overview = admin_overview.overview(services, window, route, tenant)
    context = {
        "title": "Overview", "overview": overview, "lines": _lines(overview),
        "baseline": admin_overview.baseline_setting(services),
        "models": sorted({(model.name, model.name) for model in services.current.models}),
        "routes": [one.name for one in services.config.routes],
    }  # fmt: skip
    return render(request, who, "overview.html", context, said=said)


def _lines(overview: Overview) -> dict[str, list[Series]]:
    """The charts' series; traffic is in requests per minute, so that windows can be compared."""
    per_minute = 60 / overview.step_s
    points = overview.series

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
            series(f"all to {overview.baseline.model}" if overview.baseline.model else "baseline",
                   [p.baseline_usd for p in points]),
        ],
    }  # fmt: skip
