"""The demo's figures: every comparison is paired by question, and every saving has an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local_models.tasks import Question
from routers.intervals import percentile_interval

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Sent:
    """One question's answer: whether it was right, its time, cost, model and cache state."""

    kind: str
    right: bool
    took_s: float
    cost_usd: float
    model: str
    cache: str

    @property
    def cached(self) -> bool:
        return self.cache in ("hit", "shared")

    @classmethod
    def of(cls, question: Question, right: bool, took_s: float, headers: Mapping[str, str]) -> Sent:
        cost_usd, cache = float(headers["x-headgate-cost-usd"]), headers["x-headgate-cache"]
        return cls(question.kind, right, took_s, cost_usd, headers["x-headgate-model"], cache)


@dataclass(frozen=True, slots=True)
class Way:
    """One way of sending all questions."""

    title: str
    sent: Sequence[Sent]

    def costs(self) -> NDArray[np.float64]:
        return np.array([one.cost_usd for one in self.sent])

    def scores(self) -> NDArray[np.float64]:
        return np.array([float(one.right) for one in self.sent])


def report_ways(ways: Sequence[Way], *, baseline: str, rng: np.random.Generator) -> dict[str, Any]:
    """Figures of every way, compared with the baseline on the same questions and bootstrap resamples. `saved` is a
    share of the baseline's cost.
    """
    base = next(way for way in ways if way.title == baseline)
    count = len(base.sent)
    picks = rng.integers(0, count, (RESAMPLES, count))
    return {"n_queries": count, "baseline": baseline, "ways": [_row(way, base, picks) for way in ways]}


def _row(way: Way, base: Way, picks: NDArray[np.int64]) -> dict[str, Any]:
    costs, scores = way.costs(), way.scores()
    took = np.array([one.took_s for one in way.sent])
    saved = 1 - costs[picks].sum(1) / base.costs()[picks].sum(1)
    difference = (scores - base.scores())[picks].mean(1)
    kinds = sorted({one.kind for one in way.sent})
    return {
        "way": way.title,
        "accuracy": float(scores.mean()),
        "accuracy_by_kind": {
            kind: float(np.mean([one.right for one in way.sent if one.kind == kind])) for kind in kinds
        },
        "usd_per_1000": float(costs.mean() * 1000),
        "saved": percentile_interval(1 - costs.sum() / base.costs().sum(), saved).as_dict(),
        "accuracy_difference": percentile_interval(scores.mean() - base.scores().mean(), difference).as_dict(),
        "p50_s": float(np.quantile(took, 0.5)),
        "p95_s": float(np.quantile(took, 0.95)),
        "large_share": float(np.mean([one.model == "tiny-large" and not one.cached for one in way.sent])),
        "cache_hits": float(np.mean([one.cached for one in way.sent])),
    }
