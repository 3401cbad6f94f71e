"""Kinds of questions: learned from labels, recognised by the router's estimates, and what evidence means in each."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.kinds import LEAST_ROWS, fit_kinds, kinds_in, kinds_of
from cascade.logistic import sigmoid
from cascade.posterior import Scene, Space, design, logit, shown
from cascade.posterior_fit import fit_posterior


def two_kinds(n: int = 600, seed: int = 0) -> tuple[Scene, np.ndarray, list[str]]:
    """Questions with letters as answers, where confidence is informative, and essays, which both models find harder and
    where it isn't.
    """
    rng = np.random.default_rng(seed)
    essay, sure = rng.random(n) < 0.5, rng.random((n, 2))
    right = np.where(essay[:, None], rng.random((n, 2)) < 0.5, rng.random((n, 2)) < sure).astype(float)
    level = np.where(essay[:, None], (0.4, 0.5), (0.6, 0.9)) + rng.normal(0.0, 0.02, (n, 2))
    alike = np.tile(np.eye(2), (n, 1, 1))
    return Scene(logit(level), shown(sure), alike), right, ["essay" if e else "letters" for e in essay]


def test_kinds_are_recognised_by_the_estimates() -> None:
    """Fresh rows are classified without labels, and their probabilities sum to 1."""
    scene, _, tasks = two_kinds()
    fresh, _, labels = two_kinds(seed=1)
    told = kinds_in(fit_kinds(scene.prior, tasks), fresh.prior)
    assert np.allclose(told.sum(1), 1.0)
    assert np.mean(told.argmax(1) == [label == "letters" for label in labels]) > 0.99


@pytest.mark.parametrize("tasks", [(), ["quiz"] * 600])
def test_kinds_need_two_labels(tasks: list[str]) -> None:
    """Without labels, or with a single one, evidence has one meaning for all rows."""
    scene, scores, _ = two_kinds()
    space = Space(("a", "b"), (0,), 1)
    assert fit_posterior(space, scene, scores, tasks).kinds.shape == (3, 0)


def test_confidence_is_read_by_kind() -> None:
    """High and low confidence give different chances where confidence is informative, and equal ones where it isn't."""
    scene, scores, tasks = two_kinds(3000)
    posterior = fit_posterior(Space(("a", "b"), (0,), 1), scene, scores, tasks)

    def apart(*level: float) -> float:
        low, high = (
            posterior.chances(((0, True),), Scene(logit(np.array([level])), shown(np.full((1, 2), p)), np.eye(2)[None]))
            for p in (0.1, 0.9)
        )
        return float(high[0, 0] - low[0, 0])

    assert apart(0.6, 0.9) > 0.6 and abs(apart(0.4, 0.5)) < 0.15


def test_rare_tasks_are_merged() -> None:
    """Together they make a kind if they are enough, and otherwise join the most common one."""
    many, few = ["many"] * LEAST_ROWS, [f"rare {i}" for i in range(LEAST_ROWS)]
    assert kinds_of(many + few) == many + [""] * LEAST_ROWS
    assert kinds_of(many + few[:9]) == ["many"] * (LEAST_ROWS + 9)
    assert set(kinds_of(few)) == {""}


def test_batched_chances_are_those_of_each_head() -> None:
    """Whether or not a model has answered, its chance is that of its own head on its own features."""
    scene, scores, tasks = two_kinds()
    posterior = fit_posterior(Space(("a", "b"), (0, 1), 2), scene, scores, tasks)
    shares = kinds_in(posterior.kinds, scene.prior)
    for state, heads in posterior.weights.items():
        if state:
            alone = [sigmoid(design(state, j, scene, shares) @ heads[j]) for j in (0, 1)]
            assert np.allclose(posterior.chances(state, scene), np.stack(alone, 1))
