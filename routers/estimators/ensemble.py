"""The weighted mean of four estimators: tables of domains and of clusters have most of the weight, a ridge regression
and a factorisation the rest. The default router learns the weights (`routers.estimators.decided`).

Averaging with tables that know only the domain shrinks estimates toward the task mean, which keeps most of the noise of
query-level estimates out of the argmax. The errors of the four members are only weakly correlated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, folds, observed_mean, row_keys
from routers.estimators.clusters import Clusters
from routers.estimators.domain import Domain
from routers.estimators.factor import Factor
from routers.estimators.linear import Linear

FOLDS = 4
"""Number of folds by which members predict rows that they did not see."""


class Ensemble(Estimator):
    """Weighted mean of the members; their disagreement adds to the standard deviation.

    `stretch` multiplies the deviation of an estimate from its model's mean score, because a mean of estimates is shrunk
    too far. Batch jobs are planned with `job_weights` and `job_stretch` instead; empty `job_weights` stand for the same
    weights.
    """

    kind = "ensemble"
    PARAMETERS = ("weights", "stretch", "job_weights", "job_stretch")

    def __init__(
        self,
        weights: Sequence[float] = (0.4, 0.2, 0.1, 0.3),
        stretch: float = 1.0,
        job_weights: Sequence[float] = (),
        job_stretch: float = 1.0,
    ) -> None:
        self.weights = tuple(weights)
        self.stretch = stretch
        self.job_weights = tuple(job_weights)
        self.job_stretch = job_stretch
        self.members: dict[str, Estimator] = {
            "domain": Domain(), "linear": Linear(), "factor": Factor(), "clusters": Clusters(),
        }  # fmt: skip

    def fit(self, data: Training) -> Self:
        for member in self.members.values():
            member.fit(data)
        self.base_ = observed_mean(data.scores)
        return self

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        parts = [member.predict(x, tasks) for member in self.members.values()]
        mean = sum(w * part for w, (part, _) in zip(self.weights, parts, strict=True))
        noise = sum(w * sd**2 for w, (_, sd) in zip(self.weights, parts, strict=True))
        spread = sum(w * (part - mean) ** 2 for w, (part, _) in zip(self.weights, parts, strict=True))
        sd = np.sqrt(np.asarray(noise) + np.asarray(spread))
        if self.stretch == 1.0:
            return np.asarray(mean), sd
        return np.clip(self.base_ + self.stretch * (mean - self.base_), 0.0, 1.0), self.stretch * sd

    def for_jobs(self) -> Ensemble:
        """The same members with the weights for batch jobs."""
        if not self.job_weights:
            return self
        found = Ensemble(self.job_weights, self.job_stretch)
        found.members, found.base_ = self.members, self.base_
        return found

    @staticmethod
    def out_of_fold(data: Training) -> list[Matrix]:
        """Each member's predicted quality of every row, (n, m), by a fit on the other folds."""
        fold = folds(row_keys(data.x), FOLDS, data.seed)
        predicted = {name: np.zeros_like(data.scores) for name in Ensemble().members}
        for part in range(FOLDS):
            held = fold == part
            for name, member in Ensemble().members.items():
                predicted[name][held] = member.fit(data.rows(~held)).predict(data.x[held])[0]
        return list(predicted.values())

    def state(self) -> dict[str, NDArray[Any]]:
        members = self.members.items()
        found = {f"{name}/{key}": array for name, member in members for key, array in member.state().items()}
        return {**found, "base_": self.base_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        for name, member in self.members.items():
            own = {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
            member.restore(own)
        self.base_ = state.get("base_", np.zeros(1))  # artefacts without it have a stretch of one
        return self
