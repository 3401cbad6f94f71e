"""Learning: which versions there are, whether they hold what they promise, and what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import learning as admin_learning
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.learning import CanaryWanted, DriftPoint, RouteLearning, Version
from gateway.dashboard.charts import Bin, Series
from gateway.dashboard.forms import Fields, shaped
from gateway.dashboard.page import render
from gateway.dashboard.words import confirmed
from gateway.errors import CallerError

router = APIRouter()


@router.get("/learning")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], route: str = "") -> Response:
    """All routes, or one."""
    return _page(request, who, route)


@router.post("/learning/{route:path}/{turn}")
def turn(request: Request, who: Annotated[Actor, Depends(operator)], route: str, turn: str, fields: Fields) -> Response:
    """`turn`: promote, canary, end-canary, roll-back, refresh."""
    return _page(request, who, route, said=_turned(request, who, route, turn, fields))


def _turned(request: Request, who: Actor, route: str, turn: str, fields: dict[str, str]) -> str:
    services, version, live = services_of(request), fields.get("version", ""), fields.get("live")
    match turn:
        case "promote":
            done = admin_learning.promote(services, who, route, version, live)
            return f"{version} serves the route{confirmed(done)}."
        case "roll-back":
            done = admin_learning.roll_back(services, who, route, live)
            return f"Rolled back: {done.version or 'what the configuration names'} serves the route{confirmed(done)}."
        case "canary":
            share = float(fields["share"]) / 100 if fields.get("share", "").replace(".", "", 1).isdigit() else None
            wanted = shaped(CanaryWanted, {} if share is None else {"share": share})
            done = admin_learning.begin_canary(services, who, route, version, wanted)
            return f"{version} decides {wanted.share:.0%} of the requests{confirmed(done)}."
        case "end-canary":
            return f"The canary is over{confirmed(admin_learning.end_canary(services, who, route))}."
        case "refresh":
            admin_learning.refresh(services, route)
            return "Calibration, drift and alarms are computed from the latest decisions."
    raise CallerError(f"there is no turn '{turn}'", status=404)


def _page(request: Request, who: Actor, route: str, said: str = "") -> Response:
    services = services_of(request)
    told = admin_learning.learning(services, route)
    context = {
        "title": "Learning", "told": [_charted(one) for one in told], "route": route,
        "routes": [one.name for one in services.config.routes],
    }  # fmt: skip
    return render(request, who, "learning.html", context, said=said)


def _charted(told: RouteLearning) -> dict[str, Any]:
    return {
        "told": told, "lineage": _lineage(told.versions),
        "calibration": [
            (one, [Bin(b.expected, b.scored.value, b.scored.low, b.scored.high, b.n) for b in one.bins])
            for one in told.calibration
        ],
        "scores": _drift(told.drift), "shift": _shift(told.drift),
    }  # fmt: skip


def _drift(points: list[DriftPoint]) -> list[Series]:
    if len(points) < 2:
        return []
    return [
        Series("scored", [(p.until_s, p.score.value if p.score else None) for p in points]),
        Series("expected", [(p.until_s, p.expected) for p in points]),
    ]


def _shift(points: list[DriftPoint]) -> list[Series]:
    if len(points) < 2:
        return []
    return [Series("queries moved by", [(p.until_s, p.feature_shift) for p in points])]


def _lineage(versions: list[Version]) -> list[tuple[Version, int]]:
    """Newest first, each with how many generations lie behind it."""
    known = {one.version: one for one in versions}

    def depth(version: Version) -> int:
        generations, at = 0, version
        while at.parent in known and generations < len(known):
            generations, at = generations + 1, known[at.parent]
        return generations

    return [(one, depth(one)) for one in versions]
