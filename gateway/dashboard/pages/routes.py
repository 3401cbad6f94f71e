"""The pages of routes: their knobs, the predicted effect of changes, trials and the frontier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from gateway.admin import knobs as admin_knobs
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.common import SettingVersion
from gateway.admin.shapes.knobs import Frontier, KnobChange, Knobs, Preview, RouteDetail, TrialWanted
from gateway.dashboard.charts import Spot
from gateway.dashboard.forms import Fields, picked, seen, shaped
from gateway.dashboard.page import HEADERS, render, templates
from gateway.dashboard.words import confirmed

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Dial:
    """A knob's control. `low` and `high` are the ends of its slider; with `log`, their powers of ten. A number beyond
    them can be typed.
    """

    name: str
    label: str
    meaning: str
    low: float
    high: float
    step: float
    unit: str = ""
    ends: tuple[str, str] = ("", "")
    log: bool = False


DIALS = (
    Dial("cost_weight", "Cost weight", "How much a dollar counts beside quality.", 0, 1, 0.01,
         ends=("quality only", "cost only")),
    Dial("min_quality", "Quality floor", "Least expected quality of the model that is chosen; 0 to 1.", 0.5, 1, 0.005,
         ends=("0.5", "1")),
    Dial("budget_usd_per_day", "Budget", "Daily spend that the route is paced to.", -2, 4, 0.02, "$ a day",
         ("$0.01", "$10,000"), log=True),
    Dial("max_latency_s", "Latency bound", "Longest expected time to a whole answer.", -1.3, 2, 0.02, "s",
         ("50 ms", "100 s"), log=True),
)  # fmt: skip
MORE_DIALS = (
    Dial("max_cost_usd", "Most per request", "Models that may cost more are left out.", -5, 1, 0.02, "$",
         ("$0.00001", "$10"), log=True),
    Dial("accept_at", "Cascade keeps from", "Least confidence at which a cheap answer is kept.", 0, 1, 0.01,
         ends=("every answer", "none")),
    Dial("explore", "Exploration", "Least share of requests that try another model, so that there is evidence.",
         0, 0.5, 0.005, ends=("none", "half")),
)  # fmt: skip


@router.get("/routes")
def show_all(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """All routes with their knobs and their last day."""
    return render(
        request, who, "routes.html", {"title": "Routes", "cards": admin_knobs.route_cards(services_of(request))}
    )


@router.get("/routes/{route:path}/effect")
def effect(request: Request, who: Annotated[Actor, Depends(viewer)], route: str) -> Response:
    """The predicted effect of the knobs in the query: the part of the page that follows the sliders."""
    services = services_of(request)
    knobs = _knobs(request.query_params)
    detail = admin_knobs.route_detail(services, route)
    predicted = admin_knobs.preview(services, route, knobs)
    shown = seen(request.query_params) if "version" in request.query_params else detail.setting_version
    stale = detail.history[0] if shown != detail.setting_version else None
    text = templates().get_template("effect.html").render(_effect(detail, predicted), stale=stale)
    return HTMLResponse(text, headers=HEADERS)


@router.get("/routes/{route:path}")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], route: str) -> Response:
    """One route."""
    return _page(request, who, route)


@router.post("/routes/{route:path}/apply")
def apply(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """Put the knobs into force."""
    given = {"knobs": _knobs(fields), "version": fields.get("version"), "why": fields.get("why", "")}
    change = shaped(KnobChange, given)
    done = admin_knobs.apply(services_of(request), who, route, change)
    return _page(request, who, route, said=f"The knobs are in force{confirmed(done)}.", undoable=done.setting.version)


@router.post("/routes/{route:path}/undo")
def undo(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """Undo the last change."""
    done = admin_knobs.undo(services_of(request), who, route, seen(fields))
    return _page(request, who, route, said=f"Undone: the earlier knobs are in force{confirmed(done)}.")


@router.post("/routes/{route:path}/trial/{kind}")
def start_trial(
    request: Request, who: Annotated[Actor, Depends(operator)], route: str, kind: str, fields: Fields
) -> Response:
    """Start a trial of the knobs: in the shadow, or as a canary on a share of the requests."""
    share = {"share": _share(fields["share"])} if kind == "canary" and fields.get("share") else {}
    wanted = shaped(
        TrialWanted, {"kind": kind, "knobs": _knobs(fields), "version": fields.get("version"), **share}
    )
    done = admin_knobs.start_trial(services_of(request), who, route, wanted)
    where = "in the shadow, without effect on any request" if kind == "shadow" else "on a share of the requests"
    return _page(request, who, route, said=f"The knobs are on trial {where}{confirmed(done)}.")


@router.post("/routes/{route:path}/trial-end")
def end_trial(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """End the trial."""
    done = admin_knobs.end_trial(services_of(request), who, route, seen(fields))
    return _page(request, who, route, said=f"The trial is over{confirmed(done)}.")


@router.post("/routes/{route:path}/trial-adopt")
def adopt_trial(request: Request, who: Annotated[Actor, Depends(operator)], route: str, fields: Fields) -> Response:
    """Put the knobs on trial into force."""
    done = admin_knobs.adopt_trial(services_of(request), who, route, seen(fields))
    said = f"The knobs of the trial are in force{confirmed(done)}."
    return _page(request, who, route, said=said, undoable=done.setting.version)


@router.post("/routes/{route:path}/frontier")
def refresh(request: Request, who: Annotated[Actor, Depends(operator)], route: str) -> Response:
    """Compute the frontier now."""
    admin_knobs.refresh_frontier(services_of(request), route)
    return _page(request, who, route, said="The frontier is computed from the latest decisions.")


def _page(
    request: Request, who: Actor, route: str, said: str = "", undoable: int | None = None
) -> Response:
    services = services_of(request)
    detail = admin_knobs.route_detail(services, route)
    predicted = admin_knobs.preview(services, route, detail.knobs)
    context = {
        "title": route, "detail": detail, "dials": DIALS, "more_dials": MORE_DIALS, "undoable": undoable,
        "history": _history(detail.history), "stale": None, **_effect(detail, predicted),
    }  # fmt: skip
    return render(request, who, "route.html", context, said=said)


def _effect(detail: RouteDetail, predicted: Preview) -> dict[str, Any]:
    """Template variables of `effect.html`; the chart shows the present knobs, and the changed ones if they differ."""
    turned = predicted.knobs != detail.knobs
    spots, hull = _frontier(detail.frontier)
    if turned and predicted.cost_usd.then.interval and predicted.quality.then.interval:
        cost, quality = predicted.cost_usd.then.interval, predicted.quality.then.interval
        spots.append(
            Spot("as turned", cost.value, quality.value, cost.low, cost.high, quality.low, quality.high, "then")
        )
    return {
        "predicted": predicted, "turned": turned, "spots": spots, "hull": hull, "frontier": detail.frontier,
        "detail": detail,
    }  # fmt: skip


def _frontier(frontier: Frontier) -> tuple[list[Spot], list[tuple[float, float]]]:
    """The chart's points whose figures are known, and the line through the cost weights, cheapest first."""
    spots: list[Spot] = []
    line: list[tuple[float, float]] = []
    for point in frontier.points:
        cost, worth = point.cost_usd.interval, point.quality.interval
        if cost is None or worth is None:
            continue
        if point.kind == "knob":
            line.append((cost.value, worth.value))
        else:
            mark = "now" if point.kind == "now" else "model"
            name = "now" if mark == "now" else point.label
            spots.append(Spot(name, cost.value, worth.value, cost.low, cost.high, worth.low, worth.high, mark))
    spots.sort(key=lambda spot: spot.mark == "now")
    return spots, sorted(line)


def _knobs(fields: Mapping[str, str]) -> Knobs:
    return shaped(Knobs, picked(fields, Knobs))


def _share(text: str) -> str | float:
    """A share of 1 from a number in per cent; a text that isn't a number is returned for validation to refuse."""
    try:
        return float(text) / 100
    except ValueError:
        return text


def _history(history: list[SettingVersion]) -> list[tuple[SettingVersion, list[tuple[str, Any, Any]]]]:
    """Each version with what it changed: names with the values before and after."""
    changes = []
    befores: list[SettingVersion | None] = [*history[1:], None]
    for one, before in zip(history, befores, strict=False):
        old, new = (_flat(value or {}, but="foretold") for value in (before and before.value, one.value))
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        changes.append((one, [(name, old.get(name), new.get(name)) for name in names]))
    return changes


def _flat(value: Mapping[str, Any], prefix: str = "", but: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in value.items():
        if name == but:
            continue
        if isinstance(one, dict):
            found |= _flat(one, f"{prefix}{name} ")
        elif one is not None:
            found[f"{prefix}{name}"] = one
    return found
