"""Learning: router versions and their promotion; calibration, drift and alarms as they were computed last."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter

from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict, database
from gateway.admin.checkup import KIND, refresh_learning
from gateway.admin.guard import Operator, Services, Viewer
from gateway.admin.overview import raised
from gateway.admin.rounds import route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Interval
from gateway.admin.shapes.learning import Alarm, CanaryWanted, Gate, RouteLearning, Version, VersionDone
from gateway.config.settings import CanarySetting
from gateway.config.types import RouteConfig
from gateway.errors import CallerError
from gateway.journal.insights import insights_of
from gateway.journal.store import RouterVersion
from gateway.learn.shadow import begin_canary as put_before_traffic
from gateway.learn.shadow import end_canary as take_back
from gateway.learn.shadow import mark
from gateway.promote import Versions

router = APIRouter(prefix="/admin/learning", tags=["learning"])
Action = Literal["promote", "canary", "end_canary", "roll_back"]
CONFIGURED = "the router that the configuration names"


def learning(services: AdminServices, route: str = "") -> list[RouteLearning]:
    """State of the learning of one route, or of all in the order of the configuration. Raises NotFound."""
    routes = [route_of(services, route)] if route else services.current.routes
    with database():
        found = insights_of(services.store, KIND)
        versions = services.store.router_versions(route)
    canaries = services.settings().canaries
    return [_route_learning(one, canaries.get(one.name), versions, found.get(one.name)) for one in routes]


def refresh(services: AdminServices, route: str) -> RouteLearning:
    """Compute a route's alarms, calibration and drift now. Raises NotFound."""
    route_of(services, route)
    with database():
        refresh_learning(services, route)
    return learning(services, route)[0]


def alarms(services: AdminServices) -> list[Alarm]:
    """The alarms of all routes, as they were computed last."""
    return [Alarm(**one) for one in raised(services)]


def promote(services: AdminServices, who: Actor, route: str, version: str, live: str | None = None) -> VersionDone:
    """Serve this version from the next request on. `live`: the version that the client saw serving; None: no check.

    Raises CallerError where there is no such version, and Conflict where a version other than `live` serves.
    """
    route_of(services, route)
    with database(), _one_at_a_time(services, route):
        _refuse_stale(services, route, live)
        promoted = _versions(services).promote(route, version, actor=who.name, instead=live)
    return _done(services, route, promoted.version, "live")


def roll_back(services: AdminServices, who: Actor, route: str, live: str | None = None) -> VersionDone:
    """Serve the version before the live one, or the configuration's router. Raises Conflict as `promote` does."""
    route_of(services, route)
    with database(), _one_at_a_time(services, route):
        _refuse_stale(services, route, live)
        back = _versions(services).roll_back(route, actor=who.name, instead=live)
    return _done(services, route, back.version if back else "", "live")


def begin_canary(services: AdminServices, who: Actor, route: str, version: str, wanted: CanaryWanted) -> VersionDone:
    """Serve a share of the requests with a version. Raises NotFound or CallerError."""
    route_of(services, route)
    if not 0.0 < wanted.share < 1.0:
        raise CallerError("a canary's share must be more than 0 and less than 1", param="share", status=422)
    with database():
        chosen = _versions(services).find(route, version)
        if chosen.state == "live":
            raise CallerError(f"{chosen.version} serves all requests already", code="live", status=409)
        running = services.settings().canaries.get(route)
        if running is not None and running.artifact != chosen.artifact:
            raise CallerError("another version is already a canary on this route: end that canary first", status=409,
                              code="canary_runs")  # fmt: skip
        put_before_traffic(str(services.run_dir), route, chosen, wanted.share)
        mark(services.store, chosen, "canary", time.time(), who.name, share=wanted.share)
    return _done(services, route, chosen.version, "canary")


def end_canary(services: AdminServices, who: Actor, route: str) -> VersionDone:
    """End a route's canary: the live version serves all requests again. Raises NotFound."""
    route_of(services, route)
    with database():
        running = [one for one in services.store.router_versions(route) if one.state == "canary"]
        take_back(str(services.run_dir), route)
        for one in running:
            mark(services.store, one, "candidate", time.time(), who.name)
    return _done(services, route, running[0].version if running else "", "candidate")


def _one_at_a_time(services: AdminServices, route: str) -> threading.Lock:
    """A lock per route, so that of two clients that saw the same live version only one changes it."""
    return services.locks.setdefault(f"versions:{route}", threading.Lock())


def _refuse_stale(services: AdminServices, route: str, seen: str | None) -> None:
    live = next((one.version for one in services.store.router_versions(route) if one.state == "live"), "")
    if seen is not None and seen != live:
        raise Conflict(
            f"{route} is now served by {live or CONFIGURED}, no longer by {seen or CONFIGURED}: "
            "read it again before you change it"
        )


def _versions(services: AdminServices) -> Versions:
    return Versions(services.store, services.run_dir)


def _done(services: AdminServices, route: str, version: str, state: str) -> VersionDone:
    workers, confirmed = services.confirm()
    return VersionDone(route=route, version=version, state=state, workers=workers, confirmed=confirmed)


def _route_learning(
    route: RouteConfig, running: CanarySetting | None, versions: list[RouterVersion],
    found: tuple[float, Any] | None,
) -> RouteLearning:  # fmt: skip
    mine = [one for one in versions if one.name == route.name]
    live = next((one.version for one in mine if one.state == "live"), "")
    value: Mapping[str, Any] = found[1] if found is not None else _NOTHING
    time_s = found[0] if found is not None else None
    return RouteLearning(
        route=route.name, live=live, router=live or route.router,
        versions=[_version(one, running.artifact if running else "") for one in mine],
        alarms=[Alarm(**{**one, "time_s": time_s}) for one in value["alarms"]],
        calibration=value["calibration"], drift=value["drift"], rounds=value["rounds"], labelled=value["labelled"],
        time_s=time_s, note=value["note"],
    )  # fmt: skip


_NOTHING: Mapping[str, Any] = {
    "alarms": [], "calibration": [], "drift": [], "rounds": 0, "labelled": 0, "note": "not computed yet",
}  # fmt: skip


def _version(one: RouterVersion, canary: str) -> Version:
    metrics: dict[str, Any] = one.metrics or {}
    gate = metrics.get("gate")
    rows = metrics.get("rows") or (gate or {}).get("rows")
    return Version(
        route=one.name, version=one.version, time_s=one.time_s, state=one.state, since_s=metrics.get("since_s"),
        parent=str(metrics.get("parent", "")), label=str(metrics.get("label", "")),
        rows=rows if isinstance(rows, int) else None, data_checksum=str(metrics.get("data_checksum", "")),
        gate=_gate(gate), shadow=_gate(metrics.get("shadow")), canary=_interval(metrics.get("canary")),
        checksum=one.checksum, artifact=one.artifact, may=_actions(one, canary),
    )  # fmt: skip


def _actions(one: RouterVersion, canary: str) -> list[Action]:
    """What can be done with a version. `canary`: artefact of the route's canary; empty where there is none."""
    if one.state == "live":
        return ["roll_back"]
    if canary and one.artifact == canary:
        return ["promote", "end_canary"]
    return ["promote"] if canary else ["promote", "canary"]


def _gate(value: Any) -> Gate | None:
    if not isinstance(value, dict) or "passed" not in value:
        return None
    figures = {name: _interval(value.get(name)) for name in ("candidate", "incumbent", "difference")}
    return Gate(passed=bool(value["passed"]), reason=str(value.get("reason", "")), **figures)


def _interval(value: Any) -> Interval | None:
    return Interval(**{name: value[name] for name in Interval.model_fields}) if isinstance(value, dict) else None


@router.get("")
def get_learning(services: Services, who: Viewer, route: str = "") -> list[RouteLearning]:
    """State of the learning of one route, or of all."""
    return learning(services, route)


@router.get("/alarms")
def get_alarms(services: Services, who: Viewer) -> list[Alarm]:
    """List the alarms that are raised now."""
    return alarms(services)


@router.post("/{route:path}/refresh")
def post_refresh(services: Services, who: Operator, route: str) -> RouteLearning:
    """Compute alarms, calibration and drift now."""
    return refresh(services, route)


@router.post("/{route:path}/versions/{version}/promote")
def post_promote(services: Services, who: Operator, route: str, version: str, live: str | None = None) -> VersionDone:
    """Serve this version. `live`: the version that was seen serving; 409 if another one serves by now."""
    return promote(services, who, route, version, live)


@router.post("/{route:path}/roll-back")
def post_roll_back(services: Services, who: Operator, route: str, live: str | None = None) -> VersionDone:
    """Serve the version before. `live`: the version that was seen serving; 409 if another one serves by now."""
    return roll_back(services, who, route, live)


@router.post("/{route:path}/versions/{version}/canary")
def post_canary(services: Services, who: Operator, route: str, version: str, wanted: CanaryWanted) -> VersionDone:
    """Let this version serve a share of the requests."""
    return begin_canary(services, who, route, version, wanted)


@router.delete("/{route:path}/canary")
def delete_canary(services: Services, who: Operator, route: str) -> VersionDone:
    """End the canary of a route."""
    return end_canary(services, who, route)
