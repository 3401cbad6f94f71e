"""Plans of batch jobs, and the outcomes of their prompts. The jobs themselves are in gateway.admin.batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Interval, Name, Share, Usd, Wanted


class PlanWanted(Wanted):
    """Prompts to plan; planning spends nothing."""

    name: Name = "prompts.jsonl"
    """Display name of the job."""
    prompts: str
    """JSONL: OpenAI's batch lines, or one prompt per line. At most `server.max_body_bytes` bytes."""
    route: Name = "auto"
    """The route of lines that name no model."""
    budget_usd: Usd | None = None
    """None: as much as the live route would spend."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds from the start of the job; None: no deadline."""
    min_quality: Share = 0.0
    """Least predicted quality of every answer."""
    skip_bad: bool = False
    """Leave bad lines out and plan the rest."""


class PlanPoint(BaseModel):
    """What a budget would buy."""

    budget_usd: float | None
    """None: unlimited."""
    cost_usd: Interval
    quality: Interval
    """Mean over prompts, 0 to 1."""
    calls: dict[str, int]
    """Number of prompts by the model, or way of answering, that would answer them."""


class BatchPlan(BaseModel):
    """A job that has not been started. In the state `refused`, `problem` says why, and `problems` lists the first bad
    lines.
    """

    id: str
    state: Literal["planning", "ready", "refused"]
    name: str
    actor: str
    time_s: float
    route: str
    budget_usd: float | None
    deadline_s: float | None
    min_quality: float
    skip_bad: bool
    prompts: int = 0
    repeats: int = 0
    """Lines that repeat another line; they share its answer."""
    chosen: PlanPoint | None = None
    frontier: list[PlanPoint] = []
    problem: str = ""
    problems: list[str] = []
    least_budget_usd: float | None = None
    """The least budget that is enough, where the given one is too small."""


class PlanRun(Wanted):
    """Start a planned job. With a budget other than the plan's, the job is planned again."""

    budget_usd: Usd | None = None


class BatchAnswer(BaseModel):
    """Outcome of one prompt."""

    place: int
    """Index in the input, from 0; faulty and repeated lines are not counted."""
    state: Literal["started", "open", "done", "failed"]
    model: str
    status: int
    tries: int
    cost_usd: float
    decision_id: str


class BatchAnswers(BaseModel):
    """Outcomes in the order of the input. `next` is the `after` of the next page; None: there are no more so far."""

    data: list[BatchAnswer]
    next: int | None
