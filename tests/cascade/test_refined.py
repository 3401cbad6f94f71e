"""Refined answers beside direct ones: their score and order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cascade.evaluate import evaluate
from cascade.refined import SUFFIX, Pair, pairs_in, perfics, ranked
from tests.cascade.worlds import logged


def pair(quality: float, refined: float, cost_usd: float, refined_usd: float, count: int = 100) -> Pair:
    ones = np.ones(count)
    right = [(np.arange(count) < share * count).astype(float) for share in (quality, refined)]
    return Pair(right[0], right[1], cost_usd * ones, refined_usd * ones)


def test_the_score_weighs_quality_refinement_and_cost() -> None:
    """Each term weighs a third by default, and weights can select a single one."""
    terms = np.array([0.6]), np.array([0.9]), np.array([0.25])
    assert perfics(*terms)[0] == pytest.approx((0.6 + 0.9 + 0.75) / 3)
    assert [perfics(*terms, w)[0] for w in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == pytest.approx([0.6, 0.9, 0.75])


def test_a_cheap_model_that_refines_well_ranks_first() -> None:
    """It ranks last once refining makes its answers worse."""
    large = pair(0.95, 0.95, 1.0, 2.0)
    mends, spoils = pair(0.7, 0.95, 0.1, 0.2), pair(0.7, 0.1, 0.1, 0.2)
    assert list(ranked({"large": large, "small": mends})) == ["small", "large"]
    found = ranked({"large": large, "small": spoils})
    assert list(found) == ["large", "small"] and found["small"]["refined_minus_direct"]["high"] < -0.4
    assert found["small"]["refined_minus_best_direct"]["value"] == pytest.approx(-0.85)
    assert found["small"]["refined_cost_share"]["value"] == pytest.approx(0.1)


def test_models_with_refined_answers_are_ranked() -> None:
    """Refined answers are in the data as models of their own; without any there is no table."""
    log = logged(200)
    assert pairs_in(log.data) == {} and ranked({}) == {}
    first, _, *others = log.data.models
    named = replace(log, data=replace(log.data, models=(first, first + SUFFIX, *others)))
    found = evaluate(named, splits=1)["refinement"]
    assert list(found) == [first]
    assert found[first]["refined_quality"]["value"] == pytest.approx(log.data.scores[:, 1].mean())
