"""Whether an answer has the JSON shape that was asked for, without a schema library.

Only type, properties, required, items and enum are checked. Any other keyword is ignored, so that an answer is never
rejected for a rule that was not understood. Checks that run foreign code belong in a sandbox (gateway.checker).
"""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 32
"""Deeper levels are not checked."""
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
