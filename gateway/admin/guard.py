"""Authentication and authorisation of the admin API and the dashboard.

A request is authenticated by the master key as a bearer token (scripts), by the cookie of a session (people), or, where
there is neither a master key nor a user, by coming from this machine. In the last case a web page in the operator's
browser could send requests through the operator's own machine; so a foreign Origin, or a Host that isn't a loopback
name (DNS rebinding), is refused. Browsers send cookies with every request, so a change that is authenticated by a
cookie needs the session's CSRF token too.
"""

from __future__ import annotations

import hmac
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
from gateway.loopback import names_loopback

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_FORM_BYTES = 1 << 20
__all__ = [
    "Actor", "Admin", "Operator", "Services", "Viewer", "admin", "identify", "is_known", "may", "operator",
    "services_of", "viewer",
]  # fmt: skip

documented = [
    Depends(HTTPBearer(auto_error=False, description="The master key.")),
    Depends(APIKeyCookie(name=COOKIE, auto_error=False, description="A session from POST /admin/session.")),
]
"""Security schemes for OpenAPI only; `identify` does the checking."""


def services_of(request: Request) -> AdminServices:
    """The services of the application that answers this request."""
    services: AdminServices = request.app.state.services
    return services


def identify(request: Request) -> Actor:
    """Authenticate a request. Blocks on the database where a session must be looked up.

    Raises Unauthorized or PolicyError.
    """
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
    """Whether the request is authenticated; False also while the database can't be reached."""
    try:
        identify(request)
    except (HeadgateError, sa.exc.SQLAlchemyError):
        return False
    return True


async def form_token(request: Request) -> str:
    """The form's field `csrf_token`; empty where there is no form, or a header carries the token."""
    if request.method in _SAFE or request.headers.get("x-csrf-token"):
        return ""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return ""
    if int(request.headers.get("content-length") or 0) > _MAX_FORM_BYTES:
        return ""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    return fields.get("csrf_token", [""])[0]


def viewer(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Dependency: the actor, who must be signed in."""
    return _need(request, form, "viewer")


def operator(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Dependency: the actor, who must be at least an operator: may turn knobs, promote, label and clear the cache."""
    return _need(request, form, "operator")


def admin(request: Request, form: Annotated[str, Depends(form_token)]) -> Actor:
    """Dependency: the actor, who must be an admin: may also change users, keys, budgets, providers and models."""
    return _need(request, form, "admin")


Services = Annotated[AdminServices, Depends(services_of)]
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
    if not names_loopback(client):
        raise PolicyError("without a master key the admin API answers requests from this machine only")
    host = request.headers.get("host", "")
    origin = request.headers.get("origin", "")
    if not names_loopback(urlsplit(f"//{host}").hostname or ""):
        raise PolicyError("without a master key the admin API must be addressed by a loopback name, such as localhost")
    if origin and urlsplit(origin).netloc != host:
        raise PolicyError("without a master key the admin API refuses requests from other sites' pages")
