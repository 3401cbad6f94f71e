"""The pages of keys, of tenants with their budgets and limits, and of the dashboard's users."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import APIRouter, Depends, Query, Request, Response

from gateway.admin import keys as admin_keys
from gateway.admin import tenants as admin_tenants
from gateway.admin import users as admin_users
from gateway.admin.guard import Actor, admin, services_of, viewer
from gateway.admin.shapes.access import KeyChange, KeyRotation, MadeKey, NewKey, NewUser, TenantWanted, UserChange
from gateway.dashboard.forms import Fields, checked, listed, optional, picked, seen, shaped
from gateway.dashboard.page import page_of, render
from gateway.dashboard.words import confirmed
from gateway.errors import CallerError

router = APIRouter()
KEYS_SHOWN = 200
"""Most keys on one page."""


# -- keys


@router.get("/keys")
def show_keys(
    request: Request, who: Annotated[Actor, Depends(viewer)], revoked: bool = False, search: str = "",
    start: Annotated[int, Query(ge=0)] = 0,
) -> Response:  # fmt: skip
    """A page of keys; revoked ones on request only."""
    return _keys(request, who, revoked=revoked, search=search, start=start)


@router.post("/keys/new")
def make_key(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Create a key. Its plaintext is on the resulting page, and nowhere else."""
    made = admin_keys.make_key(services_of(request), who, shaped(NewKey, _key_fields(fields, picked(fields, NewKey))))
    return _keys(request, who, made=made)


@router.get("/keys/edit")
def edit_key(request: Request, who: Annotated[Actor, Depends(admin)], id: str) -> Response:
    """The form of a key."""
    row = admin_keys.key_row(services_of(request), id)
    return render(request, who, "key_edit.html", {"title": row.name, "row": row})


@router.post("/keys/{id}/change")
def change_key(request: Request, who: Annotated[Actor, Depends(admin)], id: str, fields: Fields) -> Response:
    """Change a key; an empty limit is removed."""
    given = {**_key_fields(fields, optional(fields, KeyChange)), "version": seen(fields)}
    changed = admin_keys.change_key(services_of(request), who, id, shaped(KeyChange, given))
    return _keys(request, who, said=f"Key {changed.name} is changed.")


@router.post("/keys/{id}/rotate")
def rotate_key(request: Request, who: Annotated[Actor, Depends(admin)], id: str, fields: Fields) -> Response:
    """Rotate a key. Its new secret is on the resulting page, and nowhere else."""
    wanted = shaped(KeyRotation, picked(fields, KeyRotation))
    return _keys(request, who, made=admin_keys.rotate_key(services_of(request), who, id, wanted))


@router.post("/keys/{id}/revoke")
def revoke_key(request: Request, who: Annotated[Actor, Depends(admin)], id: str) -> Response:
    """Revoke a key."""
    gone = admin_keys.revoke_key(services_of(request), who, id)
    search = dict(parse_qsl(urlsplit(page_of(request)).query)).get("search", "")
    return _keys(request, who, search=search, said=f"Key {gone.name} is revoked; workers refuse it within a second.")


def _keys(
    request: Request, who: Actor, *, revoked: bool = False, search: str = "", start: int = 0, said: str = "",
    made: MadeKey | None = None,
) -> Response:  # fmt: skip
    page = admin_keys.key_page(services_of(request), KEYS_SHOWN, start=start, search=search, revoked=revoked)
    asked = urlencode({name: one for name, one in (("search", search), ("revoked", "true" if revoked else "")) if one})
    context = {
        "title": "Keys", "page": page, "rows": page.rows, "revoked": revoked, "search": search, "start": start,
        "shown": KEYS_SHOWN, "asked": asked, "made": made, "now_s": time.time(),
    }  # fmt: skip
    return render(request, who, "keys.html", context, said=said)


def _key_fields(fields: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """The key's fields with checkboxes, lists and the date converted."""
    given = {**given, **checked(fields, "knobs", "explore")}
    if "models" in fields:
        given["models"] = listed(fields["models"])
    if given.get("expires_s"):
        given["expires_s"] = _day(str(given["expires_s"]))
    return given


def _day(text: str) -> float:
    """The end of a day in UTC, in Unix seconds. Raises CallerError."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() + 86400
    except ValueError:
        raise CallerError("the day must be written as 2030-12-31", status=422, param="expires_s") from None


# -- tenants, budgets, limits


@router.get("/tenants")
def show_tenants(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """All tenants, and the limits of routes."""
    return _tenants(request, who)


@router.post("/tenants/save")
def save_tenant(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Set a tenant's budget."""
    name = fields.get("name", "")
    if not name:
        raise CallerError("a tenant's name must be given", status=422, param="name")
    done = admin_tenants.put_tenant(services_of(request), who, name, shaped(TenantWanted, picked(fields, TenantWanted)))
    return _tenants(request, who, said=f"The budget of {name} is in force{confirmed(done)}.")


@router.post("/tenants/remove")
def remove_tenant(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Undo all changes to a tenant."""
    admin_tenants.remove_tenant(services_of(request), who, fields.get("name", ""), seen(fields))
    return _tenants(request, who, said=f"The budget of {fields.get('name', '')} that was set here is removed.")


def _tenants(request: Request, who: Actor, said: str = "") -> Response:
    services = services_of(request)
    context = {
        "title": "Tenants", "rows": admin_tenants.tenants(services), "limits": admin_tenants.route_limits(services)
    }
    return render(request, who, "tenants.html", context, said=said)


# -- users of this dashboard


@router.get("/users")
def show_users(request: Request, who: Annotated[Actor, Depends(admin)]) -> Response:
    """All users; the master key works beside them."""
    return _users(request, who)


@router.post("/users/new")
def add_user(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Add a user."""
    made = admin_users.add_user(services_of(request), who, shaped(NewUser, picked(fields, NewUser)))
    closed = " From now on everybody must sign in." if who.how == "this machine" else ""
    return _users(request, who, said=f"{made.name} may sign in as {made.role}.{closed}")


@router.post("/users/{name}/change")
def change_user(request: Request, who: Annotated[Actor, Depends(admin)], name: str, fields: Fields) -> Response:
    """Change a user's role or password, or disable or enable the user."""
    given = picked(fields, UserChange)
    made = admin_users.change_user(services_of(request), who, name, shaped(UserChange, given))
    return _users(request, who, said=f"{made.name}: {'may not sign in any more' if made.disabled else made.role}.")


@router.post("/users/{name}/delete")
def delete_user(request: Request, who: Annotated[Actor, Depends(admin)], name: str) -> Response:
    """Delete a user."""
    admin_users.delete_user(services_of(request), who, name)
    return _users(request, who, said=f"The user {name} is deleted.")


def _users(request: Request, who: Actor, said: str = "") -> Response:
    context = {
        "title": "Users", "rows": admin_users.list_users(services_of(request)), "open": who.how == "this machine",
    }  # fmt: skip
    return render(request, who, "users.html", context, said=said)
