"""What an answer shows of itself beyond log-probabilities: refusal, schema, executed checks; each may stay unknown.

A check is a hook: it gets the answer's text and says yes, no, or nothing. One that raises has said nothing. Checks that
run foreign code belong in a sandbox (gateway.checker), where one that hangs is ended and has said nothing either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from cascade.types import Evidence

_REFUSAL = re.compile(
    r"\b(I(?:'m| am) (?:sorry|unable|not able)|I (?:can(?:'|no)t|cannot|won't|don't know)|as an AI|I do not know|"
    r"unable to (?:answer|help|assist))",
    re.IGNORECASE,
)
REFUSAL_CHARS = 160
"""A refusal stands at an answer's beginning; later the same words are part of an answer."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One executed check. `cost_usd`: what running it costs, to be added to the rung's."""

    name: str
    run: Callable[[str], bool | None]
    cost_usd: float = 0.0


def looks_refused(text: str) -> bool | None:
    """True where the answer begins by refusing; None where it doesn't: no such words prove nothing."""
    beginning = text[:REFUSAL_CHARS].replace("\u2019", "'")
    return True if _REFUSAL.search(beginning) else None


def fits_schema(text: str, schema: dict[str, Any]) -> bool:
    """Whether the text is JSON of that shape: type, properties, required, items, enum; other keywords are not read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return _fits(value, schema, 32)


def _fits(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict) or depth == 0:
        return depth > 0
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
    expected = _KINDS.get(kind)
    return expected is None or isinstance(value, expected)


def with_checks(evidence: Evidence, checks: Sequence[Check]) -> tuple[Evidence, float]:
    """The evidence with what the checks said, and what they cost. One failed check fails; one silent one leaves
    success unknown.
    """
    said, cost_usd = list[bool | None](), 0.0
    for check in checks:
        cost_usd += check.cost_usd
        said.append(_said(check, evidence.text))
    if not said:
        return evidence, 0.0
    passed = False if False in said else None if None in said else True
    return structs.replace(evidence, checks_passed=passed), cost_usd


def _said(check: Check, text: str) -> bool | None:
    try:
        found = check.run(text)
    except Exception:
        # Whatever a hook raises, it has said nothing about the answer.
        return None
    return found if isinstance(found, bool) else None
