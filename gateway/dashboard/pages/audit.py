"""The page of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import audit as admin_audit
from gateway.admin.cursors import next_cursor, read_cursor
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.common import AuditRow
from gateway.dashboard.download import MOST_ROWS, PAGE_ROWS, as_csv, pages
from gateway.dashboard.forms import Fields, seen
from gateway.dashboard.page import render

router = APIRouter()
PAGE = 100


@router.get("/audit")
def show(
    request: Request, who: Annotated[Actor, Depends(viewer)], cursor: str = "", action: str = ""
) -> Response:
    """A page of the audit log, newest first."""
    return _page(request, who, cursor, action)


@router.get("/audit.csv")
def download(request: Request, who: Annotated[Actor, Depends(viewer)], action: str = "") -> Response:
    """The audit log as CSV, or the rows of one action; newest first."""
    services = services_of(request)

    def page(cursor: str) -> tuple[list[AuditRow], str | None]:
        rows = admin_audit.audit_log(services, read_cursor(cursor), action, PAGE_ROWS)
        return rows, next_cursor(rows, PAGE_ROWS)

    return as_csv("audit", AuditRow, pages(page), but=["undo"])


@router.post("/audit/undo")
def undo(request: Request, who: Annotated[Actor, Depends(operator)], fields: Fields) -> Response:
    """Undo a change."""
    name = fields.get("name", "")
    admin_audit.undo_setting(services_of(request), who, name, seen(fields))
    return _page(request, who, said=f"Undone: {name} has its earlier value again.")


def _page(request: Request, who: Actor, cursor: str = "", action: str = "", said: str = "") -> Response:
    rows = admin_audit.audit_log(services_of(request), read_cursor(cursor), action, PAGE)
    context = {
        "title": "Audit log", "rows": rows, "action": action, "first": bool(cursor),
        "further": next_cursor(rows, PAGE), "most": MOST_ROWS,
    }  # fmt: skip
    return render(request, who, "audit.html", context, said=said)
