"""The domain table: tasks are recognised by a classifier, and by source where rows name one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.estimators.base import Training
from routers.estimators.clusters import Clusters
from routers.estimators.domain import LEAST_OF_SOURCE, Domain


def two_sources(rows: int = 400) -> tuple[Training, np.ndarray]:
    """One task with two sources, which differ on the first axis; model a is right on the one, b on the other."""
    rng = np.random.default_rng(3)
    first = rng.random(rows) < 0.5
    x = np.column_stack([np.where(first, 2.0, -2.0), rng.normal(size=(rows, 3))])
    truth = np.where(first[:, None], [0.9, 0.3], [0.3, 0.9])
    scores = (rng.random(truth.shape) < truth).astype(float)
    return Training(x, scores, ["t"] * rows, ("a", "b"), sources=np.where(first, "s1", "s2").tolist()), truth


def test_sources_tell_apart_what_one_task_hides() -> None:
    """With sources each model's mean is found per source; without them both models look alike."""
    data, truth = two_sources()
    fine = Domain().fit(data).predict(data.x)[0]
    broad = Domain().fit(replace(data, sources=())).predict(data.x)[0]
    assert np.abs(fine - truth).max() < 0.12
    assert np.abs(broad - 0.6).max() < 0.1


def test_a_prediction_needs_no_source() -> None:
    """Sources are known for training rows only; a prediction reads the vector and nothing else."""
    data, _ = two_sources()
    found = Domain().fit(data)
    assert np.array_equal(found.predict(data.x)[0], found.predict(data.x, ["t"] * len(data.x))[0])


def test_a_source_with_few_rows_uses_its_task() -> None:
    """Such rows share the task's mean; the means of other sources are shrunk towards it."""
    data, _ = two_sources()
    sources = list(data.sources)
    sources[: LEAST_OF_SOURCE - 1] = ["rare"] * (LEAST_OF_SOURCE - 1)
    found = Domain(within_count=1e9).fit(replace(data, sources=sources))
    assert sorted(found.names()) == ["t", "t|s1", "t|s2"]
    assert np.ptp(found.table_, axis=0).max() < 1e-6
    assert found.table_[0] == pytest.approx(data.scores.mean(0), abs=0.02)


def test_a_part_of_the_rows_has_its_own_sources() -> None:
    """A wrong number of sources is refused."""
    data, _ = two_sources(40)
    assert data.rows(np.array([3, 1])).sources == [data.sources[3], data.sources[1]]
    with pytest.raises(ValueError, match="40 rows, but 1 sources"):
        replace(data, sources=["s1"])


def test_the_deviation_of_a_cell_counts_its_pseudo_scores() -> None:
    """It is .5 / sqrt(n + prior_count). Tasks with fewer than eight rows are merged into one."""
    scores = np.tile([[1.0, 0.0], [0.0, np.nan]], (10, 1))
    tasks = ["a"] * 8 + ["b"] * 7 + ["c"] * 5
    found = Domain().fit(Training(np.random.default_rng(0).normal(size=(20, 2)), scores, tasks, ("m", "n")))
    assert found.names() == ["", "a"]
    assert found.deviation_ == pytest.approx(0.5 / np.sqrt([[12 + 10, 6 + 10], [8 + 10, 4 + 10]]))


@pytest.mark.parametrize(("kind", "weights"), [(Domain, "weights_"), (Clusters, "centres_")])
def test_doubt_between_cells_adds_the_variance_of_their_means(kind: type[Domain | Clusters], weights: str) -> None:
    """If all cells are equally likely, the variance is the mean of their variances plus the variance of their means."""
    data, _ = two_sources()
    found = kind().fit(data)
    setattr(found, weights, np.zeros_like(getattr(found, weights)))
    if isinstance(found, Domain):
        found.intercept_ = np.zeros_like(found.intercept_)
    mean, sd = found.predict(data.x[:1])
    assert mean[0] == pytest.approx(found.table_.mean(0))
    assert sd[0] ** 2 == pytest.approx((found.deviation_**2).mean(0) + found.table_.var(0))
