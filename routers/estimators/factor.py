"""Matrix factorisation with item response theory (IRT): each model has a vector, and a query's vector is a linear map
of its features.

`logit P(model m right on x) = level_m + ease(x) + (a + A x) . v_m` (multidimensional IRT; EmbedLLM, IRT-Router and
RouteLLM's matrix factorisation are its relatives). A new model needs a level and a vector only, which `join` fits to a
few probes, while `ease`, `a` and `A` stay unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, observed_mean
from routers.estimators.descent import Weights, descend, held_out, sigmoid


class Factor(Estimator):
    """Vectors have `rank` elements, called traits. `penalty` is the weight decay of the map `A` from features to
    traits, `ease_penalty` that of the weights of `ease`.
    """

    kind = "factor"
    PARAMETERS = ("rank", "penalty", "ease_penalty", "steps")
    LEARNED = ("level_", "ease_", "traits_", "trait_level_", "vectors_", "count_")

    def __init__(self, rank: int = 8, penalty: float = 0.05, ease_penalty: float = 1e-3, steps: int = 150) -> None:
        self.rank = rank
        self.penalty = penalty
        self.ease_penalty = ease_penalty
        self.steps = steps

    def fit(self, data: Training) -> Self:
        rng = np.random.default_rng(data.seed)
        d, m = data.x.shape[1], len(data.models)
        train, check = (data.rows(part) for part in held_out(rng, 0.12, np.asarray(np.isfinite(data.scores).any(1))))
        base = np.clip(observed_mean(data.scores), 0.02, 0.98)
        start = {
            "level": np.log(base / (1 - base)),
            "ease": np.zeros(d),
            "traits": rng.normal(0, 0.05, (d, self.rank)),
            "trait_level": np.zeros(self.rank),
            "vectors": rng.normal(0, 0.3, (self.rank, m)),
        }
        decay = {"ease": self.ease_penalty, "traits": self.penalty, "vectors": 1e-3}
        found = descend(start, lambda w: _slopes(w, train), lambda w: _loss(w, check), decay=decay, steps=self.steps)
        self.level_, self.ease_, self.traits_ = found["level"], found["ease"], found["traits"]
        self.trait_level_, self.vectors_ = found["trait_level"], found["vectors"]
        self.count_ = np.isfinite(data.scores).sum(0).astype(float)
        return self

    def _query(self, x: Matrix) -> tuple[Matrix, Matrix]:
        return x @ self.ease_, x @ self.traits_ + self.trait_level_

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        ease, traits = self._query(x)
        mean = sigmoid(ease[:, None] + traits @ self.vectors_ + self.level_)
        dof = 1.0 + (traits * traits).sum(1)
        return mean, np.sqrt(mean * (1 - mean) * np.minimum(1.0, np.outer(dof, 1.0 / (self.count_ + 1.0))))

    def join(self, x: Matrix, scores: Matrix, steps: int = 30) -> Self:
        """Add a model that is known by a few probes: queries `x` (n, d) and its `scores` on them (n,).

        Its level and vector are the most probable ones by `steps` Newton steps, under independent normal priors with
        the mean and variance of the known models' values; .05 is added to each variance.
        """
        ease, traits = self._query(x)
        design = np.column_stack([np.ones(len(x)), traits])
        centre = np.append(self.level_.mean(), self.vectors_.mean(1))
        spread = np.append(self.level_.var() + 0.05, self.vectors_.var(1) + 0.05)
        own = centre.copy()
        for _ in range(steps):
            p = sigmoid(ease + design @ own)
            slope = design.T @ (p - scores) + (own - centre) / spread
            bend = (design * (p * (1 - p))[:, None]).T @ design + np.diag(1.0 / spread)
            own = own - np.linalg.solve(bend, slope)
        self.level_ = np.append(self.level_, own[0])
        self.vectors_ = np.column_stack([self.vectors_, own[1:]])
        self.count_ = np.append(self.count_, float(len(x)))
        return self


def _logits(w: Weights, x: Matrix) -> Matrix:
    traits = x @ w["traits"] + w["trait_level"]
    return np.asarray((x @ w["ease"])[:, None] + traits @ w["vectors"] + w["level"])


def _slopes(w: Weights, data: Training) -> Weights:
    """Ten times the gradient of the mean log loss over observed scores, to suit Adam's step."""
    seen = np.isfinite(data.scores)
    error = np.where(seen, sigmoid(_logits(w, data.x)) - np.nan_to_num(data.scores), 0.0) * (10.0 / seen.sum())
    traits = data.x @ w["traits"] + w["trait_level"]
    back = error @ w["vectors"].T
    return {
        "level": error.sum(0),
        "ease": data.x.T @ error.sum(1),
        "traits": data.x.T @ back,
        "trait_level": back.sum(0),
        "vectors": traits.T @ error,
    }


def _loss(w: Weights, data: Training) -> float:
    """Mean squared error of each model's deviation from its row's mean, because only that decides between models. In a
    row with one score it is the error of that score.
    """
    seen = np.isfinite(data.scores)
    error = np.where(seen, sigmoid(_logits(w, data.x)) - np.nan_to_num(data.scores), 0.0)
    count = seen.sum(1)
    centre = np.where(count >= 2, error.sum(1) / np.maximum(count, 1), 0.0)
    return float((np.where(seen, error - centre[:, None], 0.0) ** 2).sum() / max(int(seen.sum()), 1))
