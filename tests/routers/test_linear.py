from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.estimators.base import Training
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


def test_without_penalties_it_is_least_squares() -> None:
    """Predictions are those of each model's regression on the vector and a constant. The noise is the residual variance
    of the models' deviations from the row's mean.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 1.0, (4000, 3))
    scores = 0.5 + 0.02 * x @ rng.normal(size=(3, 4)) + np.array([-0.1, 0.0, 0.1, 0.2]) + rng.normal(0, 0.1, (4000, 4))
    found = Linear(ridge=1e-9, ease=1e-9).fit(Training(x, scores, ["t"] * 4000, list("abcd")))
    design = np.column_stack([x, np.ones(4000)])
    assert np.allclose(found.predict(x)[0], design @ np.linalg.lstsq(design, scores)[0], atol=1e-3)
    assert found.noise_ == pytest.approx(0.1**2 * 3 / 4, rel=0.1)


def test_predictions_do_not_depend_on_the_origin() -> None:
    """Only slopes are penalised."""
    rng = np.random.default_rng(1)
    x, scores = rng.normal(size=(60, 3)), rng.random((60, 2))
    scores[:20, 0] = np.nan
    here, there = (
        Linear().fit(Training(one, scores, ["t"] * 60, ["a", "b"])).predict(one)[0] for one in (x, x + 9.0)
    )
    assert np.allclose(here, there)
