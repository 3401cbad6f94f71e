"""The admin API's reference, made of its OpenAPI description: FastAPI's own pages fetch scripts from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from gateway.admin.guard import Actor, viewer
from gateway.dashboard.page import render

router = APIRouter()
METHODS = ("get", "post", "put", "patch", "delete")
Spec = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One that is sent: in the path, the query or the body."""

    name: str
    kind: str
    place: str
    required: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked."""

    method: str
    path: str
    text: str
    fields: tuple[Field, ...]


@router.get("/reference")
def show(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """By subject, as the API names them."""
    context = {"title": "API reference", "rooms": rooms(request.app.openapi())}
    return render(request, who, "reference.html", context)


def rooms(spec: Spec) -> dict[str, list[Operation]]:
    """Every operation under `/admin`, by its tag."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for path, methods in spec["paths"].items():
        for method in METHODS:
            if method in methods and path.startswith("/admin"):
                told = methods[method]
                found[(told.get("tags") or ["other"])[0]].append(_operation(spec, method, path, told))
    return dict(sorted(found.items()))


def _operation(spec: Spec, method: str, path: str, told: Spec) -> Operation:
    sent = [
        Field(one["name"], _kind(one["schema"]), one["in"], bool(one.get("required")))
        for one in told.get("parameters", ())
    ]
    content = told.get("requestBody", {}).get("content", {}).get("application/json", {})
    body = _resolved(spec, content.get("schema", {}))
    must = body.get("required", ())
    sent += [Field(name, _kind(one), "body", name in must) for name, one in body.get("properties", {}).items()]
    return Operation(method.upper(), path, told.get("description") or told.get("summary", ""), tuple(sent))


def _resolved(spec: Spec, schema: Spec) -> Spec:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Spec = spec["components"]["schemas"][name] if name else schema
    return found


def _kind(schema: Spec) -> str:
    """A type in words: `number or null`, `list of string`, one of some values."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return ", ".join(str(one) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("const") or "any")
