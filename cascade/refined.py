"""What letting a model refine its own answer is worth: PeRFICS, a score over performance, refinement and inference
cost.

After Shashidhar et al. 2023 ("Democratizing LLMs", arXiv 2310.07611), who rank models by how well they do, how well
they do once refined, and what that costs. The weighted mean below is ours: each term lies in [0, 1], so scores compare
models of one table and no others. Refuses to guess: a model without refined answers has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.evaluate import with_interval
from routers.intervals import resampled_weights
from routers.outcomes import Outcomes

SUFFIX = "+refine"
"""Suffix of a model's name in outcome data: that model's answers are the refined answers of the model without the
suffix.
"""
WEIGHTS = (1.0, 1.0, 1.0)
RESAMPLES = 1000
Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A model's answers and their refined ones on the same questions; costs of the refined include the draft."""

    score: Column
    refined: Column
    cost_usd: Column
    refined_usd: Column

    @property
    def columns(self) -> NDArray[np.float64]:
        return np.column_stack([self.score, self.refined, self.cost_usd, self.refined_usd])


def perfics(
    performance: Column, refined: Column, share_of_cost: Column, weights: tuple[float, float, float] = WEIGHTS
) -> Column:
    """Weighted mean of quality, refined quality and thrift (1 - the refined answer's share of the most expensive cost).
    """
    terms = np.stack([performance, refined, 1.0 - share_of_cost])
    found: Column = np.tensordot(np.array(weights) / sum(weights), terms, axes=1)
    return found


def ranked(
    pairs: Mapping[str, Pair], weights: tuple[float, float, float] = WEIGHTS, *, seed: int = 0
) -> dict[str, Any]:
    """Every model with its terms and score, best score first; 95 % intervals, the same questions drawn for all."""
    if not pairs:
        return {}
    drawn = resampled_weights(len(next(iter(pairs.values())).score), RESAMPLES, seed)
    means = np.stack([np.vstack([pair.columns.mean(0), drawn @ pair.columns]) for pair in pairs.values()])
    quality, refined, cost_usd, refined_usd = np.moveaxis(means, -1, 0)
    highest = np.maximum(np.maximum(cost_usd, refined_usd).max(0), 1e-12)
    direct_best = quality[quality[:, 0].argmax()]
    figures = {
        "quality": quality,
        "refined_quality": refined,
        "refined_minus_direct": refined - quality,
        "refined_minus_best_direct": refined - direct_best,
        "cost_share": cost_usd / highest,
        "refined_cost_share": refined_usd / highest,
        "perfics": perfics(quality, refined, refined_usd / highest, weights),
    }
    rows = {
        name: {figure: with_interval(float(values[j, 0]), values[j, 1:].tolist()) for figure, values in figures.items()}
        for j, name in enumerate(pairs)
    }
    return dict(sorted(rows.items(), key=lambda row: -(row[1]["perfics"]["value"] or 0.0)))


def pairs_in(data: Outcomes) -> dict[str, Pair]:
    """Models of the data that stand there refined too, on the rows where everything is known of all of them."""
    names = [name for name in data.models if name + SUFFIX in data.models]
    if not names:
        return {}
    places = [(data.models.index(name), data.models.index(name + SUFFIX)) for name in names]
    every = [j for pair in places for j in pair]
    known = np.isfinite(data.scores[:, every]).all(1) & np.isfinite(data.cost_usd[:, every]).all(1)
    scores, costs = data.scores[known], data.cost_usd[known]
    found = [Pair(scores[:, j], scores[:, r], costs[:, j], costs[:, r]) for j, r in places]
    return dict(zip(names, found, strict=True)) if known.any() else {}
