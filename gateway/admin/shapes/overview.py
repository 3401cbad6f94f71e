"""The overview: traffic, latency, spend and savings."""

from __future__ import annotations

from pydantic import BaseModel

from gateway.admin.shapes.common import Estimate, Interval, Window


class Totals(BaseModel):
    """Totals of a window. Shares are of requests; latencies are of whole answers in seconds, None without a request."""

    requests: int
    errors: int
    error_share: float
    cache_hits: int
    cache_share: float
    escalations: int
    explored: int
    cost_usd: float
    cache_saved_usd: float
    """Original cost of the answers that came from the cache."""
    input_tokens: int
    output_tokens: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class Extra(BaseModel):
    """Parts of the spend that sending everything to one model would not have; `cost_usd` includes them."""

    judge_usd: float
    """Shadow calls and judgements that audit the semantic cache."""
    exploration_usd: float
    """Cost of explored choices beyond the expected cost of the router's first choices."""
    cascade_usd: float
    """Attempts whose answers were not kept: rejected drafts, failed attempts, hedges."""


class BaselineSaving(BaseModel):
    """Savings against sending every request to one model."""

    model: str
    declared: bool
    """False: no baseline was declared, so it is the most expensive model of the configuration."""
    baseline_usd: Interval | None
    saved_usd: Interval | None
    """Baseline cost minus all that was spent. Negative: routing cost more."""
    saved_share: Interval | None
    basis: str
    """How the baseline's cost was computed."""
    refusal: str = ""


class RandomSaving(BaseModel):
    """Savings against choosing models at random, without looking at the query: cost saved at the same quality, and
    quality gained at the same cost.
    """

    saved_usd: Estimate
    saved_share: Estimate
    quality_gain: Estimate
    """Quality beyond that of the random mixture of the same cost."""
    rounds: int
    """Number of latest decisions that the figures rest on."""
    basis: str
    time_s: float | None
    """When they were computed; None: not yet."""


class Point(BaseModel):
    """One time step of a series."""

    time_s: int
    requests: int
    errors: int
    cache_hits: int
    cost_usd: float
    baseline_usd: float
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p95_s: float | None


class Slice(BaseModel):
    """The part of one route, model or tenant in the window's traffic; lists are in descending order of cost."""

    name: str
    requests: int
    errors: int
    cache_hits: int
    cost_usd: float
    latency_p50_s: float | None
    latency_p95_s: float | None


class Overview(BaseModel):
    """The overview of a window. `empty`: there was no request in it."""

    window: Window
    since_s: float
    until_s: float
    step_s: int
    route: str
    tenant: str
    empty: bool
    totals: Totals
    before: Totals
    """Totals of the window before, up to the moment that corresponds to now."""
    extra: Extra
    baseline: BaselineSaving
    random: RandomSaving
    series: list[Point]
    by_route: list[Slice]
    by_model: list[Slice]
    by_tenant: list[Slice]
    alarms: int
    """Number of alarms raised now, over all routes."""
    journal: str
    """ok | opening: the database has not been reached yet | away: it can't be reached, so figures may be missing |
    behind: records wait to be shipped | counting: old decisions are still being added to the rollups."""
    journal_detail: str = ""


class Revision(BaseModel):
    """Numbers that change when a page may be out of date; they don't need the database."""

    decisions: int
    settings: int
    alarms: int
    database: str
    """ok | away"""
    time_s: float
