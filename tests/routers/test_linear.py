from __future__ import annotations

from dataclasses import replace

import numpy as np

from routers.estimators.linear import Linear
from tests.routers.worlds import world


def test_one_score_per_row_teaches_as_much_as_full_rows() -> None:
    """One model's score per query, as in a journal, estimates as well as the scores of three models on a third of the
    queries, without shrinking the differences.
    """
    asked, truth = world(1000, seed=9)
    whole, _ = world(2000)
    single, _ = world(6000)
    scores = single.scores.copy()
    kept = np.random.default_rng(1).integers(0, 3, len(scores))
    scores[np.arange(3) != kept[:, None]] = np.nan
    error, slope = [], []
    for data in (whole, replace(single, scores=scores)):
        guess, _ = Linear(ridge=3.0).fit(data).predict(asked.x)
        error.append(float(np.sqrt(((guess - truth) ** 2).mean())))
        own = [m - m.mean(1, keepdims=True) for m in (guess, truth)]
        own = [m - m.mean(0) for m in own]
        slope.append(float((own[0] * own[1]).sum() / (own[0] ** 2).sum()))
    assert error[1] < 1.15 * error[0]
    assert 0.85 < slope[1] < 1.15


def test_typical_leverage_is_that_of_the_training_rows() -> None:
    """It is computed from the fit alone and equals the mean over the training rows."""
    data, _ = world(500)
    x = (data.x - data.x.mean(0)) / data.x.std(0).max()
    fitted = Linear(ridge=5.0).fit(replace(data, x=x))
    exact = ((x @ fitted.covariance_) * x).sum(1).mean()
    assert abs(fitted.typical_leverage() - exact) < 0.15 * exact
