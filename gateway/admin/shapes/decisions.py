"""Decisions: their list, their explanation and their replay."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gateway.admin.shapes.common import Quality, Seconds, Share, Usd, Wanted


class DecisionRow(BaseModel):
    """A decision in the list."""

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
    """Which of error, cached, escalated, explored and audit apply; empty for an ordinary answer."""


class DecisionPage(BaseModel):
    """A page of decisions, newest first. `next` is the cursor of the next page; null on the last."""

    data: list[DecisionRow]
    next: str | None
    searched_until_s: float | None = None
    """Where a search was stopped to stay quick: it went back to this time. The page may then have few rows or none, and
    still have a `next`."""


class Candidate(BaseModel):
    """A model that could have answered. The probabilities of a decision's candidates sum to 1."""

    model: str
    quality: float | None
    quality_sd: float | None
    cost_usd: float | None
    latency_s: float | None
    probability: float
    chosen: bool
    answered: bool


class Exclusion(BaseModel):
    """A model that could not have answered, and why."""

    model: str
    reason: str
    meaning: str
    """The reason in a sentence."""


class Attempt(BaseModel):
    """A call to a deployment."""

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
    """Number of questions in the same call, of which usage and cost are this one's share; 0: it was called alone."""
    evidence: dict[str, Any] | None
    confidence: float | None
    threshold: float | None
    """Least confidence at which this answer would have been kept; None: any."""
    kept: bool


class FeedbackRow(BaseModel):
    """Feedback on an answer. `decision_id` is null while its decision is not known."""

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
    """One decision in full. `summary` explains in sentences why this model answered."""

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
    """Knobs that the request set itself."""
    plan: list[str]
    counterfactual_usd: dict[str, float]
    """By model: the answer's tokens at its prices, or, without an answer, the cost that the router expected."""
    prompt_text: str
    answer_text: str
    """Both texts are empty where the route doesn't store text, or the reader's role may not see it."""
    decision: dict[str, Any]
    """The whole record, as `headgate explain --json` prints it."""


class ReplayWanted(Wanted):
    """Router and knobs for a replay. Those left out are the route's present ones."""

    router: str = ""
    """A version's id or a router's name."""
    cost_weight: Share | None = None
    min_quality: Quality | None = None
    max_cost_usd: Usd | None = None
    max_latency_s: Seconds | None = None


class ReplaySide(BaseModel):
    """One side of a replay: the recorded choice or the replayed one."""

    router: str
    model: str
    reason: str
    propensity: float | None
    candidates: dict[str, dict[str, float | None]]
    """By model: quality, cost_usd, probability."""
    excluded: dict[str, str]


class Replayed(BaseModel):
    """The recorded choice beside the replayed one."""

    decision_id: str
    route: str
    same_model: bool
    same_choice: bool
    differs: list[str]
    recorded: ReplaySide
    replayed: ReplaySide
    notes: list[str]
