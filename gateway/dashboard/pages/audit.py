"""Who changed what, when; and taking it back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import audit as log
from gateway.admin.guard import Actor, desk_of, operator, viewer
from gateway.dashboard.forms import Fields, seen
from gateway.dashboard.page import render

router = APIRouter()
PAGE = 100


@router.get("/audit")
def show(
    request: Request, who: Annotated[Actor, Depends(viewer)], before_s: float | None = None, action: str = ""
) -> Response:
    """Newest first."""
    return _page(request, who, before_s, action)


@router.post("/audit/undo")
def undo(request: Request, who: Annotated[Actor, Depends(operator)], fields: Fields) -> Response:
    """Back to the version named."""
    name = fields.get("name", "")
    log.undo_setting(desk_of(request), who, name, seen(fields))
    return _page(request, who, None, "", said=f"Undone: {name} is as it was.")


def _page(request: Request, who: Actor, before_s: float | None, action: str, said: str = "") -> Response:
    rows = log.audit_log(desk_of(request), before_s, action, PAGE)
    context = {
        "title": "Audit log", "rows": rows, "action": action, "first": before_s is not None,
        "further": rows[-1].time_s if len(rows) == PAGE else None,
    }  # fmt: skip
    return render(request, who, "audit.html", context, said=said)
