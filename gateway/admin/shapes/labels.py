"""Feedback, and the queue of decisions to label."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.admin.shapes.common import Share, Wanted
from gateway.admin.shapes.decisions import FeedbackRow


class ToLabel(BaseModel):
    """A decision without a score."""

    id: str
    time_s: float
    route: str
    model: str
    answered_model: str
    gain: float
    """Information that a label would add about the model that answered, in nats, weighted by how close the choice was.
    """
    why: str
    """The gain in words."""
    quality: float | None
    """The quality that the router expected."""
    prompt_text: str
    answer_text: str
    """Both texts are empty where the route doesn't store text, or the reader's role may not see it."""


class LabelQueue(BaseModel):
    """Decisions to label, the most informative first; those without stored text come last."""

    data: list[ToLabel]
    waiting: int
    """Number of unlabelled decisions that were considered."""
    time_s: float | None
    """When the queue was computed; None: not yet."""
    without_text: int
    """How many of `waiting` can't be read here, because their route doesn't store text."""
    note: str = ""


class LabelWanted(Wanted):
    """Score of an answer: 1 is right, 0 is wrong, and values between are allowed."""

    score: Share
    label: Annotated[str, Field(max_length=200)] = ""
    comment: Annotated[str, Field(max_length=4000)] = ""


class FeedbackPage(BaseModel):
    """A page of feedback, newest first. `next` is the cursor of the next page; null on the last."""

    data: list[FeedbackRow]
    next: str | None


class FeedbackSummary(BaseModel):
    """Feedback of the last seven days."""

    by_source: dict[str, int]
    scored: int
    mean_score: float | None
    unattached: int
    """Number of entries whose decision is not known."""
