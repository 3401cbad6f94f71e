"""Signals of an answer: known where they can be, unknown otherwise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.confidence import confidence
from cascade.evidence import Check, fits_schema, looks_refused, with_checks
from cascade.types import Evidence

SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}}},
}


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "I cannot answer.", "As an AI, I ..."])
def test_a_refusal_is_seen(text: str):
    """At the beginning of an answer."""
    assert looks_refused(text) is True


@pytest.mark.parametrize("text", ["Paris", "", "He wrote: " + "x" * 200 + " I cannot go on"])
def test_an_answer_is_no_proof_of_willingness(text: str):
    """No such words say nothing."""
    assert looks_refused(text) is None


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "a", "ages": [1, 2]}', True),
        ('{"ages": [1]}', False),
        ('{"name": 3}', False),
        ('{"name": "a", "ages": [1, "2"]}', False),
        ('{"name": "a", "ages": [true]}', False),
        ("not json", False),
    ],
)
def test_a_schema_is_checked(text: str, fits: bool):
    """Types, required names and items."""
    assert fits_schema(text, SCHEMA) is fits


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8))
def test_any_json_fits_the_empty_schema(value):
    """And nothing crashes on it."""
    assert fits_schema(json.dumps(value), {})


def fails(text: str) -> bool:
    raise RuntimeError("broken hook")


def test_a_check_that_raises_has_said_nothing():
    """The answer is neither proven nor vetoed, and the log-probability stands."""
    found, cost_usd = with_checks(Evidence(mean_logprob=-0.1, text="x"), [Check("broken", fails, 0.5)])
    assert found.checks_passed is None and cost_usd == 0.5
    assert 0.0 < confidence(found) < 1.0


@pytest.mark.parametrize(
    ("said", "passed"), [([True, True], True), ([True, False], False), ([True, None], None), ([None, False], False)]
)
def test_checks_are_joined(said: list[bool | None], passed: bool | None):
    """One failure fails; one silence leaves success unknown."""
    checks = [Check(str(i), lambda text, one=one: one) for i, one in enumerate(said)]
    assert with_checks(Evidence(text="x"), checks)[0].checks_passed is passed
