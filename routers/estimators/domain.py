"""Domain router (MoDEM, Composition of Experts): a classifier of tasks, and a table of each model's mean
per task.

The estimate is the table averaged under the classifier's probabilities, so doubt about the task shrinks
toward the overall mean. The table may be edited by hand (`table_`), the classifier stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, packed, task_table, unpacked


class Domain(Estimator):
    """Multinomial logistic regression with inverse penalty `strength` over the task names."""

    kind = "domain"
    PARAMETERS = ("strength", "prior_count", "least_rows")
    LEARNED = ("names_", "table_", "deviation_", "weights_", "intercept_")

    def __init__(self, strength: float = 9.0, prior_count: float = 10.0, least_rows: int = 8) -> None:
        self.strength = strength
        self.prior_count = prior_count
        self.least_rows = least_rows

    def fit(self, data: Training) -> Self:
        tasks = self._merged(data.tasks)
        names, self.table_, count = task_table(data.scores, tasks, self.prior_count)
        self.names_ = packed(names)
        self.deviation_ = 0.5 / np.sqrt(count + self.prior_count)
        d = data.x.shape[1]
        self.weights_, self.intercept_ = np.zeros((d, len(names))), np.zeros(len(names))
        if len(names) > 1:
            self._classify(data.x, np.array([names.index(task) for task in tasks]))
        return self

    def _merged(self, tasks: Sequence[str]) -> list[str]:
        """Tasks too rare to learn become one."""
        found: dict[str, int] = {}
        for task in tasks:
            found[task] = found.get(task, 0) + 1
        return [task if found[task] >= self.least_rows else "" for task in tasks]

    def _classify(self, x: Matrix, labels: Matrix) -> None:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.strength, max_iter=150, tol=1e-3).fit(x, labels)
        weights, intercept = model.coef_, model.intercept_
        if len(weights) == 1:
            weights, intercept = np.vstack([0 * weights, weights]), np.append(0.0, intercept)
        self.weights_, self.intercept_ = weights.T.copy(), intercept.copy()

    def shares(self, x: Matrix) -> Matrix:
        """Probability of each task, (n, tasks)."""
        logits = x @ self.weights_ + self.intercept_
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))

    def names(self) -> list[str]:
        return unpacked(self.names_)

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        share = self.shares(x)
        mean = share @ self.table_
        within = share @ (self.deviation_**2 + self.table_**2) - mean**2
        return mean, np.sqrt(np.maximum(within, 1e-8))
