"""The parts of the acceptance rule agree with scipy and scikit-learn."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from cache.acceptance import Acceptance, AcceptanceOptions, Fitted, beta_upper, fit_logistic


@pytest.mark.parametrize(("wrong", "n"), [(0, 30), (3, 200), (50, 50)])
def test_bounds_are_clopper_and_pearsons(wrong: int, n: int) -> None:
    """The one-sided bound holds for any count of wrong answers; the false-hit rate of audits has a two-sided interval.
    """
    upper = binomtest(wrong, n, alternative="less").proportion_ci(0.95, "exact").high
    assert beta_upper(np.array([wrong]), np.array([n - wrong]), 0.95)[0] == pytest.approx(upper)
    rule = Acceptance()
    for place in range(n):
        rule.learn([0.0], place >= wrong, 10.0, audited=True)
    rate, known = rule.false_hit_rate(), binomtest(wrong, n).proportion_ci(0.95, "exact")
    assert (rate.value, rate.n) == (wrong / n, n)
    assert (rate.low, rate.high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_the_score_is_a_weighted_logistic_regression() -> None:
    """The weights are those of scikit-learn's ridge-penalised regression, whose intercept is not penalised, for
    unbalanced labels too.
    """
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(400, 3)), rng.choice([0.5, 1.0, 4.0], 400)
    right = (rng.random(400) < 1 / (1 + np.exp(-(1.0 + x @ [2.0, -1.0, 0.0])))).astype(float)
    found = fit_logistic(np.column_stack([np.ones(400), x]), right, weight, l2=2.0)
    known = LogisticRegression(C=0.5, tol=1e-8).fit(x, right, weight)
    assert found == pytest.approx(np.r_[known.intercept_, known.coef_[0]], abs=2e-3)


@pytest.mark.parametrize("score", [0.02, 0.3, 0.6, 0.95])
def test_judged_rows_weigh_as_much_as_they_stand_for(score: float) -> None:
    """Sampling weights average to one, zeros for rows that were not drawn included; misses with a higher score are
    drawn more often.
    """
    rule = Acceptance(AcceptanceOptions(audit_share=0.2), random.Random(0))
    rule.fitted = Fitted(np.zeros(1), np.ones(1), np.zeros(2), threshold=0.9)
    rule._miss_share = 0.3
    for drawn in ([rule.draw_audit() for _ in range(20_000)], [rule.draw_miss(score) for _ in range(20_000)]):
        assert np.mean(drawn) == pytest.approx(1.0, abs=0.12)
    share = np.mean(np.array(drawn) > 0)
    assert share == pytest.approx(max(0.03, 0.6 * min(1.0, score / 0.9) ** 2), abs=0.02)
