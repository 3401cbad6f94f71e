"""The first page: traffic, speed, spend and what was saved."""

from __future__ import annotations

from pydantic import BaseModel

from gateway.admin.shapes.common import Estimate, Interval, Window


class Totals(BaseModel):
    """Of a window. Shares are of requests; latencies are of whole answers, in seconds, None without a request."""

    requests: int
    errors: int
    error_share: float
    cache_hits: int
    cache_share: float
    escalations: int
    explored: int
    cost_usd: float
    cache_saved_usd: float
    """What the answers from the cache had cost when they were made."""
    input_tokens: int
    output_tokens: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class Extra(BaseModel):
    """Parts of the spend that plain routing to one model would not have had; all of them are inside `cost_usd`."""

    judge_usd: float
    """Shadow questions and judgements of the semantic cache."""
    exploration_usd: float
    """Of what explored choices cost, the part that the router's first choice was expected to save."""
    cascade_usd: float
    """Attempts whose answers were not kept: rejected drafts, failed tries, hedges."""


class BaselineSaving(BaseModel):
    """Against sending every request to one declared model."""

    model: str
    declared: bool
    """False: nobody declared one; the dearest model of the configuration stands in."""
    baseline_usd: Interval | None
    saved_usd: Interval | None
    """Baseline minus all that was spent. Negative: routing cost more."""
    saved_share: Interval | None
    basis: str
    """One sentence on how the counterfactual cost was found."""
    refusal: str = ""


class RandomSaving(BaseModel):
    """Against choosing models at random, blind to the query, at the same quality; and at the same cost."""

    saved_usd: Estimate
    saved_share: Estimate
    quality_gain: Estimate
    """Quality beyond that of the blind mixture that costs as much."""
    rounds: int
    """Latest decisions that the figures rest on."""
    basis: str
    time_s: float | None
    """When they were computed; None: not yet."""


class Point(BaseModel):
    """One step of a series."""

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
    """One route, model or tenant of the window, the dearest first."""

    name: str
    requests: int
    errors: int
    cache_hits: int
    cost_usd: float
    latency_p50_s: float | None
    latency_p95_s: float | None


class Overview(BaseModel):
    """`empty`: no decision in this window."""

    window: Window
    since_s: float
    until_s: float
    step_s: int
    route: str
    tenant: str
    empty: bool
    totals: Totals
    before: Totals
    """The window before, of the same length."""
    extra: Extra
    baseline: BaselineSaving
    random: RandomSaving
    series: list[Point]
    by_route: list[Slice]
    by_model: list[Slice]
    by_tenant: list[Slice]
    alarms: int
    """Raised now, over all routes."""
    journal: str
    """ok | opening: the database has not been reached yet | away: it can't be reached, figures may be missing |
    behind: records wait to be shipped | counting: old decisions are still being added up."""
    journal_detail: str = ""


class Revision(BaseModel):
    """Numbers that change when a page may be out of date; cheap to ask for, no database behind it."""

    decisions: int
    settings: int
    alarms: int
    database: str
    """ok | away"""
    time_s: float
