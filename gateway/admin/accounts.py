"""Signing in over HTTP, and users."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from gateway.admin import users
from gateway.admin.changes import database
from gateway.admin.guard import Admin, Services, Viewer
from gateway.admin.sessions import clear_cookie, set_cookies, sign_in, sign_out
from gateway.admin.shapes.access import NewUser, Session, SignIn, User, UserChange
from gateway.errors import PolicyError

sessions_api = APIRouter(prefix="/admin/session", tags=["session"])
"""The only paths under /admin that may be used without being signed in."""
router = APIRouter(prefix="/admin/users", tags=["users"])


@sessions_api.post("", status_code=201)
def post_session(services: Services, request: Request, response: Response, wanted: SignIn) -> Session:
    """Sign in, with the master key or as a user. 401 if name or secret is wrong; 429 after many failed attempts."""
    refuse_other_sites(request)
    with database():
        signed = sign_in(services, wanted, request)
    set_cookies(response, request, signed)
    return signed.session


def refuse_other_sites(request: Request) -> None:
    """Raises PolicyError where another site's page made the browser send this request (login CSRF)."""
    site, origin = request.headers.get("sec-fetch-site", ""), request.headers.get("origin", "")
    foreign = bool(origin) and urlsplit(origin).netloc != request.headers.get("host")
    if site not in ("same-origin", "none") if site else foreign:
        raise PolicyError("signing in or out from another site's page is refused", code="csrf", status=403)


@sessions_api.get("")
def get_session(who: Viewer) -> Session:
    """The user who is signed in, and the CSRF token."""
    return Session(user=who.name, role=who.role, csrf=who.csrf, expires_s=who.expires_s, how=who.how)


@sessions_api.delete("", status_code=204)
def delete_session(services: Services, who: Viewer, request: Request, response: Response) -> None:
    """Sign out."""
    with database():
        sign_out(services, request)
    clear_cookie(response)


@router.get("")
def get_users(services: Services, who: Admin) -> list[User]:
    """List users by name."""
    return users.list_users(services)


@router.post("", status_code=201)
def post_user(services: Services, who: Admin, wanted: NewUser) -> User:
    """Add a user; 409 if the name is taken."""
    return users.add_user(services, who, wanted)


@router.patch("/{name}")
def patch_user(services: Services, who: Admin, name: str, change: UserChange) -> User:
    """Change the role or password of a user, or disable the user."""
    return users.change_user(services, who, name, change)


@router.delete("/{name}", status_code=204)
def delete_user(services: Services, who: Admin, name: str) -> None:
    """Delete a user and end all of that user's sessions."""
    users.delete_user(services, who, name)
