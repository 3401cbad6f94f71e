"""Feedback, and the queue of decisions whose labels would teach most."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Share, Wanted
from gateway.admin.shapes.decisions import FeedbackRow


class ToLabel(BaseModel):
    """A decision that nobody has scored."""

    id: str
    time_s: float
    route: str
    model: str
    answered_model: str
    gain: float
    """How much its label would teach, in nats of information about the model that answered, weighted by how close
    the choice was."""
    why: str
    """The gain in words."""
    quality: float | None
    """What the router expected."""
    prompt_text: str
    answer_text: str
    """Empty where the route does not store text."""


class LabelQueue(BaseModel):
    """The first teaches most."""

    data: list[ToLabel]
    waiting: int
    """Unlabelled decisions that were weighed."""
    time_s: float | None
    without_text: int
    """Of `waiting`, those that cannot be read here, because their route stores no text; they come last."""
    note: str = ""


class LabelWanted(Wanted):
    """What the answer was worth: 1 right, 0 wrong, or between."""

    score: Share
    label: Annotated[str, Field(max_length=200)] = ""
    comment: Annotated[str, Field(max_length=4000)] = ""


class FeedbackPage(BaseModel):
    """Newest first."""

    data: list[FeedbackRow]
    next: str | None


class FeedbackSummary(BaseModel):
    """Of the last seven days."""

    by_source: dict[str, int]
    scored: int
    mean_score: float | None
    unattached: int
    """Whose decision has not been seen."""
