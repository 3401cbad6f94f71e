"""The pages of labels and of feedback."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import labels as admin_labels
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.labels import LabelWanted
from gateway.dashboard.forms import Fields, picked, shaped
from gateway.dashboard.page import render

router = APIRouter()
QUEUE = 20


@router.get("/labels")
def show(request: Request, who: Annotated[Actor, Depends(viewer)], route: str = "", skip: int = 0) -> Response:
    """The decision to label next, and those after it."""
    return _page(request, who, route, max(skip, 0))


@router.post("/labels/{id}")
def give(request: Request, who: Annotated[Actor, Depends(operator)], id: str, fields: Fields) -> Response:
    """Score an answer, and show the next decision."""
    admin_labels.label(services_of(request), who, id, shaped(LabelWanted, picked(fields, LabelWanted)))
    return _page(request, who, fields.get("route", ""), 0, said="Recorded. Here is the next one.", done=id)


@router.get("/feedback")
def show_feedback(request: Request, who: Annotated[Actor, Depends(viewer)], cursor: str = "") -> Response:
    """A page of feedback, newest first."""
    services = services_of(request)
    context = {
        "title": "Feedback", "found": admin_labels.feedback(services, cursor),
        "summary": admin_labels.feedback_summary(services), "first": bool(cursor),
    }  # fmt: skip
    return render(request, who, "feedback.html", context)


def _page(request: Request, who: Actor, route: str, skip: int, said: str = "", done: str = "") -> Response:
    services = services_of(request)
    queue = admin_labels.queue(services, who, route, QUEUE)
    waiting = [one for one in queue.data if one.id != done]
    skip = min(skip, max(len(waiting) - 1, 0))
    context = {
        "title": "Labels", "queue": queue, "one": waiting[skip] if waiting else None, "rest": waiting, "skip": skip,
        "route": route, "routes": [one.name for one in services.config.routes],
    }  # fmt: skip
    return render(request, who, "labels.html", context, said=said)
