"""Who may use the admin API and pages, and for what.

Three ways in: the master key as a bearer token (scripts), a signed-in session's cookie (people), or, where there is
neither a master key nor a user, this machine itself. Without a key a web page in the operator's browser could reach us
through the operator's own machine; so a foreign Origin, or a Host that isn't a loopback name (DNS rebinding), is
refused. A cookie is sent by browsers unasked, so a change that comes with one must show the session's CSRF token too.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa
from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPBearer

from gateway.admin.actor import Actor, may
from gateway.admin.services import AdminServices
from gateway.admin.sessions import COOKIE, csrf_of, is_open, session_of
from gateway.admin.shapes.common import Role
from gateway.errors import HeadgateError, PolicyError, Unauthorized

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_FORM_BYTES = 1 << 20
__all__ = [
    "Actor", "Admin", "Means", "Operator", "Viewer", "admin", "identify", "is_known", "may",
    "operator", "services_of", "viewer",
]  # fmt: skip

documented = [
    Depends(HTTPBearer(auto_error=False, description="The master key.")),
    Depends(APIKeyCookie(name=COOKIE, auto_error=False, description="A session from POST /admin/session.")),
]
"""For OpenAPI only; the checking is done by `identify`."""


def services_of(request: Request) -> AdminServices:
    """The means of the application that answers this request."""
    services: AdminServices = request.app.state.services
    return services


def identify(request: Request) -> Actor:
    """Who asks; blocks on the database where a session must be looked up. Raises Unauthorized or PolicyError."""
    services = services_of(request)
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and sent:
        return _by_master_key(services, sent.strip())
    token = request.cookies.get(COOKIE, "")
    if token:
        found = session_of(services, token)
        if found is not None:
            return Actor(found.user, found.role, csrf_of(token), "cookie", found.expires_s)
    if is_open(services):
        _only_this_machine(request)
        return Actor("local", "admin", "", "this machine")
    raise Unauthorized("sign in first, or send the master key as a bearer token")


def is_known(request: Request) -> bool:
    """Somebody who is signed in, as far as can be told now: not while the database is away."""
    try:
        identify(request)
    except (HeadgateError, sa.exc.SQLAlchemyError):
        return False
    return True


async def form_token(request: Request) -> str:
    """The field csrf_token of a form; empty elsewhere."""
    if request.method in _SAFE or request.headers.get("x-csrf-token"):
        return ""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return ""
    if int(request.headers.get("content-length") or 0) > _MAX_FORM_BYTES:
        return ""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    return fields.get("csrf_token", [""])[0]


def viewer(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Anybody who is signed in."""
    return _need(request, form, "viewer")


def operator(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Somebody who may turn knobs, promote, label and clear the cache."""
    return _need(request, form, "operator")


def admin(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Somebody who may do all: users, keys, budgets, providers, models."""
    return _need(request, form, "admin")


Means = Annotated[AdminServices, Depends(services_of)]
Viewer = Annotated[Actor, Depends(viewer)]
Operator = Annotated[Actor, Depends(operator)]
Admin = Annotated[Actor, Depends(admin)]


def _need(request: Request, form: str, role: Role) -> Actor:
    who = identify(request)
    if request.method not in _SAFE and who.how == "cookie":
        sent = request.headers.get("x-csrf-token") or form
        if not hmac.compare_digest(sent.encode(), who.csrf.encode()):
            raise PolicyError("this page is out of date: load it again and repeat the change", code="csrf", status=403)
    if not may(who, role):
        raise PolicyError(f"this needs the role {role}; {who.name} is {who.role}", code="role", status=403)
    return who


def _by_master_key(services: AdminServices, sent: str) -> Actor:
    master_key = services.config.auth.master_key
    if not master_key or not hmac.compare_digest(sent.encode(), master_key.encode()):
        raise Unauthorized("the bearer token is not the master key")
    return Actor("master", "admin", "", "bearer")


def _only_this_machine(request: Request) -> None:
    client = request.client.host if request.client else ""
    if not is_loopback(client):
        raise PolicyError("without a master key the admin API answers this machine only")
    host = request.headers.get("host", "")
    origin = request.headers.get("origin", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise PolicyError("without a master key the admin API answers to loopback names only")
    if origin and urlsplit(origin).netloc != host:
        raise PolicyError("without a master key the admin API answers no other site's pages")


def is_loopback(host: str) -> bool:
    """An address or name of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
