"""Renders pages from templates, with headers that allow only the dashboard's own two scripts to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from gateway.admin.guard import Actor, may
from gateway.dashboard import charts, units, words

HERE = Path(__file__).parent
STATIC = HERE / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "cache-control": "no-store", "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin", "vary": "hx-request",
}  # fmt: skip
THEME_COOKIE = "headgate_theme"


@dataclass(frozen=True, slots=True)
class Link:
    """A page in the navigation."""

    path: str
    name: str


NAV: Sequence[tuple[str, Sequence[Link]]] = (
    ("Watch", (Link("/", "Overview"), Link("/decisions", "Decisions"), Link("/models", "Models"))),
    ("Steer", (Link("/routes", "Routes"), Link("/learning", "Learning"), Link("/certificates", "Certificates"),
               Link("/cache", "Cache"), Link("/batch", "Batch jobs"))),
    ("Teach", (Link("/labels", "Labels"), Link("/feedback", "Feedback"))),
    ("Admit", (Link("/keys", "Keys"), Link("/tenants", "Tenants"), Link("/users", "Users"),
               Link("/audit", "Audit log"))),
)  # fmt: skip


@cache
def templates() -> Environment:
    """The template environment: it escapes all values, and raises an error for an undefined name."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(default=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    environment.filters.update(units.FILTERS)
    environment.globals.update(
        asset=asset, charts=charts, knob_words=words.knob_words, may=may, nav=NAV, outcome_words=words.outcome_words,
        share_bar=words.share_bar, slider=words.slider, units=units, usage_words=words.usage_words,
    )  # fmt: skip
    return environment


@cache
def asset(name: str) -> str:
    """URL of a static file; it changes with the file's content, so that browsers may cache it for ever."""
    return f"/static/{name}?v={sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def render(
    request: Request, who: Actor, template: str, context: Mapping[str, Any], *, said: str = "", status: int = 200,
    at: str = "",
) -> Response:
    """Render a page for a signed-in user.

    `said`: a message on top about what was just done. `at`: the page's own URL, where it answers another page's form.
    """
    theme, address = request.cookies.get(THEME_COOKIE, ""), at or _address(request)
    text = templates().get_template(template).render(
        who=who, here=address.partition("?")[0], address=address, theme=theme if theme in ("light", "dark") else "",
        signs_out=who.how == "cookie", said=said, **context,
    )  # fmt: skip
    pushed = {"hx-push-url": at} if at and request.method == "POST" else {}
    return HTMLResponse(text, status, {**HEADERS, **pushed})


def render_plain(request: Request, template: str, context: Mapping[str, Any], *, status: int = 200) -> Response:
    """Render a page without a signed-in user: the login page, or an error before the user was known."""
    theme = request.cookies.get(THEME_COOKIE, "")
    text = templates().get_template(template).render(
        theme=theme if theme in ("light", "dark") else "", here=request.url.path, address=_address(request), **context
    )
    return HTMLResponse(text, status, HEADERS)


def _address(request: Request) -> str:
    """Path and query to load this page again; for a form, those of the page that the form is on."""
    if request.method == "GET":
        return request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return page_of(request) or "/"


def page_of(request: Request) -> str:
    """Path and query of the page that a request comes from; empty where the browser doesn't send them."""
    sent = urlsplit(request.headers.get("hx-current-url") or request.headers.get("referer") or "")
    return sent.path + (f"?{sent.query}" if sent.query else "")
