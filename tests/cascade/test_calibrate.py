"""Certificates are given where the data supports them and refused otherwise; their error rate is kept in simulations.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cascade.calibrate import Certificate, Family, Refusal, abstention, betting_p, certify, normal_p, rows_for

QUALITIES = (0.90, 0.88, 0.86, 0.82, 0.75, 0.6)


def family(n: int, seed: int = 0) -> Family:
    """Rules whose true qualities are the falling QUALITIES; each is wrong on a superset of the one before. The
    reference has 0.9.
    """
    draws = np.random.default_rng(seed).random(n)
    scores = np.array([(draws < q).astype(float) for q in QUALITIES])
    costs = np.tile(np.linspace(0.6, 0.1, len(QUALITIES))[:, None], (1, n))
    reference = (np.random.default_rng(seed + 10**6).permutation(draws) < 0.9).astype(float)
    return Family(scores, costs, reference, np.ones(n), "large")


def test_the_cheapest_rule_that_passes_is_chosen() -> None:
    """With many rows a floor of 90 % takes the rule just above it."""
    found = certify(family(20_000), 0.9, issued="2026-01-31", data_checksum="abc")
    assert isinstance(found, Certificate)
    assert QUALITIES[found.rule] == 0.82 and found.p_value <= 0.05
    assert (found.issued, found.data_checksum, found.reference, found.rows) == ("2026-01-31", "abc", "large", 20_000)


def test_a_higher_floor_takes_a_safer_rule() -> None:
    """A floor of 97 % of the reference costs more than one of 90 %."""
    low, high = certify(family(5000), 0.90), certify(family(5000), 0.97)
    assert isinstance(low, Certificate) and isinstance(high, Certificate)
    assert high.rule < low.rule and high.cost_usd > low.cost_usd


@pytest.mark.parametrize(("n", "floor"), [(10, 0.9), (120, 0.99), (500, 1.0)])
def test_too_little_data_is_refused(n: int, floor: float) -> None:
    """A floor that the rows can't distinguish from a breach is refused, with the number of rows that would do where it
    is known.
    """
    found = certify(family(n), floor)
    assert isinstance(found, Refusal) and found.reason
    assert found.rows_needed is None or found.rows_needed > 10


def test_a_rule_below_the_floor_is_never_certified() -> None:
    """No number of rows certifies a rule that is worse than the floor."""
    low = family(2000)
    worse = Family(low.scores[4:], low.costs_usd[4:], low.reference, low.reference_costs_usd, "large")
    found = certify(worse, 0.97)
    assert isinstance(found, Refusal) and found.rows_needed is None


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.01, float("nan")])
def test_a_floor_outside_its_range_is_an_error(floor: float) -> None:
    """A floor must be above 0 and at most 1."""
    with pytest.raises(ValueError, match="floor"):
        certify(family(100), floor)


def test_the_floor_is_broken_as_rarely_as_promised() -> None:
    """Over 200 fresh calibration sets the chosen rule is truly below the floor in at most 5 % plus two standard errors.
    """
    broken = 0
    for seed in range(200):
        found = certify(family(600, seed), 0.95)
        broken += isinstance(found, Certificate) and QUALITIES[found.rule] < 0.95 * 0.9
    assert broken / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("mean", [0.0, -0.05])
def test_the_betting_test_holds_its_level(mean: float) -> None:
    """Under the null hypothesis it rejects at 5 % in at most 5 % of samples, plus two standard errors."""
    rng = np.random.default_rng(1)
    samples = rng.choice([-0.9, 0.1], p=[0.1 - mean, 0.9 + mean], size=(400, 300))
    assert np.mean([betting_p(s, 0.9) <= 0.05 for s in samples]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


@given(st.integers(0, 100), st.sampled_from([0.5, 0.9, 1.0]))
def test_the_betting_test_is_the_published_one(seed: int, floor: float) -> None:
    """Its wealth agrees step by step with aGRAPA, with stakes of at most 3/4 of the possible loss (Waudby-Smith &
    Ramdas 2024, section B.3).
    """
    slack = np.random.default_rng(seed).uniform(-floor, 1.0, 40)
    null, mean, variance, total, squares = floor / (1 + floor), 0.5, 0.25, 0.5, 0.25
    wealth = most = 1.0
    for t, x in enumerate((slack + floor) / (1 + floor), 1):
        edge = max(mean - null, 0.0)
        wealth *= 1.0 + min(edge / (variance + edge**2), 0.75 / null) * (x - null)
        most, total = max(most, wealth), total + x
        mean = total / (t + 1)
        squares += (x - mean) ** 2
        variance = squares / (t + 1)
    assert betting_p(slack, floor, mixed=False) == pytest.approx(1.0 / most)


def test_the_betting_test_has_power() -> None:
    """A clear margin is detected with a few hundred rows."""
    rng = np.random.default_rng(2)
    assert betting_p(rng.choice([-0.9, 0.1], p=[0.02, 0.98], size=500), 0.9) < 0.01


@given(st.lists(st.floats(-0.9, 1.0), min_size=1, max_size=50), st.floats(0.05, 1.0))
@settings(deadline=None)
def test_p_values_are_probabilities(values: list[float], floor: float) -> None:
    """P-values lie in [0, 1] for any slack."""
    slack = np.clip(np.array(values), -floor, 1.0)
    assert 0.0 <= betting_p(slack, floor) <= 1.0
    if len(slack) > 1:
        assert 0.0 <= normal_p(slack, 100) <= 1.0


def test_a_horizon_needs_more_rows() -> None:
    """A promise about the next hundred requests is harder to certify than one about the long run."""
    slack = np.random.default_rng(3).normal(0.02, 0.2, 1000)
    assert normal_p(slack, 100) > normal_p(slack, 10**9)


def test_a_horizons_p_value_is_that_of_a_prediction_interval() -> None:
    """It uses the normal distribution; rows without variance leave no uncertainty."""
    slack = np.random.default_rng(3).normal(0.02, 0.2, 1000)
    spread = np.std(slack, ddof=1) * np.sqrt(1 / 1000 + 1 / 100)
    assert normal_p(slack, 100) == pytest.approx(norm.sf(slack.mean() / spread))
    rows, promised = family(5000), certify(family(5000), 0.9, horizon=500)
    assert isinstance(promised, Certificate) and promised.horizon == 500
    slack = rows.scores[promised.rule] - 0.9 * rows.reference
    assert promised.p_value == normal_p(slack, 500) <= 0.05
    assert [normal_p(np.full(100, mean), 10) for mean in (-0.1, 0.0, 0.1)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("wrong", "floor"), [(0.0, 0.97), (0.04, 0.9), (0.08, 0.9), (0.02, 0.97), (0.15, 0.8)])
def test_the_rows_that_a_refusal_names_are_about_enough(wrong: float, floor: float) -> None:
    """With that many rows the same rule passes in about half of all samples. A rule that is no better than the floor
    never passes.
    """
    rng = np.random.default_rng(4)
    needed = rows_for(np.repeat([-floor, 1.0 - floor], [round(1e4 * wrong), round(1e4 * (1 - wrong))]), floor, 0.95)
    assert needed is not None
    passed = [
        np.mean([betting_p(one, floor) <= 0.05 for one in 1.0 - floor - (rng.random((200, rows)) < wrong)])
        for rows in (needed // 3, round(0.8 * needed), round(1.25 * needed))
    ]
    assert passed[0] < 0.4 and passed[1] < 0.8 and passed[2] > 0.3
    assert rows_for(np.tile([-0.1, 0.1], 50), floor, 0.95) is None


def test_a_refusal_names_more_rows_than_there_are() -> None:
    """That holds even where the rows at hand suggest that fewer would do."""
    found = certify(family(60, 3), 0.9, 0.999)
    assert isinstance(found, Refusal) and found.rows_needed is not None and found.rows_needed > 60


def test_a_certificate_states_its_rules_figures_beside_the_reference() -> None:
    """It has the quality as a share of the reference's, and both costs, on the calibration rows."""
    rows = family(5000)
    found = certify(rows, 0.9)
    assert isinstance(found, Certificate)
    assert found.quality_share == pytest.approx(rows.scores[found.rule].sum() / rows.reference.sum())
    assert (found.cost_usd, found.reference_cost_usd) == pytest.approx((rows.costs_usd[found.rule, 0], 1.0))


def test_abstention_keeps_its_risk() -> None:
    """Answers above the threshold are wrong no more often than stated; a risk that no threshold reaches is refused."""
    rng = np.random.default_rng(5)
    p = rng.random(4000)
    right = (rng.random(4000) < p).astype(float)
    threshold = abstention(p, right, risk=0.2)
    assert isinstance(threshold, float) and 1.0 - p[p >= threshold].mean() <= 0.2
    assert isinstance(abstention(p, np.zeros(4000), risk=0.1), Refusal)
