from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from routers.simple import Cheapest, Rules, Weighted
from routers.types import Knobs, Undecided
from tests.routers.worlds import POOL, SMALL, query

CODE = {"match": r"\bdef\b|```", "model": "large"}
LONG = {"min_input_tokens": 1_000, "model": "middle"}
ELSE = {"weights": {"small": 3.0, "middle": 1.0}}


def test_the_first_matching_rule_decides() -> None:
    """Rules are tried in order; the last one, without conditions, matches everything."""
    router = Rules([CODE, LONG, ELSE])
    assert router.choose(query("def f(): pass"), POOL, Knobs(), 0.5).model == "large"
    assert router.choose(query(input_tokens=2_000), POOL, Knobs(), 0.5).model == "middle"
    choice = router.choose(query(), POOL, Knobs(), 0.8)
    assert (choice.model, choice.propensity, choice.reason) == ("middle", 0.25, "rule 2")


@pytest.mark.parametrize(
    ("rule", "known"),
    [
        ({"keywords": ["Capital"], "model": "small"}, {}),
        ({"tools": True, "model": "small"}, {"tools": 2}),
        ({"images": False, "model": "small"}, {}),
        ({"json": True, "model": "small"}, {"wants_json": True}),
        ({"min_turns": 3, "model": "small"}, {"turns": 3}),
        ({"max_input_tokens": 20, "model": "small"}, {}),
    ],
)
def test_each_condition_matches_and_fails(rule: dict[str, Any], known: dict[str, Any]) -> None:
    """Every kind of condition can match, and its opposite leaves the decision to the next rule."""
    asked = query(**known)
    router = Rules([rule, {"model": "large"}])
    assert router.choose(asked, POOL, Knobs(), 0.0).model == "small"
    other = query("nothing", tools=0, images=1, input_tokens=50)
    assert router.choose(other, POOL, Knobs(), 0.0).model == "large"


def test_a_rule_of_an_unavailable_model_is_skipped() -> None:
    """The rule of an unhealthy model doesn't decide."""
    pool = [replace(c, healthy=c.model != "large") for c in POOL]
    assert Rules([CODE, ELSE]).choose(query("def"), pool, Knobs(), 0.0).model == "small"


def test_no_matching_rule_is_undecided() -> None:
    """The route's default then answers."""
    with pytest.raises(Undecided, match="no rule"):
        Rules([CODE]).choose(query(), POOL, Knobs(), 0.0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"modle": "a"}, r"rules\[0\]\.modle: unknown key"),
        ({}, r"rules\[0\]: names one of"),
        ({"model": "a", "weights": {"a": 1}}, r"rules\[0\]: names one of"),
        ({"model": "a", "match": "("}, r"rules\[0\]\.match"),
        ({"model": "a", "tools": 3}, r"rules\[0\]\.tools"),
        ({"model": "a", "min_input_tokens": "9"}, r"rules\[0\]\.min_input_tokens"),
        ({"weights": {"a": -1.0}}, r"rules\[0\]\.weights\.a"),
        ({"weights": {"a": True}}, r"rules\[0\]\.weights\.a"),
        ({"model": 3}, r"rules\[0\]\.model"),
        ({"model": "a", "match": True}, r"rules\[0\]\.match"),
        ({"model": "a", "keywords": ["code", " "]}, r"rules\[0\]\.keywords\[1\]"),
        ({"model": "a", "keywords": [3]}, r"rules\[0\]\.keywords\[0\]"),
    ],
)
def test_an_invalid_rule_is_refused(rule: dict[str, Any], message: str) -> None:
    """The error names the rule and its key."""
    with pytest.raises(ValueError, match=message):
        Rules([rule])


def test_weights_are_propensities() -> None:
    """They are normalised over the eligible models; a model without a weight has propensity 0."""
    router = Weighted({"small": 1.0, "large": 3.0})
    choice = router.choose(query(), POOL, Knobs(), 0.99)
    assert choice.model == "large"
    assert dict(choice.probabilities) == {"small": 0.25, "middle": 0.0, "large": 0.75}
    down = [replace(SMALL, healthy=False), *POOL[1:]]
    assert router.choose(query(), down, Knobs(), 0.0).propensity == 1.0


def test_no_weights_mean_equal_ones() -> None:
    """With an empty table all models are equally likely."""
    assert Weighted().choose(query(), POOL, Knobs(), 0.5).propensity == pytest.approx(1 / 3)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_an_invalid_weight_is_refused(weight: float) -> None:
    """Negative and non-finite weights are named."""
    with pytest.raises(ValueError, match=r"weights\.small"):
        Weighted({"small": weight})


def test_cheapest_reads_price_times_tokens() -> None:
    """A model with cheap output and expensive input is not the cheapest for a long prompt."""
    odd = replace(SMALL, model="odd", input_usd_per_mtok=5.0, output_usd_per_mtok=0.01)
    assert Cheapest().choose(query(input_tokens=4_000), (odd, SMALL), Knobs(), 0.5).model == "small"
    assert Cheapest().choose(query(input_tokens=1), (odd, SMALL), Knobs(), 0.5).model == "odd"
