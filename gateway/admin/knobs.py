"""Routes: their state, previews of changed knobs, changes and trials of knobs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from gateway.admin import changes
from gateway.admin.actor import Actor
from gateway.admin.changes import database
from gateway.admin.frontier import known_frontier, refresh_frontier
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.overview import day_totals, no_totals
from gateway.admin.predictions import predict, prediction_outcome
from gateway.admin.preview import preview
from gateway.admin.rounds import KNOBS, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Applied, SettingVersion
from gateway.admin.shapes.knobs import Frontier, KnobChange, Knobs, Preview, RouteCard, RouteDetail, TrialWanted
from gateway.admin.tenants import Spending
from gateway.admin.trials import trial_of
from gateway.config.types import RouteConfig
from gateway.errors import CallerError
from gateway.money.ledger import period_start

router = APIRouter(prefix="/admin/routes", tags=["routes"])

__all__ = [
    "adopt_trial", "apply", "end_trial", "preview", "refresh_frontier", "route_cards", "route_detail", "start_trial",
    "undo",
]  # fmt: skip


def route_cards(services: AdminServices) -> list[RouteCard]:
    """All routes, in the order of the configuration."""
    with database():
        day = day_totals(services)
        values, numbers = services.store.latest_settings(), services.store.setting_numbers("route:")
    cards, promoted = [], services.settings().routers
    for route in services.current.routes:
        value = values.get(f"route:{route.name}") or {}
        fields = _card(promoted, route, numbers.get(f"route:{route.name}", 0), value.get("trial"))
        cards.append(RouteCard(**fields, day=day.get(route.name) or no_totals()))
    return cards


def route_detail(services: AdminServices, route: str) -> RouteDetail:
    """One route with its frontier, trial and history. Raises NotFound."""
    now, name = route_of(services, route), f"route:{route}"
    with database():
        in_force = changes.setting(services, name)
        trial = (in_force.value or {}).get("trial")
        spent = Spending(services).of("route", route, period_start("day", time.time()))
        history = changes.history(services, name)
        return RouteDetail(
            **_card(services.settings().routers, now, in_force.version, trial),
            day=day_totals(services).get(route) or no_totals(),
            configured=_configured(services, route), frontier=known_frontier(services, route),
            trial_detail=trial_of(services, route, trial) if trial else None, spent_today_usd=spent,
            history=history, kept=prediction_outcome(services, route, knobs_in_force(now), history),
        )  # fmt: skip


def apply(services: AdminServices, who: Actor, route: str, change: KnobChange) -> Applied:
    """Put knobs into force, in every worker within two seconds. Ends a trial. Stores the predicted effect beside them.

    Raises NotFound, Conflict, or CallerError naming the field.
    """
    value = {**_with_knobs(services, route, change.knobs, change.version), "trial": None}
    value.pop("foretold", None)
    if prediction := predict(services, route, change.knobs):
        value["foretold"] = prediction
    return changes.change(services, who, f"route:{route}", value, change.version, why=change.why)


def undo(services: AdminServices, who: Actor, route: str, version: int) -> Applied:
    """Put the knobs before those in force, which must be `version`, into force again. Raises NotFound or Conflict."""
    route_of(services, route)
    return changes.undo(services, who, f"route:{route}", version)


def start_trial(services: AdminServices, who: Actor, route: str, wanted: TrialWanted) -> Applied:
    """Start a trial of knobs: in the shadow, without any effect, or as a canary on a share of the requests.

    Raises NotFound, Conflict or CallerError.
    """
    if wanted.kind == "canary" and not 0.0 < wanted.share < 1.0:
        raise CallerError("a canary's share must be more than 0 and less than 1", param="share", status=422)
    stated = wanted.knobs.model_dump(exclude_unset=True)
    if wanted.kind == "canary" and (own := {"accept_at", "explore"} & stated.keys()):
        raise CallerError(f"a canary can't change {', '.join(sorted(own))}: apply it, or try it in the shadow",
                          param=sorted(own)[0], status=422)  # fmt: skip
    _with_knobs(services, route, wanted.knobs, wanted.version)
    trial = {"kind": wanted.kind, "knobs": stated, "share": wanted.share, "since_s": time.time(), "actor": who.name}
    value = {**_value(services, route), "trial": trial}
    return changes.change(services, who, f"route:{route}", value, wanted.version, why=f"{wanted.kind} begun")


def end_trial(services: AdminServices, who: Actor, route: str, version: int) -> Applied:
    """End the trial: the route's own knobs decide all requests again. Raises CallerError (409) where there is none."""
    value = _value(services, route)
    if not value.get("trial"):
        raise CallerError(f"there is no trial on route {route!r}", code="no_trial", status=409)
    return changes.change(services, who, f"route:{route}", {**value, "trial": None}, version, why="trial ended")


def adopt_trial(services: AdminServices, who: Actor, route: str, version: int) -> Applied:
    """Put the knobs on trial into force. Raises CallerError (409) where there is no trial."""
    trial = _value(services, route).get("trial")
    if not trial:
        raise CallerError(f"there is no trial on route {route!r}", code="no_trial", status=409)
    knobs = {**_stated(_value(services, route)), **trial["knobs"]}
    return apply(services, who, route, KnobChange(knobs=Knobs(**knobs), version=version, why="trial adopted"))


def knobs_in_force(route: RouteConfig) -> Knobs:
    """The knobs of a route of the configuration."""
    return Knobs(**{name: getattr(route, name) for name in KNOBS})


def _with_knobs(services: AdminServices, route: str, knobs: Knobs, version: int) -> dict[str, Any]:
    """The route's setting with these knobs. Raises CallerError where the configuration would be invalid with them."""
    route_of(services, route)
    with database():
        kept = {name: value for name, value in _value(services, route).items() if name not in KNOBS}
        value = {**kept, **_stated(knobs.model_dump(exclude_unset=True))}
        if changes.setting(services, f"route:{route}").version == version:  # else `change` raises Conflict
            changes.refuse_unsound(services, f"route:{route}", value)
    return value


def _stated(value: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs in a setting's value. `explore` can't be unset: with None, the configuration file's value holds."""
    return {
        name: value[name] for name in KNOBS if name in value and not (name == "explore" and value[name] is None)
    }


def _value(services: AdminServices, route: str) -> dict[str, Any]:
    with database():
        return dict(services.store.setting(f"route:{route}") or {})


def _card(
    promoted: Mapping[str, str], route: RouteConfig, version: int, trial: Mapping[str, Any] | None
) -> dict[str, Any]:
    label = promoted.get(route.name, "").rpartition("/")[2].removesuffix(".safetensors")
    return {
        "name": route.name, "models": route.models, "router": label or route.router, "cascade": route.cascade,
        "cache": route.cache, "knobs": knobs_in_force(route), "setting_version": version,
        "trial": trial["kind"] if trial else "",
    }  # fmt: skip


def _configured(services: AdminServices, route: str) -> Knobs:
    stated = next((one for one in services.config.routes if one.name == route), None)
    return knobs_in_force(stated) if stated is not None else Knobs()


@router.get("")
def get_routes(services: Services, who: Viewer) -> list[RouteCard]:
    """List routes with their knobs and the traffic of the last day."""
    return route_cards(services)


@router.post("/{route:path}/preview")
def post_preview(services: Services, who: Viewer, route: str, knobs: Knobs) -> Preview:
    """Predict what these knobs would do; changes nothing."""
    return preview(services, route, knobs)


@router.put("/{route:path}/knobs")
def put_knobs(services: Services, who: Operator, route: str, change: KnobChange) -> Applied:
    """Set the knobs of a route."""
    return apply(services, who, route, change)


@router.post("/{route:path}/undo")
def post_undo(services: Services, who: Operator, route: str, version: int) -> Applied:
    """Put the knobs before the present ones into force again."""
    return undo(services, who, route, version)


@router.put("/{route:path}/trial")
def put_trial(services: Services, who: Operator, route: str, wanted: TrialWanted) -> Applied:
    """Try knobs in the shadow, or as a canary on a share of the requests."""
    return start_trial(services, who, route, wanted)


@router.delete("/{route:path}/trial")
def delete_trial(services: Services, who: Operator, route: str, version: int) -> Applied:
    """End the trial of knobs."""
    return end_trial(services, who, route, version)


@router.post("/{route:path}/trial/adopt")
def post_adopt(services: Services, who: Operator, route: str, version: int) -> Applied:
    """Make the knobs on trial those of the route."""
    return adopt_trial(services, who, route, version)


@router.post("/{route:path}/frontier")
def post_frontier(services: Services, who: Operator, route: str) -> Frontier:
    """Compute the cost-quality frontier of a route now."""
    return refresh_frontier(services, route)


@router.get("/{route:path}/history")
def get_history(services: Services, who: Viewer, route: str) -> list[SettingVersion]:
    """List the versions of the knobs of a route, newest first."""
    with database():
        return changes.history(services, f"route:{route}")


@router.get("/{route:path}")
def get_route(services: Services, who: Viewer, route: str) -> RouteDetail:
    """One route with its frontier, trial and history."""
    return route_detail(services, route)
