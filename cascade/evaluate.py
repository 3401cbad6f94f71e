"""What a cascade is worth on logged answers, honestly: the operating point is chosen on training rows only.

Each split trains estimates, posterior and values on its training rows, picks one rate there by cross-fitting, and
replays the test rows through the product's own climb. Means and spread over splits are the figures to quote; the hull
through test points stands beside them for comparison with papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.baselines import frugal_chain, frugal_plans, router_alone, verified_alone
from cascade.logs import Logged
from cascade.posterior import Rule
from cascade.posterior_fit import Walked, best_quality, cheapest_matching
from cascade.refined import pairs_in, ranked
from cascade.replay import Replayed, replay_all
from cascade.risk_coverage import CALIBRATED, RAW, Given, risk_coverage
from cascade.routing import routed_plan
from cascade.rows import EstimatedRows, TrainingSettings, estimated_parts
from cascade.train import Trained, certified_threshold, train, walked
from cascade.types import Plan
from routers import frontier
from routers.estimators.base import Rows, firsts
from routers.features import shipped_featurizer
from routers.fit import described
from routers.types import Estimate

Progress = Callable[[int, int], None]
REPORTED_RISKS = (0.02, 0.05, 0.10, 0.15, 0.20)
"""Shares of wrong answers at which abstention is reported."""


def plans(trained: Trained, rule: Rule, part: EstimatedRows) -> list[Plan]:
    """One climb per row, as the gateway would make it."""
    models, prices = trained.posterior.space.models, part.prices
    worst = dict.fromkeys(models, float(part.paid.read.max()))
    quality = 1.0 / (1.0 + np.exp(-part.scene.prior))
    found = []
    for row in range(len(part.scores)):
        estimates = [
            Estimate(m, float(quality[row, j]), 0.0, float(prices.answer[row, j])) for j, m in enumerate(models)
        ]
        read = {m: float(prices.read[row, j]) for j, m in enumerate(models)}
        found.append(routed_plan(trained.posterior, rule, estimates, worst, read_cost_usd=read))
    return found


@dataclass(frozen=True, slots=True)
class _Single:
    """Mean cost, score and latency on the test rows of the single model that was best on the training rows."""

    cost_usd: float
    score: float
    latency_s: float

    @classmethod
    def of(cls, taught: EstimatedRows, tested: EstimatedRows) -> _Single:
        best = int(taught.scores.mean(0).argmax())
        latency_s = np.nan_to_num(tested.logged.data.latency_s)
        columns = (tested.paid.answer, tested.scores, latency_s)
        return cls(*(float(column[:, best].mean()) for column in columns))

    def beside(self, cost_usd: float, score: float) -> dict[str, float]:
        """Quality difference and cost ratio of a policy to this model."""
        return {"quality_difference": score - self.score, "cost_ratio": _ratio(cost_usd, self.cost_usd)}

    def beside_climbs(self, got: Replayed) -> dict[str, float]:
        """The same of replayed climbs, with their latency ratio and calls per query."""
        times = {"latency_ratio": _ratio(got.latency_s, self.latency_s), "calls": got.calls}
        return {**self.beside(got.cost_usd, got.score), **times}


def evaluate_split(
    logged: Logged, x: Rows, train_rows: NDArray[np.bool_], setting: TrainingSettings
) -> tuple[dict[str, Any], Given]:
    """One split's figures, relative to the single model that was best on its training rows; and the answers to its test
    rows at the cheapest matching point, with their confidences.
    """
    taught, tested = estimated_parts(logged, x, train_rows, setting)
    trained, single = train(taught, setting), _Single.of(taught, tested)
    matching = cheapest_matching(trained.held_out, trained.best_single, setting.tolerance)
    best = best_quality(trained.held_out, setting.most_cost * trained.single_usd)
    got = walked(trained.posterior, [trained.rules[matching]], tested)[0]
    found: dict[str, Any] = {
        "best_single": logged.data.models[int(taught.scores.mean(0).argmax())],
        "best_single_quality": single.score,
        **_frontier_figures(trained, tested, single),
        "matching": single.beside_climbs(_replayed(trained, matching, tested)),
        "best_quality": single.beside_climbs(_replayed(trained, best, tested)),
        "abstaining": {
            f"risk_{risk:.2f}": _abstaining(certified_threshold(trained, matching, risk), got)
            for risk in REPORTED_RISKS
        },
        **_baseline_figures(taught, tested, trained, setting, single),
    }
    raw = tested.logged.data.confidence[np.arange(len(got.model)), got.model]
    return found, Given(np.flatnonzero(~train_rows), got.score, {CALIBRATED: got.chance, RAW: raw})


def _frontier_figures(trained: Trained, tested: EstimatedRows, single: _Single) -> dict[str, float]:
    """Figures of the hull through the test points of all rules, and the zero router's AIQ beside them."""
    chain = frontier.hull(np.array([w.means() for w in walked(trained.posterior, trained.rules, tested)]))
    alone = np.column_stack([tested.paid.answer.mean(0), tested.scores.mean(0)])
    lowest = float(alone[:, 0].min())
    saved_100, saved_99 = frontier.cost_saved(chain, (single.cost_usd, single.score), 1.0, 0.99)
    return {
        "aiq": frontier.aiq(chain, lowest, single.cost_usd),
        "max_quality": float(chain[-1, 1]),
        "cost_saved_100": saved_100,
        "cost_saved_99": saved_99,
        "zero_router_aiq": frontier.aiq(frontier.hull(alone), lowest, single.cost_usd),
    }


def _baseline_figures(
    taught: EstimatedRows, tested: EstimatedRows, trained: Trained, setting: TrainingSettings, single: _Single
) -> dict[str, dict[str, float]]:
    """Figures of the other cascades and of routing alone, at operating points chosen by the same rule."""
    target = trained.best_single - setting.tolerance
    scorer, chain = frugal_chain(taught, setting, target)
    frugal = replay_all(frugal_plans(scorer, chain, tested), tested.logged)
    verified = verified_alone(taught, tested, target)
    alone = router_alone(taught, tested, trained.best_single, setting.tolerance)
    return {
        "frugal_chain": single.beside_climbs(frugal),
        **({} if verified is None else {"verified_drafts": single.beside(*verified)}),
        "router_alone": single.beside(*alone),
    }


def _replayed(trained: Trained, index: int, tested: EstimatedRows) -> Replayed:
    return replay_all(plans(trained, trained.rules[index], tested), tested.logged)


def _abstaining(least: float, got: Walked) -> dict[str, float]:
    """Share of test rows answered, and share of those wrong, at a threshold certified on training rows; inf: none."""
    if least == inf:
        return {"refused": 1.0, "coverage": 0.0, "risk": 0.0}
    given = got.chance >= least
    wrong = 1.0 - float(got.score[given].mean()) if given.any() else 0.0
    return {"refused": 0.0, "coverage": float(given.mean()), "risk": wrong}


def _ratio(mine: float, theirs: float) -> float:
    """NaN beside nothing: the best single model is free, or nobody measured its latency."""
    return mine / theirs if theirs > 0 else float("nan")


def evaluate(
    logged: Logged,
    *,
    splits: int = 8,
    setting: TrainingSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures over random 70/30 splits by query, equal ones on one side: mean and standard deviation over splits of
    each. Models whose refined answers stand in the data too are ranked by them. Risk-coverage curves have bootstrap
    intervals.
    """
    setting = setting or TrainingSettings()
    x = described(logged.data, shipped_featurizer())
    found, given, first = [], [], firsts(logged.data.texts)
    for seed in range(splits):
        train_rows = (np.random.default_rng(seed).random(len(x)) < 0.7)[first]
        figures, answers = evaluate_split(logged, x, train_rows, replace(setting, seed=setting.seed + seed))
        found.append(figures)
        given.append(answers)
        if progress:
            progress(seed + 1, splits)
    return {
        "n_queries": len(x),
        "dropped_queries": logged.dropped,
        "models": list(logged.data.models),
        "splits": splits,
        **_spread(found),
        "risk_coverage": risk_coverage(given, len(x), REPORTED_RISKS),
        **({"refinement": ranked(pairs)} if (pairs := pairs_in(logged.data)) else {}),
    }


def _spread(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every number, key by key."""
    table: dict[str, Any] = {}
    for key, first in found[0].items():
        values = [one[key] for one in found]
        if isinstance(first, dict):
            table[key] = _spread(values)
        elif isinstance(first, str):
            table[key] = sorted(set(values))
        else:
            table[key] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=min(1, len(values) - 1)))}
    return table
