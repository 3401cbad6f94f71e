"""The page of the cache."""

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
    """Figures of a time window, and the entries that match the filter."""
    return _page(request, who, window, {"query": query, "tenant": tenant, "model": model}, max(offset, 0))


@router.post("/cache/entries/{id}/delete")
def delete(request: Request, who: Annotated[Actor, Depends(operator)], id: str) -> Response:
    """Delete one entry."""
    done = admin_cache.delete_entry(services_of(request), who, id)
    return _page(request, who, "day", {}, 0, said=_message(done, "The entry"))


@router.post("/cache/tenants/delete")
def delete_tenant(request: Request, who: Annotated[Actor, Depends(operator)], fields: Fields) -> Response:
    """Delete all entries of a tenant."""
    done = admin_cache.delete_tenant(services_of(request), who, fields.get("tenant", ""))
    return _page(request, who, "day", {}, 0, said=_message(done, f"All of {fields.get('tenant', '')}'s entries"))


def _page(
    request: Request, who: Actor, window: Window, filters: dict[str, str], offset: int, said: str = ""
) -> Response:
    services = services_of(request)
    context = {
        "title": "Cache", "summary": admin_cache.summary(services, window), "window": window, "asked": filters,
        "offset": offset, "page": PAGE,
        "found": admin_cache.entries(services, who, **filters, limit=PAGE, offset=offset),
    }  # fmt: skip
    return render(request, who, "cache.html", context, said=said)


def _message(done: CacheDeleted, what: str) -> str:
    if not done.deleted:
        return f"{what} had been deleted already."
    confirmed = f"; {done.confirmed} of {done.workers} workers have confirmed it" if done.workers else ""
    return f"{what} {'is' if what == 'The entry' else 'are'} deleted{confirmed}."
