"""Routes: their knobs, frontiers, previews and trials."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Estimate, Interval, Quality, Seconds, SettingVersion, Share, Usd, Wanted
from gateway.admin.shapes.overview import Totals


class Knobs(Wanted):
    """The knobs of a route. None: not set."""

    cost_weight: Share | None = None
    """0: quality only, 1: cost only."""
    min_quality: Quality | None = None
    max_latency_s: Seconds | None = None
    max_cost_usd: Usd | None = None
    """Most that a request may cost."""
    budget_usd_per_day: Usd | None = None
    accept_at: Quality | None = None
    """Least confidence at which a cascade keeps a cheap answer."""
    explore: Share | None = None
    """Floor of the exploration probability."""


class Trial(BaseModel):
    """A running trial of knobs: in the shadow, without any effect, or as a canary on a share of the requests."""

    kind: Literal["shadow", "canary"]
    knobs: Knobs
    share: float
    since_s: float
    actor: str
    rounds: int
    """Number of decisions since the trial began: those of the canary, or those re-decided in the shadow."""
    quality: Estimate
    """Difference of the trial to the route as it is, as for cost and latency below."""
    cost_usd: Estimate
    latency_s: Estimate
    agreement: float | None
    """Of a shadow trial: probability of choosing the same model as now."""


class Held(BaseModel):
    """One quantity per request: predicted for the knobs in force, and observed since."""

    foretold: Interval
    seen: Estimate
    held: bool | None
    """Whether chance explains the difference of the two (at 95 %); None: not enough decisions yet."""


class Kept(BaseModel):
    """The prediction for the knobs in force, beside what was observed. A quantity is null where none was predicted."""

    since_s: float
    rounds: int
    """How many of the route's latest decisions were made since."""
    quality: Held | None = None
    cost_usd: Held | None = None
    latency_s: Held | None = None


class FrontierPoint(BaseModel):
    """Cost and quality per request of one cost weight, or of one model alone."""

    label: str
    kind: Literal["knob", "model", "now"]
    cost_weight: float | None = None
    cost_usd: Estimate
    quality: Estimate


class Frontier(BaseModel):
    """A route's frontier, by off-policy evaluation on its latest decisions."""

    rounds: int
    labelled: int
    points: list[FrontierPoint]
    time_s: float | None
    """When it was computed; None: not computed yet."""
    note: str = ""


class RouteCard(BaseModel):
    """A route in the list."""

    name: str
    models: list[str]
    router: str
    """The router in force: a version's label, or the router that the configuration names."""
    cascade: str
    cache: str
    knobs: Knobs
    setting_version: int
    """Send it with a change; 0: the route was never changed through this API."""
    trial: Literal["", "shadow", "canary"]
    day: Totals


class RouteDetail(RouteCard):
    """One route in full."""

    configured: Knobs
    """The knobs in the configuration file."""
    frontier: Frontier
    trial_detail: Trial | None
    spent_today_usd: float
    history: list[SettingVersion]
    """Newest first, fifty at most."""
    kept: Kept | None = None
    """Null where nothing was predicted for the knobs in force."""


class Effect(BaseModel):
    """One quantity per request: with the knobs in force, with the changed knobs, and their difference."""

    now: Estimate
    then: Estimate
    difference: Estimate


class Preview(BaseModel):
    """The predicted effect of knobs that are not in force."""

    route: str
    knobs: Knobs
    rounds: int
    """Number of logged decisions that were decided again."""
    labelled: int
    effective: float
    """Effective sample size for the changed policy."""
    quality: Effect
    cost_usd: Effect
    latency_s: Effect
    requests_per_day: float
    day_usd: Effect
    """Cost per day at the traffic of the last seven days."""
    shares_now: dict[str, float]
    shares_then: dict[str, float]
    """Share of requests per model; known exactly."""
    passed_over: int = 0
    """Number of earlier decisions left out, because what the knobs would do was not tried then."""
    notes: list[str] = []
    """What changed while the decisions were logged, so that the figures may not hold for the future."""
    message: str
    """The predicted change in sentences, or what evidence is missing."""


class KnobChange(Wanted):
    """All knobs to put into force; one left out returns to the configuration file's value."""

    knobs: Knobs
    version: int
    """`setting_version` of the route as it was read; 409 if it has changed since."""
    why: str = ""
    """Reason for the change, for the audit log."""


class TrialWanted(Wanted):
    """Knobs to try."""

    kind: Literal["shadow", "canary"]
    knobs: Knobs
    share: Share = 0.1
    """Share of the requests, more than 0 and less than 1; used by a canary only."""
    version: int
