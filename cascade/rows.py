"""Logged rows with a router's estimates: what cascades are trained on and compared on.

Estimates of training rows are out of fold: whoever fitted them did not see the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.logs import Logged
from cascade.planner import Typical
from cascade.posterior import Matrix, Prices, Scene, Space, logit, shown
from cascade.posterior_fit import HIGHEST_RATE
from routers import frontier
from routers.cost import LogLinear
from routers.estimators.base import Rows
from routers.features import shipped_featurizer
from routers.fit import fit_learned, out_of_fold, predicted
from routers.registry import estimator_named

FAR_BELOW = 0.6
"""A model below this share of the best one's quality opens no climb: its answers say too little."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a posterior cascade is trained. The pool is the cheapest and the best models of the training rows."""

    router: str = "ensemble"
    """Estimator behind the estimates before generation."""
    depth: int = 1
    pool: int = 6
    folds: int = 10
    """Folds of the posterior and its rules; with more folds the held-out curve is less pessimistic."""
    estimate_folds: int = 8
    """Folds of the router's estimates on training rows."""
    tolerance: float = 0.004
    """Quality below the best single model that still counts as matching it, on training rows."""
    most_cost: float = 1.5
    """The most that the rule of highest quality may spend, as a multiple of the best single model's cost."""
    rates: int = 36
    """Exchange rates tried."""
    highest_rate: float = HIGHEST_RATE
    """The highest exchange rate tried, in quality points per cost of the most expensive model."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EstimatedRows:
    """Logged rows with their estimates and expected prices."""

    logged: Logged
    scene: Scene
    prices: Prices

    @property
    def scores(self) -> Matrix:
        return self.logged.data.scores

    @property
    def tasks(self) -> Sequence[str]:
        return self.logged.data.tasks

    @property
    def paid(self) -> Prices:
        return Prices(self.logged.data.cost_usd, self.logged.data.checked_cost_usd)

    @property
    def typical(self) -> Typical:
        quality, cost_usd = self.scores.mean(0).tolist(), self.paid.answer.mean(0).tolist()
        return dict(zip(self.logged.data.models, zip(quality, cost_usd, strict=True), strict=True))

    def rows(self, kept: NDArray[np.intp]) -> EstimatedRows:
        return EstimatedRows(self.logged.rows(kept), self.scene.rows(kept), self.prices.rows(kept))


def estimated_parts(
    logged: Logged, x: Rows, train: NDArray[np.bool_], setting: TrainingSettings
) -> tuple[EstimatedRows, EstimatedRows]:
    """Training rows with out-of-fold estimates, test rows with those of a router trained on all training rows."""
    layout = shipped_featurizer().layout
    taught, tested = logged.rows(train), logged.rows(~train)
    quality, answer = out_of_fold(
        setting.router, taught.data, x[train], layout, k=setting.estimate_folds, seed=setting.seed
    )
    learned = fit_learned(estimator_named(setting.router), taught.data, x[train], layout, setting.seed)
    test_quality, test_answer = predicted(learned, x[~train])
    z = [learned.projection.coordinates(rows) for rows in (x[train], x[~train])]
    checked = LogLinear().fit(z[0], taught.data.checked_cost_usd)
    read, test_read = (checked.predict(rows) for rows in z)
    if not paying(taught):
        read, test_read = answer, test_answer
    return (
        EstimatedRows(taught, _scene(taught, quality), Prices(answer, np.maximum(read, answer))),
        EstimatedRows(tested, _scene(tested, test_quality), Prices(test_answer, np.maximum(test_read, test_answer))),
    )


def paying(logged: Logged) -> bool:
    """Whether reading the evidence cost anything on any row."""
    return bool((logged.data.checked_cost_usd > logged.data.cost_usd * (1.0 + 1e-6)).any())


def _scene(logged: Logged, quality: Matrix) -> Scene:
    logprob = logged.data.confidence
    p = np.where(np.isnan(logprob), np.nan, np.exp(np.clip(np.nan_to_num(logprob, neginf=-700.0), -700.0, 0.0)))
    return Scene(logit(quality), shown(p), logged.agreement)


def space_of(part: EstimatedRows, setting: TrainingSettings) -> Space:
    """The states that climbs may reach. Models that may open a climb are those not far below the best; those on the
    hull of training means come first, then those of higher quality.
    """
    data = part.logged.data
    quality = data.scores.mean(0)
    points = np.column_stack([data.cost_usd.mean(0), quality])
    chain = {tuple(point) for point in frontier.hull(points).tolist()}
    useful = [j for j in range(len(quality)) if quality[j] >= FAR_BELOW * quality.max()]
    useful.sort(key=lambda j: (tuple(points[j].tolist()) not in chain, -quality[j]))
    pool = tuple(sorted(useful[: setting.pool]))
    readings = (False, True) if paying(part.logged) else (True,)
    return Space(data.models, pool, min(setting.depth, len(pool)), readings)
