"""A route's cost-quality frontier: settings of its cost weight, and each model alone, evaluated off-policy on the
route's latest decisions.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.admin.changes import database
from gateway.admin.preview import interval, refusal
from gateway.admin.rounds import latest_log, policy_of, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Estimate, Refusal
from gateway.admin.shapes.knobs import Frontier, FrontierPoint
from gateway.journal.insights import insight, keep_insight
from gateway.learn.dataset import NothingLogged
from gateway.learn.whatif import Answer, decided, valued, widened
from routers.types import Undecided

KIND = "frontier"
WEIGHTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)


def known_frontier(services: AdminServices, route: str) -> Frontier:
    """The frontier as it was computed last."""
    found = insight(services.store, KIND, route)
    if found is None:
        return Frontier(rounds=0, labelled=0, points=[], time_s=None, note="not computed yet")
    return Frontier(**{**found[1], "time_s": found[0]})


def refresh_frontier(services: AdminServices, route: str) -> Frontier:
    """Compute the frontier now and store it. Raises NotFound."""
    route_of(services, route)
    with database():
        keep_insight(services.store, KIND, route, _frontier(services, route).model_dump())
        return known_frontier(services, route)


def _frontier(services: AdminServices, route: str) -> Frontier:
    try:
        log = latest_log(services, route)
    except NothingLogged as none:
        return Frontier(rounds=0, labelled=0, points=[], time_s=None, note=str(none))
    policy = policy_of(services, route, {})
    log = widened(log, [one.model for one in policy.candidates])
    points = [_point("as it is", "now", valued(log, log.logged), now=True)]
    points += [
        _point(model, "model", valued(log, log.always(j)))
        for j, model in enumerate(log.models)
        if model in {one.model for one in policy.candidates}
    ]
    note = ""
    for weight in WEIGHTS:
        turned = policy_of(services, route, {"cost_weight": weight, "min_quality": None})
        try:
            target = decided(turned, log)
        except (ValueError, Undecided) as fault:
            note = f"the router's settings can't be evaluated: {fault}"
            break
        points.append(_point(f"cost weight {weight:g}", "knob", valued(log, target), weight=weight))
    return Frontier(rounds=len(log), labelled=int(log.labelled.sum()), points=points, time_s=None, note=note)


def _point(label: str, kind: str, answer: Answer, *, weight: float | None = None, now: bool = False) -> FrontierPoint:
    pick: Callable[[str], Estimate] = lambda name: _estimate(answer, name, now)  # noqa: E731
    return FrontierPoint.model_validate(
        {"label": label, "kind": kind, "cost_weight": weight, "cost_usd": pick("cost_usd"), "quality": pick("quality")}
    )


def _estimate(answer: Answer, name: str, now: bool) -> Estimate:
    figure = answer.figures.get(name)
    if figure is not None:
        return Estimate(interval=interval(figure.now if now else figure.then))
    found = answer.refusals.get(name)
    return Estimate(refusal=refusal(found) if found is not None else Refusal(message="no answer was scored"))
