"""Routes: where each stands between cost and quality, what a turn of the knob would do, and the turn itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Estimate, Interval, Quality, Seconds, SettingVersion, Share, Usd, Wanted
from gateway.admin.shapes.overview import Totals


class Knobs(Wanted):
    """A route's knobs. None: not set."""

    cost_weight: Share | None = None
    """0: quality only, 1: cost only."""
    min_quality: Quality | None = None
    max_latency_s: Seconds | None = None
    max_cost_usd: Usd | None = None
    """Per request."""
    budget_usd_per_day: Usd | None = None
    accept_at: Quality | None = None
    """Least confidence at which a cascade keeps a cheap answer."""
    explore: Share | None = None
    """Floor of the exploration probability."""


class Trial(BaseModel):
    """Knobs tried before they are applied: in the shadow (no effect) or before a share of the requests."""

    kind: Literal["shadow", "canary"]
    knobs: Knobs
    share: float
    since_s: float
    actor: str
    rounds: int
    """Decisions since: of the canary's half, or re-decided in the shadow."""
    quality: Estimate
    """Difference to the route as it is, of what the trial decides."""
    cost_usd: Estimate
    latency_s: Estimate
    agreement: float | None
    """Shadow: probability of choosing the same model as now."""


class Held(BaseModel):
    """One quantity per request: what was foretold of the knobs in force, and what came since."""

    foretold: Interval
    seen: Estimate
    held: bool | None
    """Whether they differ by no more than chance explains (95 %); None: too early to tell."""


class Kept(BaseModel):
    """What became of the prediction that the knobs in force were turned on. A quantity is null where none was made."""

    since_s: float
    rounds: int
    """Of the route's latest decisions, those since."""
    quality: Held | None = None
    cost_usd: Held | None = None
    latency_s: Held | None = None


class FrontierPoint(BaseModel):
    """What one setting of the knob, or one model alone, costs and is worth per request."""

    label: str
    kind: Literal["knob", "model", "now"]
    cost_weight: float | None = None
    cost_usd: Estimate
    quality: Estimate


class Frontier(BaseModel):
    """From off-policy evaluation on the route's latest decisions."""

    rounds: int
    labelled: int
    points: list[FrontierPoint]
    time_s: float | None
    """When it was computed; None: not yet (no decision, or the control process has just started)."""
    note: str = ""


class RouteCard(BaseModel):
    """One line of the list."""

    name: str
    models: list[str]
    router: str
    """What decides now: a version's label or the router that the configuration names."""
    cascade: str
    cache: str
    knobs: Knobs
    setting_version: int
    """Hand it back with a change; 0: never changed here."""
    trial: Literal["", "shadow", "canary"]
    day: Totals


class RouteDetail(RouteCard):
    """A route's page."""

    configured: Knobs
    """What the configuration file says."""
    frontier: Frontier
    trial_detail: Trial | None
    spent_today_usd: float
    history: list[SettingVersion]
    """Newest first, fifty at most."""
    kept: Kept | None = None
    """Null where nothing was foretold of the knobs in force."""


class Effect(BaseModel):
    """One quantity per request: as it is, as it would be, and the difference."""

    now: Estimate
    then: Estimate
    difference: Estimate


class Preview(BaseModel):
    """The predicted effect of knobs that are not in force."""

    route: str
    knobs: Knobs
    rounds: int
    """Logged decisions that were decided again."""
    labelled: int
    effective: float
    """How many of them speak of the changed policy, counted as effective ones."""
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
    """Earlier decisions left out: in them what the knobs would do was never tried."""
    notes: list[str] = []
    """What changed in the time of the log, so that its figures may say little of tomorrow."""
    message: str
    """One sentence for people: what would change and how sure that is, or what it would take to know."""


class KnobChange(Wanted):
    """Knobs to put into force, all of them: one left out returns to what the configuration says."""

    knobs: Knobs
    version: int
    """`setting_version` as it was read; another one now is a conflict (409)."""
    why: str = ""
    """For the audit log."""


class TrialWanted(Wanted):
    """Knobs to try."""

    kind: Literal["shadow", "canary"]
    knobs: Knobs
    share: Share = 0.1
    """Of the requests; for a canary only, above 0 and below 1."""
    version: int
