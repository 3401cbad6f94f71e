"""Decisions: found, explained, decided again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gateway.admin.shapes.common import Quality, Seconds, Share, Usd, Wanted


class DecisionRow(BaseModel):
    """One line of the list."""

    id: str
    time_s: float
    request_id: str
    response_id: str
    tenant: str
    key_id: str
    route: str
    model: str
    answered_model: str
    router: str
    cost_usd: float
    status: int
    cache: str
    latency_s: float | None
    outcomes: list[str] = []
    """Those of error, cached, escalated, explored, audit that hold; none: a plain answer."""


class DecisionPage(BaseModel):
    """Newest first. `next` is the cursor of the page after; null: there is nothing more."""

    data: list[DecisionRow]
    next: str | None
    searched_until_s: float | None = None
    """A page may hold few rows, even none, and have a `next`: it searched back to here and stopped to stay quick."""


class Candidate(BaseModel):
    """A model that could have answered. Probabilities of a decision sum to 1."""

    model: str
    quality: float | None
    quality_sd: float | None
    cost_usd: float | None
    latency_s: float | None
    probability: float
    chosen: bool
    answered: bool


class Exclusion(BaseModel):
    """A model that could not, and why."""

    model: str
    reason: str
    meaning: str
    """The reason in a sentence."""


class Attempt(BaseModel):
    """One call of one deployment."""

    model: str
    deployment: str
    started_s: float
    latency_s: float | None
    ttft_s: float | None
    status: int
    failure: str
    usage: dict[str, int]
    cost_usd: float
    estimated: bool
    gathered: int
    """Questions asked in the same call, of which usage and cost are this one's share; 0: it was asked alone."""
    evidence: dict[str, Any] | None
    confidence: float | None
    threshold: float | None
    """Least confidence that would have kept this answer; None: any."""
    kept: bool


class FeedbackRow(BaseModel):
    """`decision_id` is null while no decision of that name has been seen."""

    id: str
    time_s: float
    tenant: str
    decision_id: str | None
    response_id: str
    request_id: str
    score: float | None
    label: str
    comment: str
    source: str


class Explained(BaseModel):
    """One decision, whole. `summary` says in plain sentences why this model answered."""

    id: str
    time_s: float
    request_id: str
    response_id: str
    tenant: str
    key_id: str
    route: str
    requested_model: str
    router: str
    reason: str
    model: str
    answered_model: str
    propensity: float | None
    verdict: str
    status: int
    error: str
    cache: str
    cost_usd: float
    saved_usd: float
    held_usd: float
    latency_s: float | None
    ttft_s: float | None
    overhead_ms: float | None
    summary: list[str]
    outcomes: list[str]
    candidates: list[Candidate]
    excluded: list[Exclusion]
    attempts: list[Attempt]
    feedback: list[FeedbackRow]
    knobs: dict[str, float]
    """The request's own."""
    plan: list[str]
    counterfactual_usd: dict[str, float]
    """What each model was expected to cost, or what the tokens of the answer would cost at its prices."""
    prompt_text: str
    answer_text: str
    """Empty: the route does not store text, or the reader's role may not see it."""
    decision: dict[str, Any]
    """The whole record, as `headgate explain --json` prints it."""


class ReplayWanted(Wanted):
    """With what to decide again. All empty: as the route is now."""

    router: str = ""
    """A version's id, or a router's name."""
    cost_weight: Share | None = None
    min_quality: Quality | None = None
    max_cost_usd: Usd | None = None
    max_latency_s: Seconds | None = None


class ReplaySide(BaseModel):
    """One of the two choices."""

    router: str
    model: str
    reason: str
    propensity: float | None
    candidates: dict[str, dict[str, float | None]]
    """By model: quality, cost_usd, probability."""
    excluded: dict[str, str]


class Replayed(BaseModel):
    """Then and now."""

    decision_id: str
    route: str
    same_model: bool
    same_choice: bool
    differs: list[str]
    recorded: ReplaySide
    replayed: ReplaySide
    notes: list[str]
