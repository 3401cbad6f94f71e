"""The estimator of the shipped default: a ridge regression over all models of several public data sets, and the
easiness of a query.

Models that it was trained on are estimated as in `Linear`. For other models only the query's easiness is known, which
is about models in general; the caller adds what the model's price suggests (`routers.prior`), and does so for all
candidates as soon as one of them is unknown, because the two scales can't be compared. The artefact's card states how
little easiness carries over to other data sets.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from routers.estimators.base import Matrix, Training, observed_mean
from routers.estimators.linear import Linear, ridge

MOST_WEIGHT = 2.0
"""Largest weight of a row. Without it a row would weigh as much as the number of models that answered it, whose errors
are correlated.
"""


class General(Linear):
    """`Linear`, and `easiness`: one Newton step of a logistic regression that all models share, with penalty
    `easy_ridge`.
    """

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
        """Logits by which each row is easier than an average training query, (n,)."""
        return np.asarray(x @ self.easy_)
