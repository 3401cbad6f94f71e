"""The estimator behind the shipped default: a ridge over every model of several public sets, and a
query's ease.

Models that it knows by name are estimated as `Linear` does. Of a model it never saw it can say only how
easy the query is for models in general; the caller adds what the model's price suggests
(`routers.prior`), and does so for a whole pool as soon as one of its models is unknown, for the two
scales can't be compared. How little ease carries over to other sets of questions is written in the
artefact's card.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from routers.estimators.base import Matrix, Training, observed_mean
from routers.estimators.linear import Linear, ridge

MOST_WEIGHT = 2.0
"""A row seen by many models counts no more than this: their errors go together."""


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
