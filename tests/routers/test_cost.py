"""Fits of cost and latency, on figures that are worked out by hand."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from routers.cost import FLOOR_USD, Latency, LogLinear, runtime


def test_the_logarithm_of_a_cost_is_fitted_and_its_mean_kept() -> None:
    """The logarithms are 0 and 2 at 5 and 7, so with a penalty of 3 the slope is 2 / (2 + 3). Only rows with a cost of
    the model count, and a model without any has no prediction.
    """
    x = np.array([[5.0], [7.0], [9.0]])
    cost = np.array([[1.0, np.nan, np.nan], [exp(2.0), np.nan, 3.0], [np.nan, np.nan, 3.0]])
    found = LogLinear(ridge=3.0).fit(x, cost).predict(x)
    assert found[1, 0] / found[0, 0] == pytest.approx(exp(2 * 0.4)) == found[2, 0] / found[1, 0]
    assert found[:2, 0].mean() == pytest.approx((1.0 + exp(2.0)) / 2)
    assert np.isnan(found[:, 1]).all() and found[:, 2] == pytest.approx(3.0)


def test_free_answers_and_far_queries_have_a_finite_cost() -> None:
    """A cost of zero counts as FLOOR_USD, and a prediction is at most e^50."""
    x = np.linspace(-1.0, 1.0, 40)[:, None]
    free = LogLinear().fit(x, np.zeros((40, 1))).predict(x)
    assert free == pytest.approx(FLOOR_USD)
    steep = LogLinear().fit(x, np.exp(5.0 * x)).predict(np.array([[1000.0]]))
    assert steep == pytest.approx(exp(50.0))


@pytest.mark.parametrize(
    ("tokens", "seconds", "fitted"),
    [
        ([10.0, 20.0, 40.0], [0.7, 0.9, 1.3], (0.5, 0.02)),
        ([10.0, 20.0], [0.9, 0.7], (0.8, 0.0)),
        ([10.0, 20.0], [0.1, 1.0], (0.0, 21.0 / 500.0)),
        ([10.0, 10.0], [0.2, 0.4], (0.3, 0.0)),
        ([0.0, 0.0], [0.0, 0.0], (0.0, 0.0)),
    ],
    ids=["a line", "longer is not faster", "through nothing", "one length", "no answer"],
)
def test_neither_part_of_a_latency_is_negative(
    tokens: list[float], seconds: list[float], fitted: tuple[float, float]
) -> None:
    """The fit is the non-negative least-squares line."""
    assert runtime(np.array(seconds), np.array(tokens)) == pytest.approx(fitted)


def test_three_answers_are_enough_to_learn_latency() -> None:
    """Answers of unknown length or latency don't count."""
    tokens = np.array([[10.0, 10.0], [20.0, 20.0], [40.0, 40.0], [np.nan, 80.0], [80.0, np.nan]])
    seconds = 0.5 + 0.02 * tokens
    seconds[2, 1], seconds[3, 0] = np.nan, 9.0
    seconds[4, 0] = np.nan
    learned = Latency().fit(seconds, tokens)
    assert learned.predict(np.array([[100.0, 100.0]]))[0] == pytest.approx([2.5, 2.5])
    two = Latency().fit(seconds[:2], tokens[:2])
    assert np.isnan(two.predict(np.array([[100.0, 100.0]]))).all()
