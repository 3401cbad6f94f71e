"""The form of an answer is checked where it can be, and unknown otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.evidence import DEEPEST, fits_schema

SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "a", "ages": [1, 2]}', True),
        ('{"ages": [1]}', False),
        ('{"name": 3}', False),
        ('{"name": "a", "ages": [1, "2"]}', False),
        ('{"name": "a", "ages": [true]}', False),
        ('{"name": "a", "ages": [3.0]}', True),
        ('{"name": "a", "ages": [3.5]}', False),
        ("not json", False),
    ],
)
def test_a_schema_is_checked(text: str, fits: bool) -> None:
    """Types, required properties and items are checked."""
    assert fits_schema(text, SCHEMA) is fits


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8))
def test_any_json_fits_the_empty_schema(value: object) -> None:
    """The empty schema accepts any JSON."""
    assert fits_schema(json.dumps(value), {})


@pytest.mark.parametrize("schema", [{"type": 7}, {"enum": 3}, {"required": 1}, {"properties": [1]}])
def test_an_invalid_schema_gives_no_evidence(schema: dict[str, Any]) -> None:
    """The answer is neither confirmed nor rejected."""
    assert fits_schema('{"name": "a"}', schema) is not False


@pytest.mark.parametrize("schema", [{"anyOf": [{"type": "string"}]}, {"$ref": "#/x"}, {"type": "tuple"}, None, "x"])
def test_unknown_keywords_are_ignored(schema: object) -> None:
    """Only a few keywords of JSON Schema are checked; others reject nothing."""
    assert fits_schema("3", schema) is True


def test_depth_is_limited() -> None:
    """Below the maximum depth nothing is checked, and nothing is rejected."""
    schema: dict[str, Any] = {"type": "array"}
    for _ in range(DEEPEST + 8):
        schema = {"type": "array", "items": schema}
    assert fits_schema("[" * (DEEPEST + 9) + "]" * (DEEPEST + 9), schema) is True
    assert fits_schema("[" * 100_000, schema) is False
