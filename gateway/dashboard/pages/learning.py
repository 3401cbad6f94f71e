"""The page of learning: router versions with their promotion, calibration, drift and alarms."""

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
    """The learning of all routes, or of one."""
    return _page(request, who, route)


@router.post("/learning/{route:path}/{turn}")
def turn(request: Request, who: Annotated[Actor, Depends(operator)], route: str, turn: str, fields: Fields) -> Response:
    """Carry out an action on a route: promote, roll-back, canary, end-canary or refresh."""
    return _page(request, who, route, said=_carry_out(request, who, route, turn, fields))


def _carry_out(request: Request, who: Actor, route: str, turn: str, fields: dict[str, str]) -> str:
    """Returns the message to show. Raises CallerError where there is no such action."""
    services, version, live = services_of(request), fields.get("version", ""), fields.get("live")
    match turn:
        case "promote":
            done = admin_learning.promote(services, who, route, version, live)
            return f"{version} serves the route{confirmed(done)}."
        case "roll-back":
            done = admin_learning.roll_back(services, who, route, live)
            router = done.version or "the router that the configuration names"
            return f"Rolled back: {router} serves the route{confirmed(done)}."
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
    raise CallerError(f"there is no action '{turn}'", status=404)


def _page(request: Request, who: Actor, route: str, said: str = "") -> Response:
    services = services_of(request)
    learning = admin_learning.learning(services, route)
    context = {
        "title": "Learning", "learning": [_charted(one) for one in learning], "route": route,
        "routes": [one.name for one in services.config.routes],
    }  # fmt: skip
    return render(request, who, "learning.html", context, said=said)


def _charted(learning: RouteLearning) -> dict[str, Any]:
    """A route's learning, with the data of its charts."""
    return {
        "learning": learning, "lineage": _lineage(learning.versions),
        "calibration": [
            (one, [Bin(b.expected, b.scored.value, b.scored.low, b.scored.high, b.n) for b in one.bins])
            for one in learning.calibration
        ],
        "scores": _scores(learning.drift), "shift": _shift(learning.drift),
    }  # fmt: skip


def _scores(points: list[DriftPoint]) -> list[Series]:
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
    """The versions in their order, each with its number of known ancestors."""
    known = {one.version: one for one in versions}

    def depth(version: Version) -> int:
        generations, at = 0, version
        while at.parent in known and generations < len(known):
            generations, at = generations + 1, known[at.parent]
        return generations

    return [(one, depth(one)) for one in versions]
