"""From outcome data to a trained plug-in router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.cores import one_core
from routers.cost import Latency, LogLinear
from routers.estimators.base import Estimator, Matrix, Rows, Training, compared, folds, row_keys
from routers.estimators.ensemble import Ensemble
from routers.features import Featurizer, Layout
from routers.onboarding import completed
from routers.outcomes import DataError, Outcomes
from routers.parallel import ParallelMap, serial_map
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.registry import estimator_named
from routers.select import Exploration


def described(data: Outcomes, featurizer: Featurizer) -> Rows:
    """Feature vectors of every query, (n, d), in float32 as the featurizer computes them."""
    found = np.empty((len(data.texts), featurizer.layout.dims), np.float32)
    for row, text in enumerate(data.texts):
        found[row] = featurizer.describe(text).vector
    return found


def fit_router(
    name: str,
    data: Outcomes,
    x: Rows,
    featurizer: Featurizer,
    *,
    version: str = "1",
    seed: int = 0,
    exploration: Exploration | None = None,
) -> PluginRouter:
    """A router of that kind, trained on all rows of `data`, whose vectors are `x` (n, d). Raises DataError where there
    is too little to learn from.
    """
    learned = fit_learned(estimator_named(name), data, x, featurizer.layout, seed)
    return PluginRouter(name, version, featurizer.version, learned, exploration)


def fit_learned(quality: Estimator, data: Outcomes, x: Rows, layout: Layout, seed: int = 0) -> Learned:
    """Projection, quality, cost, output length and latency, as far as the data states them. Raises DataError where
    there are fewer than two rows, a model without any score, or too few rows for this estimator.
    """
    if len(x) < 2:
        raise DataError(f"queries.parquet: {len(x)} row(s) to train on; two or more are needed")
    unseen = [data.models[j] for j in np.flatnonzero(np.isfinite(data.scores).sum(0) == 0)]
    if unseen:
        cure = "score some of its answers (a request may name it, a route's `explore` tries it), or leave its rows out"
        raise DataError(f"outcomes.parquet: model {unseen[0]!r} has no score on the training rows; {cure}")
    rows, needed = int(compared(data.scores).sum()), quality.COMPARED_ROWS
    if rows < needed:
        raise DataError(
            f"outcomes.parquet: {quality.kind} learns from queries on which the scores of two models differ; there are "
            f"{rows} of them, and it needs {needed}, a third more to be cross-validated: score more models on the same "
            "queries, or train another router, such as linear"
        )
    with one_core():
        return _fitted(quality, data, x, layout, seed)


def _fitted(quality: Estimator, data: Outcomes, x: Rows, layout: Layout, seed: int) -> Learned:
    projection = Projection().fit(x, layout.blocks())
    z = projection.coordinates(x)
    scores = completed(data.scores)
    quality.fit(Training(z, scores, data.tasks, data.models, seed, data.cost_usd, data.sources))
    known = np.asarray(np.isfinite(data.cost_usd))
    paid = np.where(known, data.cost_usd, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return Learned(
        models=data.models,
        projection=projection,
        quality=quality,
        cost=LogLinear().fit(z, data.cost_usd) if known.any() else None,
        output_tokens=(LogLinear().fit(z, data.output_tokens) if np.isfinite(data.output_tokens).any() else None),
        latency=(Latency().fit(data.latency_s, data.output_tokens) if np.isfinite(data.latency_s).any() else None),
        reference_usd=float(paid.max()),
    )


def out_of_fold(
    name: str, data: Outcomes, x: Rows, layout: Layout, *, k: int = 4, seed: int = 0,
    parallel_map: ParallelMap = serial_map, like: Estimator | None = None,
) -> tuple[Matrix, Matrix]:  # fmt: skip
    """Quality and cost of every row as predicted by a router that did not see it, (n, m) each; `parallel_map`
    runs the folds. `like`: a fitted ensemble whose weights are taken over; learning them again in every fold would take
    four times as long.
    """
    said = like.parameters() if isinstance(like, Ensemble) else None
    fold = folds(row_keys(x), k, seed)
    quality, cost = np.zeros_like(data.scores), np.zeros_like(data.scores)
    found = parallel_map(_without, (name, data, x, layout, fold, seed, said), range(k))
    for part, (its_quality, its_cost) in enumerate(found):
        quality[fold == part], cost[fold == part] = its_quality, its_cost
    return quality, cost


def _without(
    name: str, data: Outcomes, x: Rows, layout: Layout, fold: NDArray[np.intp], seed: int,
    said: dict[str, Any] | None, part: int,
) -> tuple[Matrix, Matrix]:  # fmt: skip
    """Quality and cost of one fold's rows, predicted by a router that was trained on the other folds."""
    held = fold == part
    kind = estimator_named(name) if said is None else Ensemble(**said)
    learned = fit_learned(kind, data.rows(~held), x[~held], layout, seed)
    return predicted(learned, x[held], _tasks(name, data, held))


def predicted(learned: Learned, x: Rows, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
    """Predicted quality and cost of every row and model, (n, m) each; costs are zero where none were learned."""
    z = learned.projection.coordinates(x)
    quality, _ = learned.quality.predict(z, tasks)
    cost = np.zeros_like(quality) if learned.cost is None else np.nan_to_num(learned.cost.predict(z))
    return quality, cost


def _tasks(name: str, data: Outcomes, rows: NDArray[np.bool_]) -> tuple[str, ...] | None:
    """The rows' task names, for the one estimator that may read them; None for the others."""
    return data.rows(rows).tasks if name == "task-mean" else None
