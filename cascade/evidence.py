"""Does an answer have the shape that was asked for? Read from the answer alone, without a library for schemas.

Only what is cheap and certain is read: type, properties, required, items and enum. Any other keyword is passed over, so
that an answer is never sent back for a rule that was not understood; a schema that makes no sense says nothing. Checks
that run foreign code belong in a sandbox (gateway.checker).
"""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 32
"""What lies deeper is not read."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def fits_schema(text: str, schema: object) -> bool | None:
    """Whether the text is JSON of that shape; None where the schema can't be read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    try:
        return _fits(value, schema, DEEPEST)
    except (TypeError, AttributeError):
        return None


def _fits(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict) or depth == 0:
        return True
    kinds = schema.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        if any(name not in value for name in schema.get("required", ())):
            return False
        parts = schema.get("properties", {})
        return all(_fits(value[name], part, depth - 1) for name, part in parts.items() if name in value)
    if isinstance(value, list) and "items" in schema:
        return all(_fits(item, schema["items"], depth - 1) for item in value)
    return True


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    expected = _KINDS.get(kind)
    return expected is None or isinstance(value, expected)
