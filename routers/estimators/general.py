"""The estimator of the shipped default: a ridge over all models of several public sets, and how easy a query is.

Models that it knows by name are estimated as in `Linear`. For an unknown model it only tells how easy the query is for
models in general; the caller adds what the model's price suggests (`routers.prior`), and does so for a whole pool as
soon as one of its models is unknown, because the two scales can't be compared. The artefact's card states how little
ease carries over to other sets of questions.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from routers.estimators.base import Matrix, Training, observed_mean
from routers.estimators.linear import Linear, ridge

MOST_WEIGHT = 2.0
"""Largest weight of a row that many models answered, because their errors are correlated."""


class General(Linear):
    """`Linear`, and `ease`: one Newton step of a logistic regression shared by all models."""

    kind = "general"
    PARAMETERS: ClassVar[tuple[str, ...]] = ("ridge", "ease", "easy_ridge")
    LEARNED: ClassVar[tuple[str, ...]] = (*Linear.LEARNED, "easy_")

    def __init__(self, ridge: float = 300.0, ease: float = 30.0, easy_ridge: float = 300.0) -> None:
        super().__init__(ridge, ease)
        self.easy_ridge = easy_ridge

    def fit(self, data: Training) -> Self:
        super().fit(data)
        base = np.clip(observed_mean(data.scores), 0.02, 0.98)
        seen = np.isfinite(data.scores)
        slope = np.where(seen, data.scores - base, 0.0).sum(1)
        bend = np.where(seen, base * (1 - base), 0.0).sum(1)
        root = np.sqrt(np.minimum(bend, MOST_WEIGHT))
        target = slope / np.maximum(bend, 1e-9)
        centre = float((root**2 * target).sum() / max((root**2).sum(), 1e-9))
        self.easy_ = ridge(data.x * root[:, None], ((target - centre) * root)[:, None], self.easy_ridge)[:, 0]
        return self

    def easiness(self, x: Matrix) -> Matrix:
        """Logits by which each row is easier than the training sets' middling query, (n,)."""
        return np.asarray(x @ self.easy_)
