"""Mounts the dashboard in the admin application: its pages, its static files and its error pages."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from gateway.admin.guard import identify
from gateway.dashboard.page import HEADERS, STATIC, page_of, render, render_plain, templates
from gateway.dashboard.pages import ROUTERS
from gateway.errors import HeadgateError, Unauthorized

_ELEMENT = re.compile(r"[a-z]+#([A-Za-z][\w-]*)$")
FOR_EVER = "public, max-age=31536000, immutable"


def mount(app: FastAPI) -> None:
    """Add pages under `/` and files under `/static`, and render errors as pages."""
    for router in ROUTERS:
        app.include_router(router, include_in_schema=False)
    app.mount("/static", _Files(directory=STATIC), name="static")
    app.state.render_error = render_error


class _Files(StaticFiles):
    """Static files, cached for ever: their URLs change with their content."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = FOR_EVER
        response.headers["x-content-type-options"] = "nosniff"
        return response


def render_error(request: Request, fault: HeadgateError) -> Response:
    """Redirect to the login page where nobody is signed in; else render an error: as a note on a part of a page, or as
    a page.
    """
    partial = request.headers.get("hx-request") == "true"
    if isinstance(fault, Unauthorized) and request.url.path != "/login":
        return _to_login(request, partial)
    return _note(request, fault) if partial else _page(request, fault)


def _to_login(request: Request, partial: bool) -> Response:
    wanted = page_of(request) if partial else request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = "/login?next=" + quote(wanted or "/", safe="/")
    if partial:
        return Response(headers={"hx-redirect": target})
    return RedirectResponse(target, 303)


def _note(request: Request, fault: HeadgateError) -> Response:
    """A note in the form that was sent, or on top of the page; the rest of the page stays as it is.

    The ids of a form's further buttons begin with the form's: `knobs--apply` belongs to the form `knobs`.
    """
    source = _ELEMENT.match(request.headers.get("hx-source", ""))
    slot = f"#{source[1].partition('--')[0]} .problem" if source else "#problem"
    text = templates().get_template("problem.html").render(fault=fault)
    event = msgspec.json.encode({"refused": {"param": fault.param or "", "slot": slot}}).decode()
    htmx = {"hx-retarget": slot, "hx-reswap": "innerHTML", "hx-reselect": ".notice", "hx-trigger": event}
    return HTMLResponse(text, fault.status, {**HEADERS, **htmx})


def _page(request: Request, fault: HeadgateError) -> Response:
    try:
        who = identify(request)
    except (HeadgateError, sa.exc.SQLAlchemyError):  # without the database the user is not known
        page = render_plain(request, "fault.html", {"fault": fault}, status=fault.status)
        if fault.status == 503 and request.method == "GET":
            page.headers["refresh"] = "2"
        return page
    return render(request, who, "error.html", {"fault": fault, "title": "Something went wrong"}, status=fault.status)
