"""Turns form fields into the admin API's request bodies; an error names the field that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from gateway.errors import CallerError

MAX_FORM_BYTES = 1 << 20
Shape = TypeVar("Shape", bound=BaseModel)


async def read_fields(request: Request) -> dict[str, str]:
    """The form's fields. Of several with one name the last one counts, so that a hidden field may hold a default."""
    body = await request.body()
    if len(body) > MAX_FORM_BYTES:
        raise CallerError("the form is too large", status=413)
    return {name: value.strip() for name, value in parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)}


Fields = Annotated[dict[str, str], Depends(read_fields)]


def shaped(shape: type[Shape], given: Mapping[str, Any]) -> Shape:
    """Validate the fields as `shape`. Raises CallerError (422) that names the first invalid field."""
    try:
        return shape.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        name = place[-1] if place else ""
        raise CallerError(f"{label_of(name)}: {_problem(first)}", status=422, param=name) from None


def picked(fields: Mapping[str, str], shape: type[BaseModel]) -> dict[str, Any]:
    """The form's fields that `shape` has; empty ones are left out."""
    return {name: fields[name] for name in shape.model_fields if fields.get(name)}


def optional(fields: Mapping[str, str], shape: type[BaseModel]) -> dict[str, Any]:
    """The form's fields that `shape` has; an empty one is None, which removes a limit."""
    return {name: fields[name] or None for name in shape.model_fields if name in fields}


def checked(fields: Mapping[str, str], *names: str) -> dict[str, bool]:
    """Values of checkboxes: one that isn't sent is not ticked."""
    return {name: fields.get(name) == "on" for name in names}


def seen(fields: Mapping[str, str], name: str = "version") -> int:
    """The version that the page showed; 0 where the field is missing. Raises CallerError where it isn't a number."""
    text = fields.get(name) or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise CallerError("the page is out of date: load it again", status=422, param=name)
    return int(text)


def listed(text: str) -> list[str]:
    """The names in a text, separated by commas or line breaks."""
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def label_of(name: str) -> str:
    """A field's label, from its name."""
    for suffix, unit in (("_usd_per_day", " per day, $"), ("_usd_per_mtok", ", $ per million tokens"), ("_usd", ", $"),
                         ("_s", ", s")):  # fmt: skip
        if name.endswith(suffix):
            return label_of(name.removesuffix(suffix)) + unit
    return name.replace("_", " ").capitalize() or "The form"


def _problem(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, from Pydantic's error."""
    limits = error.get("ctx", {})
    kind = error["type"]
    known = {
        "greater_than_equal": f"must be at least {limits.get('ge')}",
        "less_than_equal": f"must be at most {limits.get('le')}",
        "greater_than": f"must be more than {limits.get('gt')}",
        "less_than": f"must be less than {limits.get('lt')}",
        "float_parsing": "must be a number", "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number", "finite_number": "must be a finite number",
        "missing": "must be given", "string_too_short": f"needs at least {limits.get('min_length')} characters",
        "string_too_long": f"may have at most {limits.get('max_length')} characters",
    }  # fmt: skip
    return known.get(kind, str(error["msg"]))
