"""GET /v1/models: routes first, then the models that they use. Ids may contain slashes."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.files import page_limit, place_of, query_value
from gateway.asgi import Answer, Request
from gateway.errors import UnknownModel
from gateway.keys import Caller
from gateway.reply import JSON

CREATED = 1735689600
"""Unix time that every entry reports, since clients require the field; it has no meaning here."""


async def list_models(request: Request, _: str) -> Answer:
    """List the routes and models that the key may use."""
    caller = request.caller()
    book = request.services.book
    names = [name for name in (*book.routes, *book.models) if caller.may_use(name)]
    if request.is_anthropic:
        return 200, [JSON], msgspec.json.encode(_anthropic_page(request, names))
    return 200, [JSON], msgspec.json.encode({"object": "list", "data": [_openai(request, name) for name in names]})


async def get_model(request: Request, name: str) -> Answer:
    """Show a route or a model."""
    _check_known(request, request.caller(), name)
    shape = _anthropic(name) if request.is_anthropic else _openai(request, name)
    return 200, [JSON], msgspec.json.encode(shape)


def _anthropic_page(request: Request, names: list[str]) -> dict[str, Any]:
    """One page in the form of Anthropic's API."""
    limit = page_limit(request, 1000, 1000)
    before = query_value(request, "before_id")
    place = place_of(request, "before_id" if before else "after_id", names)
    rest = names[:place] if before else names[place + 1 :]
    shown = rest[-limit:] if before else rest[:limit]
    return {
        "data": [_anthropic(name) for name in shown],
        "has_more": len(rest) > limit,
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def _check_known(request: Request, caller: Caller, name: str) -> None:
    if not caller.may_use(name):
        raise UnknownModel(f"The model '{name}' does not exist or this key may not use it.", param="model")
    request.services.book.find(name)


def _openai(request: Request, name: str) -> dict[str, Any]:
    route = request.services.book.routes.get(name)
    owner = "headgate" if route else request.services.book.models[name].config.provider
    return {"id": name, "object": "model", "created": CREATED, "owned_by": owner}


def _anthropic(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z",
            "lifecycle": "active"}
