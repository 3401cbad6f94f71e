from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routers.select import (
    Estimates,
    Exploration,
    Forecast,
    chosen,
    drawn,
    exchange_rate,
    probabilities,
    utilities,
)
from routers.types import Estimate, Knobs, Undecided

worths = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


def forecast(quality: list[float], cost: list[float], latency: list[float] | None = None) -> Forecast:
    k = len(quality)
    unknown = [nan] * k
    return Forecast([f"m{i}" for i in range(k)], quality, unknown, cost, latency or unknown, unknown)


def best(knobs: Knobs, *, latency: list[float] | None = None) -> int:
    return int(np.argmax(utilities(forecast([0.5, 0.7, 0.9], [1.0, 3.0, 30.0], latency), knobs, 30.0)))


@given(worths, st.floats(0.001, 1), st.floats(0, 1e4))
def test_probabilities_sum_to_one_and_keep_the_floor(worth: list[float], floor: float, sharpness: float) -> None:
    """For any utilities every model keeps its floor, and the best model is never the least likely."""
    chances = probabilities(worth, Exploration(floor, sharpness), True)
    assert sum(chances) == pytest.approx(1.0)
    assert min(chances) >= floor / len(worth) - 1e-12
    assert chances[int(np.argmax(worth))] == pytest.approx(max(chances))


@given(worths, st.floats(0, 1))
def test_opting_out_of_exploration_is_deterministic(worth: list[float], floor: float) -> None:
    """A tenant that opted out always gets the best model, with propensity 1."""
    chances = probabilities(worth, Exploration(floor), False)
    assert chances[int(np.argmax(worth))] == 1.0


def test_draws_follow_the_probabilities() -> None:
    """Evenly spread draws choose each model exactly as often as stated."""
    chances = probabilities([0.9, 0.8, 0.2], Exploration(0.3, 20.0), True)
    picks = [drawn(chances, (i + 0.5) / 10_000) for i in range(10_000)]
    assert np.bincount(picks, minlength=3) / 10_000 == pytest.approx(chances, abs=2e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 1, exclude_max=True))
def test_a_model_of_probability_zero_is_never_drawn(shares: list[float], draw: float) -> None:
    """Rounding at the edges of [0, 1) never chooses a model without a chance."""
    chances = np.array(shares) / max(sum(shares), 1e-9) if sum(shares) > 0 else np.array([1.0, 0.0])
    assert chances[drawn(chances, draw)] > 0


@pytest.mark.parametrize(("chances", "last"), [([0.5, 0.2, 0.2], 2), ([0.5, 0.4, 0.0], 1), ([0.9], 0)])
def test_what_rounding_leaves_goes_to_the_last_model_that_has_a_chance(chances: list[float], last: int) -> None:
    """A draw beyond the sum of the probabilities still chooses a model that could be chosen."""
    assert drawn(chances, 0.95) == last


def test_the_cost_weight_runs_from_quality_to_cost() -> None:
    """0 chooses the best, 1 the cheapest, and 0.5 one between them."""
    assert best(Knobs(cost_weight=0.0)) == 2
    assert best(Knobs(cost_weight=1.0)) == 0
    assert best(Knobs(cost_weight=0.55)) == 1


@given(st.floats(0, 1), st.floats(0, 1))
@example(1.0 - 2**-53, 1.0)
def test_the_exchange_rate_grows_with_the_cost_weight(a: float, b: float) -> None:
    """A higher weight never makes money count less."""
    low, high = sorted((a, b))
    assert exchange_rate(low) <= exchange_rate(high)


def test_the_exchange_rate_is_a_fifth_of_the_squared_odds() -> None:
    """At 0.8 money counts sixteen times as much as at 0.5."""
    assert [exchange_rate(weight) for weight in (0.0, 0.5, 0.8)] == pytest.approx([0.0, 0.2, 3.2])
    given = utilities(forecast([0.5, 0.9], [10.0, 30.0]), Knobs(cost_weight=0.8), 20.0)
    assert given == pytest.approx([0.5 - 3.2 / 2, 0.9 - 3.2 * 1.5])
    plain, half = (utilities(forecast([0.5, 0.9], [1.0, 3.0]), Knobs(cost_weight=one), 3.0) for one in (None, 0.5))
    assert plain == half == pytest.approx([0.5 - 0.2 / 3, 0.7])


def test_a_quality_floor_chooses_the_cheapest_that_meets_it() -> None:
    """If no model meets it, the best one is chosen."""
    assert best(Knobs(min_quality=0.6)) == 1
    assert best(Knobs(min_quality=0.95)) == 2
    assert best(Knobs(min_quality=0.6, cost_weight=1.0)) == 1
    assert utilities(forecast([0.7, 0.8], [2.0, 2.0]), Knobs(min_quality=0.6), 4.0)[1] == -0.5 + 0.8e-9
    missed = utilities(forecast([0.5, 0.3, 0.4], [0.0, 0.0, 9e9]), Knobs(min_quality=0.9, cost_weight=0.5), 1.0)
    assert sorted(range(3), key=missed.__getitem__) == [1, 2, 0]
    assert best(Knobs(min_quality=0.6, cost_weight=0.0)) == 2


def test_a_latency_bound_comes_before_utility() -> None:
    """A model that is expected to be late is ranked after every model in time; an unknown latency isn't held against a
    model.
    """
    assert best(Knobs(cost_weight=0.0, max_latency_s=2.0), latency=[1.0, 1.5, 9.0]) == 1
    assert best(Knobs(cost_weight=0.0, max_latency_s=2.0), latency=[1.0, 1.5, float("nan")]) == 2


def test_a_choice_records_what_is_needed_later() -> None:
    """One draw gives the propensity, all probabilities, the estimates in order and the ranking."""
    given = forecast([0.5, 0.7], [1.0, 3.0])
    choice = chosen(given, [0.1, 0.2], [0.25, 0.75], 0.1, {"x": "unhealthy"}, "r@1")
    assert (choice.model, choice.propensity, choice.reason) == ("m0", 0.25, "explored")
    assert choice.ranked == ("m1", "m0")
    assert [e.quality for e in choice.estimates] == [0.5, 0.7]
    assert dict(choice.probabilities) == {"m0": 0.25, "m1": 0.75}


def test_an_estimate_that_is_not_finite_is_undecided() -> None:
    """A NaN never wins or loses silently."""
    given = forecast([0.5, float("nan")], [1.0, 3.0])
    worth = utilities(given, Knobs(cost_weight=0.0), 1.0)
    with pytest.raises(Undecided, match="not finite"):
        chosen(given, worth, [1.0, 0.0], 0.5, {}, "r@1")


@given(st.floats(0.01, 9), st.floats(0.01, 9))
def test_a_latency_bound_hides_no_nan(quality: float, latency: float) -> None:
    """With a late model of unknown quality the choice is undecided."""
    given = forecast([quality, nan], [1.0, 3.0], [latency, 20.0])
    worth = utilities(given, Knobs(cost_weight=0.0, max_latency_s=10.0), 1.0)
    assert worth[1] != worth[1]


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.floats(0.01, 1), st.floats(1, 1e4))
def test_inverse_gaps_are_as_published(worth: list[float], floor: float, sharpness: float) -> None:
    """Every model except the best has 1 / (K + gamma * gap), or its share of the floor if that is more."""
    found, k, top = probabilities(worth, Exploration(floor, sharpness), True), len(worth), max(worth)
    for place, value in enumerate(worth):
        if place != worth.index(top):
            assert found[place] == max(1.0 / (k + sharpness * (top - value)), floor / k)


def test_estimates_are_what_the_forecast_says() -> None:
    """There is one for each model, in its order, and reading them again gives the same."""
    forecast = Forecast(["a", "b"], [0.5, 0.6], [0.1, 0.2], [1e-3, 2e-3], [1.0, nan], [10.0, 20.0])
    found = Estimates(forecast)
    assert found[0] == Estimate("a", 0.5, 0.1, 1e-3, 1.0, 10.0) and type(found[0]) is Estimate
    assert [one.model for one in found] == ["a", "b"] and found[1] is list(found)[1] and len(found) == 2
