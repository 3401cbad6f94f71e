"""Tests of what a router learns from the columns of outcome data."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from routers.estimators.base import Estimator, Training
from routers.estimators.contrastive import Contrastive
from routers.estimators.linear import Linear
from routers.estimators.preference import Preference, SimilarWins
from routers.features import shipped_featurizer
from routers.fit import described, fit_learned, predicted
from routers.outcomes import DataError, Outcomes


def outcomes(n: int = 40) -> Outcomes:
    """Scores and costs of two models; every second cost of the dear one is unknown."""
    rng = np.random.default_rng(0)
    cost = np.tile([0.001, 0.02], (n, 1))
    cost[::2, 1], cost[1, 1] = np.nan, 0.04
    none = np.full((n, 2), np.nan)
    texts = tuple(f"what is {i} times {i % 7}" for i in range(n))
    return Outcomes(
        texts, texts, ("t",) * n, np.full(n, "train"), ("cheap", "dear"), rng.random((n, 2)), cost, cost, none, none,
        none, none, none,
    )  # fmt: skip


def test_the_reference_cost_is_the_mean_call_of_the_most_expensive_model() -> None:
    """Calls of unknown cost don't count. Lengths and latencies are learned only where the data has them."""
    data, featurizer = outcomes(), shipped_featurizer()
    x = described(data, featurizer)
    learned = fit_learned(Linear(), data, x, featurizer.layout)
    assert learned.reference_usd == pytest.approx((19 * 0.02 + 0.04) / 20)
    assert learned.output_tokens is None and learned.latency is None and learned.cost is not None
    assert predicted(learned, x)[1][:, 0] == pytest.approx(0.001)
    timed = replace(data, output_tokens=np.full((40, 2), 50.0), latency_s=np.full((40, 2), 2.0))
    learned = fit_learned(Linear(), timed, x, featurizer.layout)
    assert learned.latency is not None and learned.output_tokens is not None
    assert learned.latency.predict(np.array([[50.0, 50.0]])) == pytest.approx(2.0)
    free = fit_learned(Linear(), replace(data, cost_usd=np.full((40, 2), np.nan)), x, featurizer.layout)
    assert free.cost is None and free.reference_usd == 0.0 and not predicted(free, x)[1].any()


def test_two_rows_and_a_score_of_every_model_are_needed() -> None:
    """The error names what is missing."""
    data, featurizer = outcomes(3), shipped_featurizer()
    x = described(data, featurizer)
    two = np.arange(2)
    assert fit_learned(Linear(), data.rows(two), x[:2], featurizer.layout).models == ("cheap", "dear")
    with pytest.raises(DataError, match="1 row"):
        fit_learned(Linear(), data.rows(two[:1]), x[:1], featurizer.layout)
    unseen = replace(data, scores=np.column_stack([data.scores[:, 0], np.full(3, np.nan)]))
    with pytest.raises(DataError, match="model 'dear' has no score"):
        fit_learned(Linear(), unseen, x, featurizer.layout)


@pytest.mark.parametrize("kind", [Preference, SimilarWins, Contrastive])
def test_an_estimator_that_compares_models_needs_rows_that_do(kind: type[Estimator]) -> None:
    """Queries that one model answered, or all models equally well, don't count. The error names what is missing and
    what to do.
    """
    data, featurizer = outcomes(30), shipped_featurizer()
    scores = data.scores.copy()
    scores[19:24, 0], scores[24:, 1] = np.nan, scores[24:, 0]
    x = described(data, featurizer)
    with pytest.raises(DataError, match=r"there are 19 of them, and it needs 20.*another router, such as linear"):
        fit_learned(kind(), replace(data, scores=scores), x, featurizer.layout)
    scores[24] = [0.0, 1.0]
    fit_learned(kind(), replace(data, scores=scores), x, featurizer.layout)


@pytest.mark.parametrize(("kind", "share", "seed"), [(Preference, 0.2, 45), (Contrastive, 0.12, 45)])
def test_few_rows_are_learned_from_whatever_the_seed(kind: type[Estimator], share: float, seed: int) -> None:
    """With this seed no row is held out to check the fit on, so all are fitted and checked on."""
    assert not (np.random.default_rng(seed).random(12) < share).any()
    side = np.tile([1.0, -1.0], 6)
    x = np.column_stack([side, np.random.default_rng(0).normal(0, 1, (12, 5))])
    fitted = kind().fit(Training(x, np.column_stack([side > 0, side < 0]).astype(float), [""] * 12, ("a", "b"), seed))
    mean, _ = fitted.predict(np.array([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0]]))
    assert mean[0, 0] - mean[1, 0] > 0.8 and mean[1, 1] - mean[0, 1] > 0.8


def test_training_makes_few_copies_of_the_vectors() -> None:
    """A folder's vectors are most of the memory that it needs. They are kept in float32; what is computed from them is
    the same as from float64, and no more than two of their size in float64 are needed besides.
    """
    data, featurizer = outcomes(4000), shipped_featurizer()
    assert described(outcomes(2), featurizer).dtype == np.float32
    x = np.random.default_rng(0).normal(0, 0.1, (4000, featurizer.layout.dims)).astype(np.float32)
    tracemalloc.start()
    try:
        learned = fit_learned(Linear(), data, x, featurizer.layout)
        found = predicted(learned, x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    same = predicted(fit_learned(Linear(), data, x.astype(np.float64), featurizer.layout), x.astype(np.float64))
    assert all(np.array_equal(one, other) for one, other in zip(found, same, strict=True))
    assert peak < 2.0 * x.size * 8
