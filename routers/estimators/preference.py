"""Preference estimators (RouteLLM): a Bradley-Terry strength of every model on a query, learned from pairwise wins.

`Preference` is the factorised form: strength(m, x) = level_m + (A x) . v_m, P(a beats b) = sigmoid of the difference.
`SimilarWins` solves a Bradley-Terry model for each query, in which a battle weighs more the more similar its query is.
Strengths have no scale of quality, so they are mapped to scores by one regression that all models share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, deviation_of_mean, observed_mean, unit
from routers.estimators.descent import Weights, descend, held_out, sigmoid


def battles(scores: Matrix) -> Matrix:
    """(n, m, m): 1 where the second axis's model scored higher on a query than the third's, a half where both scored
    the same, else 0, also where one of the two was not observed.

    Without ties, nothing would be learned from a query on which the better model is not needed.
    """
    own, other = scores[:, :, None], scores[:, None, :]
    won = (own > other) + 0.5 * (own == other)
    return np.asarray(won * ~np.eye(scores.shape[1], dtype=bool))


def scaled(strength: Matrix, scores: Matrix) -> Matrix:
    """(intercept, slope) of the score on sigmoid(strength), by least squares over observed cells."""
    seen = np.isfinite(scores)
    squashed, y = sigmoid(strength[seen]), scores[seen]
    spread = float(squashed.var())
    slope = float(np.cov(squashed, y, bias=True)[0, 1]) / spread if spread > 1e-12 else 0.0
    return np.array([y.mean() - slope * squashed.mean(), slope])


class Preference(Estimator):
    """Factorised Bradley-Terry model with `rank` traits, fitted by gradient descent on battles. Of `penalties`, the
    weight decay of the map from features to traits, the one that predicts held-out battles best is kept.
    """

    kind = "preference"
    PARAMETERS = ("rank", "penalties", "steps")
    LEARNED = ("level_", "traits_", "vectors_", "scale_", "count_")
    COMPARED_ROWS = 20

    def __init__(self, rank: int = 4, penalties: Sequence[float] = (0.01, 0.05, 0.2, 0.5), steps: int = 150) -> None:
        self.rank = rank
        self.penalties = tuple(penalties)
        self.steps = steps

    def fit(self, data: Training) -> Self:
        rng = np.random.default_rng(data.seed)
        d, m = data.x.shape[1], len(data.models)
        wins = battles(data.scores)
        train, check = held_out(rng, 0.2, np.asarray(wins.any((1, 2))))
        base = observed_mean(data.scores)
        start = {
            "level": (base - base.mean()) * 4.0,
            "traits": rng.normal(0, 0.05, (d, self.rank)),
            "vectors": rng.normal(0, 0.3, (self.rank, m)),
        }
        tried = [
            descend(
                start,
                lambda w: _slopes(w, data.x[train], wins[train]),
                lambda w: _loss(w, data.x[check], wins[check]),
                decay={"traits": penalty, "vectors": 1e-3},
                steps=self.steps,
            )
            for penalty in self.penalties
        ]
        found = min(tried, key=lambda w: _loss(w, data.x[check], wins[check]))
        self.level_, self.traits_, self.vectors_ = found["level"], found["traits"], found["vectors"]
        self.scale_ = scaled(self.strength(data.x), data.scores)
        self.count_ = np.isfinite(data.scores).sum(0).astype(float)
        return self

    def strength(self, x: Matrix) -> Matrix:
        """(n, m); the difference of two models' strengths is the log odds that the first wins."""
        return np.asarray(x @ self.traits_ @ self.vectors_ + self.level_)

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        mean = np.clip(self.scale_[0] + self.scale_[1] * sigmoid(self.strength(x)), 0.0, 1.0)
        return mean, deviation_of_mean(mean, self.count_ / 10 + 1)


def _edge(w: Weights, x: Matrix) -> Matrix:
    strength = x @ w["traits"] @ w["vectors"] + w["level"]
    return np.asarray(strength[:, :, None] - strength[:, None, :])


def _slopes(w: Weights, x: Matrix, wins: Matrix) -> Weights:
    error = wins * (sigmoid(_edge(w, x)) - 1.0)
    pull = (error.sum(2) - error.sum(1)) * (10.0 / max(float(wins.sum()), 1.0))
    return {
        "level": pull.sum(0),
        "traits": x.T @ (pull @ w["vectors"].T),
        "vectors": (x @ w["traits"]).T @ pull,
    }


def _loss(w: Weights, x: Matrix, wins: Matrix) -> float:
    total = float(wins.sum())
    return float(-(wins * np.log(sigmoid(_edge(w, x)) + 1e-9)).sum() / total) if total else 0.0


class SimilarWins(Estimator):
    """Similarity-weighted ranking: a battle weighs gamma ** (1 + cosine / the highest cosine), and the Bradley-Terry
    model is solved by `rounds` of Zermelo's iteration. Of more than `most_rows` training rows an evenly spaced sample
    is kept.
    """

    kind = "similar-wins"
    PARAMETERS = ("gamma", "most_rows", "rounds")
    LEARNED = ("rows_", "wins_", "scale_", "count_")
    COMPARED_ROWS = 20

    def __init__(self, gamma: float = 10.0, most_rows: int = 4000, rounds: int = 12) -> None:
        self.gamma = gamma
        self.most_rows = most_rows
        self.rounds = rounds

    def fit(self, data: Training) -> Self:
        step = max(1, -(-len(data.x) // self.most_rows))
        part = data.rows(np.arange(0, len(data.x), step))
        m = len(data.models)
        self.rows_ = unit(part.x).astype(np.float32)
        self.wins_ = battles(part.scores).reshape(len(part.x), m * m).astype(np.float32)
        self.count_ = np.isfinite(data.scores).sum(0).astype(float)
        check = part.rows(np.arange(0, len(part.x), 1 + len(part.x) // 500))
        self.scale_ = scaled(self.strength(check.x), check.scores)
        return self

    def strength(self, x: Matrix) -> Matrix:
        """Logarithm of each model's Bradley-Terry worth, less the mean over models, (n, m)."""
        m = len(self.count_)
        near = unit(x).astype(np.float32) @ self.rows_.T
        near /= np.maximum(near.max(1, keepdims=True), 1e-6)
        wins = (self.gamma ** (1.0 + near) @ self.wins_).reshape(len(x), m, m).astype(np.float64)
        wins += 1e-3 * wins.mean((1, 2), keepdims=True) + 1e-9
        games = wins + wins.transpose(0, 2, 1)
        worth = np.ones((len(x), m))
        off = ~np.eye(m, dtype=bool)
        for _ in range(self.rounds):
            pairs = games / (worth[:, :, None] + worth[:, None, :])
            worth = (wins * off).sum(2) / (pairs * off).sum(2)
            worth /= worth.mean(1, keepdims=True)
        log = np.log(worth)
        return np.asarray(log - log.mean(1, keepdims=True))

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        strength = np.concatenate([self.strength(x[i : i + 256]) for i in range(0, len(x), 256)])
        mean = np.clip(self.scale_[0] + self.scale_[1] * sigmoid(strength), 0.0, 1.0)
        return mean, deviation_of_mean(mean, self.count_ / 10 + 1)
