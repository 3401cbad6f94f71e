"""How a page is made: a template, who looks at it, and headers that let it run nothing but our own two scripts."""

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
    """Autoescaping; a name that is not given is an error, never an empty string."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(default=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(units.FILTERS)
    made.globals.update(
        asset=asset, charts=charts, knob_words=words.knob_words, may=may, nav=NAV, outcome_words=words.outcome_words,
        share_bar=words.share_bar, slider=words.slider, units=units, usage_words=words.usage_words,
    )  # fmt: skip
    return made


@cache
def asset(name: str) -> str:
    """A static file's address; it changes with the file, so browsers may keep it for ever."""
    return f"/static/{name}?v={sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def render(
    request: Request, who: Actor, template: str, context: Mapping[str, Any], *, said: str = "", status: int = 200,
    at: str = "",
) -> Response:
    """A page for somebody signed in. `said`: what was just done, shown on top. `at`: the page's own address, where a
    form of another page leads to it.
    """
    theme, address = request.cookies.get(THEME_COOKIE, ""), at or _address(request)
    text = templates().get_template(template).render(
        who=who, here=address.partition("?")[0], address=address, theme=theme if theme in ("light", "dark") else "",
        signs_out=who.how == "cookie", said=said, **context,
    )  # fmt: skip
    pushed = {"hx-push-url": at} if at and request.method == "POST" else {}
    return HTMLResponse(text, status, {**HEADERS, **pushed})


def render_plain(request: Request, template: str, context: Mapping[str, Any], *, status: int = 200) -> Response:
    """A page for nobody in particular: signing in, or what went wrong before anybody was known."""
    theme = request.cookies.get(THEME_COOKIE, "")
    text = templates().get_template(template).render(
        theme=theme if theme in ("light", "dark") else "", here=request.url.path, address=_address(request), **context
    )
    return HTMLResponse(text, status, HEADERS)


def _address(request: Request) -> str:
    """This page's path and query, for asking for it again; after a form, those of the page that the form stands on."""
    if request.method == "GET":
        return request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return page_of(request) or "/"


def page_of(request: Request) -> str:
    """Path and query of the page that a request comes from; empty: it doesn't say."""
    sent = urlsplit(request.headers.get("hx-current-url") or request.headers.get("referer") or "")
    return sent.path + (f"?{sent.query}" if sent.query else "")
