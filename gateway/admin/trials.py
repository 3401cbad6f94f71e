"""Knobs that are tried: in the shadow fresh decisions are decided again, in a canary two random halves differ."""

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
"""Decisions of each half before a difference is told."""
FIGURES = {"quality": "score", "cost_usd": "cost_usd", "latency_s": "latency_s"}


def trial_of(services: AdminServices, route: str, trial: Mapping[str, Any]) -> Trial:
    """How it goes."""
    base = {
        "kind": trial["kind"], "knobs": Knobs(**trial["knobs"]), "share": trial["share"], "since_s": trial["since_s"],
        "actor": trial["actor"],
    }  # fmt: skip
    try:
        log = latest_log(services, route, FRESH_S)
        fresh = log.rows(np.array([record.time_s >= trial["since_s"] for record in log.records], bool))
        if not len(fresh):
            raise NothingLogged("no decision since it began")
        found = _shadow if trial["kind"] == "shadow" else _canary
        told = found(services, route, fresh, trial)
    except (NothingLogged, ValueError) as none:
        nothing = Estimate(refusal=Refusal(message=str(none)))
        told = {"rounds": 0, "quality": nothing, "cost_usd": nothing, "latency_s": nothing, "agreement": None}
    return Trial(**base, **told)


def _shadow(services: AdminServices, route: str, log: Log, trial: Mapping[str, Any]) -> dict[str, Any]:
    policy = policy_of(services, route, trial["knobs"])
    log = widened(log, [one.model for one in policy.candidates])
    target, ours = decided(policy, log), decided(policy_of(services, route, {}), log)
    answer = valued(log, target)
    told: dict[str, Any] = {"rounds": len(log), "agreement": float((target * ours).sum(1).mean())}
    for name in FIGURES:
        figure, found = answer.figures.get(name), answer.refusals.get(name)
        if figure is not None:
            told[name] = Estimate(interval=interval(figure.difference))
        else:
            told[name] = Estimate(refusal=refusal(found) if found else Refusal(message="no answer was scored"))
    return told


def _canary(services: AdminServices, route: str, log: Log, trial: Mapping[str, Any]) -> dict[str, Any]:
    stated = {name: value for name, value in trial["knobs"].items() if name in KNOB_NAMES}
    suffix = with_knobs(policy_of(services, route, {}).router, route_of(services, route), stated).suffix
    mine = np.array([record.router.endswith(suffix) for record in log.records], bool)
    told: dict[str, Any] = {"rounds": int(mine.sum()), "agreement": None}
    for name, field in FIGURES.items():
        told[name] = _halves(getattr(log, field), mine)
    return told


def _halves(reward: Array, mine: Array) -> Estimate:
    """Difference of the means, the tried half minus the other."""
    known = np.isfinite(reward)
    tried, other = reward[known & mine.astype(bool)], reward[known & ~mine.astype(bool)]
    if min(len(tried), len(other)) < LEAST:
        lacking = LEAST - min(len(tried), len(other))
        return Estimate(refusal=Refusal(message=f"about {lacking} more decisions of one half", calls=lacking))
    return Estimate(interval=interval(difference_interval(tried, other)))
