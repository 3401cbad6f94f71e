"""The cache: what it saves, how often it is wrong, and what is in it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import cache as admin_cache
from gateway.admin.guard import Actor, operator, services_of, viewer
from gateway.admin.shapes.cache import CacheDeleted
from gateway.admin.shapes.common import Window
from gateway.dashboard.forms import Fields
from gateway.dashboard.page import render

router = APIRouter()
PAGE = 50


@router.get("/cache")
def show(
    request: Request, who: Annotated[Actor, Depends(viewer)], window: Window = "day", query: str = "",
    tenant: str = "", model: str = "", offset: int = 0,
) -> Response:  # fmt: skip
    """Figures of a window, and the entries that match."""
    return _page(request, who, window, {"query": query, "tenant": tenant, "model": model}, max(offset, 0))


@router.post("/cache/entries/{id}/delete")
def delete(request: Request, who: Annotated[Actor, Depends(operator)], id: str) -> Response:
    """Forgets one answer."""
    done = admin_cache.delete_entry(services_of(request), who, id)
    return _page(request, who, "day", {}, 0, said=_said(done, "The entry"))


@router.post("/cache/tenants/delete")
def delete_tenant(request: Request, who: Annotated[Actor, Depends(operator)], fields: Fields) -> Response:
    """Forgets all answers of a tenant."""
    done = admin_cache.delete_tenant(services_of(request), who, fields.get("tenant", ""))
    return _page(request, who, "day", {}, 0, said=_said(done, f"All of {fields.get('tenant', '')}'s entries"))


def _page(
    request: Request, who: Actor, window: Window, asked: dict[str, str], offset: int, said: str = ""
) -> Response:
    services = services_of(request)
    context = {
        "title": "Cache", "told": admin_cache.summary(services, window), "window": window, "asked": asked,
        "offset": offset,
        "page": PAGE, "found": admin_cache.entries(services, who, **asked, limit=PAGE, offset=offset),
    }  # fmt: skip
    return render(request, who, "cache.html", context, said=said)


def _said(done: CacheDeleted, what: str) -> str:
    if not done.deleted:
        return f"{what} had gone already."
    of = f" by {done.confirmed} of {done.workers} workers" if done.workers else ""
    return f"{what} is forgotten{of}." if what == "The entry" else f"{what} are forgotten{of}."
