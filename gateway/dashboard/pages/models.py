"""The pages of models and providers: their state, and forms to add or change them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin import models as admin_models
from gateway.admin.guard import Actor, admin, operator, services_of, viewer
from gateway.admin.shapes.models import Checked, Fleet, ModelCard, ModelWanted, ProviderCard, ProviderWanted
from gateway.dashboard.forms import Fields, checked, listed, picked, seen, shaped
from gateway.dashboard.page import render
from gateway.dashboard.words import confirmed
from gateway.errors import CallerError, NotFound
from local_models.backends import PROFILES

router = APIRouter()
ABILITIES = ("tools", "images", "json_schema", "logprobs")
KINDS = ("openai", "anthropic", "azure", "local", "scripted")


@router.get("/models")
def show(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """All models, providers and inference servers."""
    return _page(request, who)


@router.get("/models/edit")
def edit_model(request: Request, who: Annotated[Actor, Depends(admin)], name: str = "") -> Response:
    """The form of a model; empty for a new one."""
    fleet = admin_models.fleet(services_of(request))
    card = _model(fleet, name) if name else None
    context = {
        "title": name or "New model", "kind": "model", "card": card, "providers": fleet.providers,
        "routes": [one.name for one in services_of(request).config.routes],
    }  # fmt: skip
    return render(request, who, "model_edit.html", context)


@router.post("/models/save")
def save_model(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Add or change a model."""
    name = _name(fields)
    given: dict[str, Any] = {**picked(fields, ModelWanted), **checked(fields, *ABILITIES)}
    given["routes"] = listed(fields["routes"]) if "routes" in fields else None
    done = admin_models.put_model(services_of(request), who, name, shaped(ModelWanted, given))
    return _page(request, who, said=f"Model {name} is in force{confirmed(done)}.")


@router.post("/models/remove")
def remove_model(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Undo all changes to a model."""
    name = _name(fields)
    done = admin_models.remove_model(services_of(request), who, name, seen(fields))
    return _page(request, who, said=f"Model {name}: the change made here is removed{confirmed(done)}.")


@router.get("/providers/edit")
def edit_provider(request: Request, who: Annotated[Actor, Depends(admin)], name: str = "") -> Response:
    """The form of a provider; fields of secrets are always empty."""
    fleet = admin_models.fleet(services_of(request))
    card = _provider(fleet, name) if name else None
    context = {
        "title": name or "New provider", "kind": "provider", "card": card, "kinds": KINDS,
        "engines": [("", "another, or an API"), *PROFILES],
    }  # fmt: skip
    return render(request, who, "provider_edit.html", context)


@router.post("/providers/save")
def save_provider(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Add or change a provider. A secret whose field is empty stays as it is, unless its removal is ticked."""
    name = _name(fields)
    given: dict[str, Any] = {**picked(fields, ProviderWanted), **checked(fields, "verify_tls")}
    if fields.get("forget_key") == "on":
        given["api_key"] = ""
    given["headers"] = _headers(fields)
    done = admin_models.put_provider(services_of(request), who, name, shaped(ProviderWanted, given))
    return _page(request, who, said=f"Provider {name} is in force{confirmed(done)}.")


@router.post("/providers/remove")
def remove_provider(request: Request, who: Annotated[Actor, Depends(admin)], fields: Fields) -> Response:
    """Undo all changes to a provider."""
    name = _name(fields)
    done = admin_models.remove_provider(services_of(request), who, name, seen(fields))
    return _page(request, who, said=f"Provider {name}: the change made here is removed{confirmed(done)}.")


@router.post("/providers/check")
def check_provider(request: Request, who: Annotated[Actor, Depends(operator)], fields: Fields) -> Response:
    """Test the connection to a provider, which costs nothing."""
    name = _name(fields)
    return _page(request, who, found=(name, admin_models.check_provider(services_of(request), who, name)))


def _page(request: Request, who: Actor, said: str = "", found: tuple[str, Checked] | None = None) -> Response:
    context = {"title": "Models", "fleet": admin_models.fleet(services_of(request)), "found": found}
    return render(request, who, "models.html", context, said=said, at="/models")


def _model(fleet: Fleet, name: str) -> ModelCard:
    for card in fleet.models:
        if card.name == name:
            return card
    raise NotFound(f"there is no model named '{name}'")


def _provider(fleet: Fleet, name: str) -> ProviderCard:
    for card in fleet.providers:
        if card.name == name:
            return card
    raise NotFound(f"there is no provider named '{name}'")


def _name(fields: dict[str, str]) -> str:
    if not fields.get("name"):
        raise CallerError("a name must be given", status=422, param="name")
    return fields["name"]


def _headers(fields: dict[str, str]) -> dict[str, str | None]:
    """Headers from lines of `name: value`; a name alone keeps the header's stored value (None)."""
    found: dict[str, str | None] = {}
    for line in fields.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if name.strip():
            found[name.strip()] = value.strip() if colon and value.strip() else None
    return found
