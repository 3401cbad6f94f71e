"""The admin API's reference page, rendered from its OpenAPI document: FastAPI's own pages load scripts from elsewhere.
"""

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
    """A parameter of an operation: in the path, the query or the body."""

    name: str
    kind: str
    place: str
    required: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of the API: a method on a path."""

    method: str
    path: str
    text: str
    fields: tuple[Field, ...]


@router.get("/reference")
def show(request: Request, who: Annotated[Actor, Depends(viewer)]) -> Response:
    """All operations of the admin API, by tag."""
    context = {"title": "API reference", "operations": operations_of(request.app.openapi())}
    return render(request, who, "reference.html", context)


def operations_of(spec: Spec) -> dict[str, list[Operation]]:
    """All operations under `/admin`, by tag."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for path, methods in spec["paths"].items():
        for method in METHODS:
            if method in methods and path.startswith("/admin"):
                operation = methods[method]
                found[(operation.get("tags") or ["other"])[0]].append(_operation(spec, method, path, operation))
    return dict(sorted(found.items()))


def _operation(spec: Spec, method: str, path: str, operation: Spec) -> Operation:
    fields = [
        Field(one["name"], _kind(one["schema"]), one["in"], bool(one.get("required")))
        for one in operation.get("parameters", ())
    ]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    body = _resolved(spec, content.get("schema", {}))
    required = body.get("required", ())
    fields += [Field(name, _kind(one), "body", name in required) for name, one in body.get("properties", {}).items()]
    text = operation.get("description") or operation.get("summary", "")
    return Operation(method.upper(), path, text, tuple(fields))


def _resolved(spec: Spec, schema: Spec) -> Spec:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Spec = spec["components"]["schemas"][name] if name else schema
    return found


def _kind(schema: Spec) -> str:
    """A schema's type in words, such as `number or null` or `list of string`; for an enumeration, its values."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return ", ".join(str(one) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("const") or "any")
