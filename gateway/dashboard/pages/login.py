"""The login page, and signing in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from gateway.admin import sessions
from gateway.admin.accounts import refuse_other_sites
from gateway.admin.guard import services_of
from gateway.admin.shapes.access import SignIn
from gateway.dashboard.forms import Fields
from gateway.dashboard.page import render_plain
from gateway.errors import HeadgateError

router = APIRouter()


@router.get("/login")
def show(request: Request, next: str = "/") -> Response:
    """The login form; a redirect to the next page where no login is needed."""
    if sessions.is_open(services_of(request)):
        return RedirectResponse(_own_page(next), 303)
    note = "You were signed out, or your session has expired." if next != "/" else ""
    return render_plain(request, "login.html", {"fault": None, "note": note, "next": _own_page(next), "user": ""})


@router.post("/login")
def sign_in(request: Request, fields: Fields) -> Response:
    """Sign in, and redirect to the requested page; on failure the form again, with the error."""
    refuse_other_sites(request)
    user, secret, target = fields.get("user", ""), fields.get("password", ""), _own_page(fields.get("next", "/"))
    wanted = SignIn(user=user, password=secret) if user else SignIn(master_key=secret)
    try:
        signed = sessions.sign_in(services_of(request), wanted, request)
    except HeadgateError as fault:
        context = {"fault": fault, "note": "", "next": target, "user": user}
        return render_plain(request, "login.html", context, status=fault.status)
    response = RedirectResponse(target, 303)
    sessions.set_cookies(response, request, signed)
    return response


@router.post("/logout")
def sign_out(request: Request) -> Response:
    """Sign out."""
    refuse_other_sites(request)
    sessions.sign_out(services_of(request), request)
    response = RedirectResponse("/login", 303)
    sessions.clear_cookie(response)
    return response


def _own_page(path: str) -> str:
    """The path where it is on this site, else "/", so that nobody is redirected to another site."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
