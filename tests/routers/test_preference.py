"""Preference estimators: which model beats which on a query, with ties."""

from __future__ import annotations

import numpy as np
import pytest

from routers.estimators.base import Training
from routers.estimators.preference import Preference, SimilarWins, _loss, _slopes, battles
from tests.routers.test_factor import numeric


def mostly_tied(rows: int = 3_000) -> Training:
    """The strong model never loses. It wins half of the queries on one side of the first axis and hardly any on the
    other; all others are ties.
    """
    rng = np.random.default_rng(1)
    hard = rng.random(rows) < 0.5
    x = np.column_stack([np.where(hard, 1.0, -1.0), rng.normal(0, 0.1, (rows, 2))])
    weak = (rng.random(rows) >= np.where(hard, 0.5, 0.03)).astype(float)
    return Training(x, np.column_stack([np.ones(rows), weak]), ["t"] * rows, ("strong", "weak"))


@pytest.mark.parametrize("kind", [Preference, SimilarWins])
def test_ties_show_where_the_better_model_is_not_needed(kind: type[Preference | SimilarWins]) -> None:
    """Where only one model ever wins, the queries on which it mostly ties are told apart."""
    data = mostly_tied()
    strength = kind().fit(data).strength(np.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    ahead = strength[:, 0] - strength[:, 1]
    assert ahead[0] > ahead[1] + 0.5


def test_the_battles_of_a_row_are_its_observed_pairs() -> None:
    """Each pair of observed models is one battle, whether it is won or tied."""
    wins = battles(np.array([[1.0, 0.0, 0.0], [1.0, np.nan, 1.0]]))
    assert wins[0].tolist() == [[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]]
    assert wins[1].tolist() == [[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]]


def test_the_slopes_are_the_gradient_of_the_loss() -> None:
    """They are ten times the gradient of the mean log loss of battles, as central differences show."""
    rng = np.random.default_rng(0)
    x, wins = rng.normal(size=(6, 3)), battles(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, np.nan]] * 3))
    weights = {"level": rng.normal(size=3), "traits": rng.normal(size=(3, 2)), "vectors": rng.normal(size=(2, 3))}
    found = _slopes(weights, x, wins)
    for name in weights:
        slopes = numeric(lambda w: 10.0 * _loss(weights | {name: w}, x, wins), weights[name])
        assert np.allclose(found[name], slopes, atol=1e-5)
