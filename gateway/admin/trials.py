"""Results of trials of knobs. A shadow trial re-decides the decisions made since it began, and evaluates them
off-policy; a canary is a randomised comparison of two groups of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gateway.admin.preview import interval, refusal
from gateway.admin.rounds import FRESH_S, latest_log, policy_of, route_of
from gateway.admin.services import AdminServices
from gateway.admin.shapes.common import Estimate, Refusal
from gateway.admin.shapes.knobs import Knobs, Trial
from gateway.app import with_knobs
from gateway.learn.dataset import Log, NothingLogged
from gateway.learn.whatif import decided, valued, widened
from gateway.routes import KNOB_NAMES
from routers.intervals import difference_interval
from routers.ope import Array

LEAST = 30
"""Fewest decisions of each group for which a difference is reported."""
FIGURES = {"quality": "score", "cost_usd": "cost_usd", "latency_s": "latency_s"}


def trial_of(services: AdminServices, route: str, trial: Mapping[str, Any]) -> Trial:
    """A running trial with its results so far."""
    base = {
        "kind": trial["kind"], "knobs": Knobs(**trial["knobs"]), "share": trial["share"], "since_s": trial["since_s"],
        "actor": trial["actor"],
    }  # fmt: skip
    try:
        log = latest_log(services, route, FRESH_S)
        fresh = log.rows(np.array([record.time_s >= trial["since_s"] for record in log.records], bool))
        if not len(fresh):
            raise NothingLogged("no decision since it began")
        evaluate = _shadow if trial["kind"] == "shadow" else _canary
        results = evaluate(services, route, fresh, trial)
    except (NothingLogged, ValueError) as none:
        nothing = Estimate(refusal=Refusal(message=str(none)))
        results = {"rounds": 0, "quality": nothing, "cost_usd": nothing, "latency_s": nothing, "agreement": None}
    return Trial(**base, **results)


def _shadow(services: AdminServices, route: str, log: Log, trial: Mapping[str, Any]) -> dict[str, Any]:
    policy = policy_of(services, route, trial["knobs"])
    log = widened(log, [one.model for one in policy.candidates])
    target, ours = decided(policy, log), decided(policy_of(services, route, {}), log)
    answer = valued(log, target)
    results: dict[str, Any] = {"rounds": len(log), "agreement": float((target * ours).sum(1).mean())}
    for name in FIGURES:
        figure, found = answer.figures.get(name), answer.refusals.get(name)
        if figure is not None:
            results[name] = Estimate(interval=interval(figure.difference))
        else:
            results[name] = Estimate(refusal=refusal(found) if found else Refusal(message="no answer was scored"))
    return results


def _canary(services: AdminServices, route: str, log: Log, trial: Mapping[str, Any]) -> dict[str, Any]:
    stated = {name: value for name, value in trial["knobs"].items() if name in KNOB_NAMES}
    suffix = with_knobs(policy_of(services, route, {}).router, route_of(services, route), stated).suffix
    mine = np.array([record.router.endswith(suffix) for record in log.records], bool)
    results: dict[str, Any] = {"rounds": int(mine.sum()), "agreement": None}
    for name, field in FIGURES.items():
        results[name] = _difference(getattr(log, field), mine)
    return results


def _difference(reward: Array, mine: Array) -> Estimate:
    """Difference of the groups' means: the canary (where `mine` is True) minus the others."""
    known = np.isfinite(reward)
    tried, other = reward[known & mine.astype(bool)], reward[known & ~mine.astype(bool)]
    if min(len(tried), len(other)) < LEAST:
        missing = LEAST - min(len(tried), len(other))
        message = f"about {missing} more decisions of one group are needed"
        return Estimate(refusal=Refusal(message=message, calls=missing))
    return Estimate(interval=interval(difference_interval(tried, other)))
