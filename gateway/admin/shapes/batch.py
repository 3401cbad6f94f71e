"""Batch jobs before they begin, and what came of their prompts. The jobs themselves: gateway.admin.batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Interval, Name, Share, Usd, Wanted


class PlanWanted(Wanted):
    """Prompts to be planned; nothing is spent."""

    name: Name = "prompts.jsonl"
    """For people."""
    prompts: str
    """JSONL: OpenAI's batch lines, or a prompt a line. At most `server.max_body_bytes`."""
    route: Name = "auto"
    """Answers lines that name no model."""
    budget_usd: Usd | None = None
    """None: as much as the live route would spend."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds from the start; None: any."""
    min_quality: Share = 0.0
    """Least predicted quality of every answer."""
    skip_bad: bool = False
    """Leave bad lines out and plan the rest."""


class PlanPoint(BaseModel):
    """What a budget buys."""

    budget_usd: float | None
    """None: no limit."""
    cost_usd: Interval
    quality: Interval
    """Mean over prompts, 0 to 1."""
    calls: dict[str, int]
    """Prompts by who would answer."""


class BatchPlan(BaseModel):
    """A job that has not begun. Refused: `problem` says why, `problems` line by line as far as a screen takes them."""

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
    """Lines that ask what another one asks; they are answered once."""
    chosen: PlanPoint | None = None
    frontier: list[PlanPoint] = []
    problem: str = ""
    problems: list[str] = []
    least_budget_usd: float | None = None
    """Where no plan fits: the least that would."""


class PlanRun(Wanted):
    """Begin. Another budget than the plan's is planned for anew, by the same means."""

    budget_usd: Usd | None = None


class BatchAnswer(BaseModel):
    """What one prompt came to."""

    place: int
    """In the input, from 0, bad and repeated lines not counted."""
    state: Literal["started", "open", "done", "failed"]
    model: str
    status: int
    tries: int
    cost_usd: float
    decision_id: str


class BatchAnswers(BaseModel):
    """In the input's order. `next` is the place to go on after; None: these are the last so far."""

    data: list[BatchAnswer]
    next: int | None
