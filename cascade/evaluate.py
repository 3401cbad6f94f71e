"""What a cascade is worth on logged answers, honestly: the operating point is chosen on training rows only.

Each split trains estimates, posterior and values on its training rows, picks one rate there by cross-fitting, and
replays the test rows through the product's own climb. Means and spread over splits are the figures to quote; the hull
through test points stands beside them for comparison with papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.baselines import frugal_chain, frugal_plans, router_alone, verified_alone
from cascade.logs import Logged
from cascade.posterior import Matrix, Rule
from cascade.posterior_fit import Walked, best_quality, cheapest_matching
from cascade.refined import pairs_in, ranked
from cascade.replay import Replayed, replay_all
from cascade.risk_coverage import CALIBRATED, RAW, Given, risk_coverage
from cascade.routing import routed_plan
from cascade.rows import EstimatedRows, TrainingSettings, estimated_parts
from cascade.train import Trained, certified_threshold, train, walked
from cascade.types import Plan
from routers import frontier
from routers.estimators.base import firsts
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


def evaluate_split(
    logged: Logged, x: Matrix, train_rows: NDArray[np.bool_], setting: TrainingSettings
) -> tuple[dict[str, Any], Given]:
    """One split's figures, relative to the single model that was best on its training rows; and the test rows' answers,
    at the cheapest matching point, with how sure they are.
    """
    taught, tested = estimated_parts(logged, x, train_rows, setting)
    trained = train(taught, setting)
    best = int(taught.scores.mean(0).argmax())
    curve = np.array([w.means() for w in walked(trained.posterior, trained.rules, tested)])
    chain = frontier.hull(curve)
    single = (float(tested.paid.answer[:, best].mean()), float(tested.scores[:, best].mean()))
    wait_s = float(np.nan_to_num(tested.logged.data.latency_s)[:, best].mean())
    found: dict[str, Any] = {
        "best_single": logged.data.models[best],
        "best_single_quality": single[1],
        "aiq": frontier.aiq(chain, float(tested.paid.answer.mean(0).min()), single[0]),
        "max_quality": float(chain[-1, 1]),
        "cost_saved_100": frontier.cost_saved(chain, single, 1.0),
        "cost_saved_99": frontier.cost_saved(chain, single, 0.99),
        "zero_router_aiq": _zero_router(tested, single[0]),
    }
    picks = {
        "matching": cheapest_matching(trained.held_out, trained.best_single, setting.tolerance),
        "best_quality": best_quality(trained.held_out, setting.most_cost * trained.single_usd),
    }
    for name, index in picks.items():
        rule = trained.rules[index]
        found[name] = _beside(replay_all(plans(trained, rule, tested), tested.logged), single, wait_s)
    matching = picks["matching"]
    got = walked(trained.posterior, [trained.rules[matching]], tested)[0]
    found["abstaining"] = {
        f"risk_{risk:.2f}": _abstaining(certified_threshold(trained, matching, risk), got) for risk in REPORTED_RISKS
    }
    target = trained.best_single - setting.tolerance
    scorer, chain_found = frugal_chain(taught, setting, target)
    frugal = replay_all(frugal_plans(scorer, chain_found, tested), tested.logged)
    found["frugal_chain"] = _beside(frugal, single, wait_s)
    verified = verified_alone(taught, tested, target)
    if verified is not None:
        cost, quality = verified
        found["verified_drafts"] = {"quality_difference": quality - single[1], "cost_ratio": _ratio(cost, single[0])}
    cost, quality = router_alone(taught, tested, trained.best_single, setting.tolerance)
    found["router_alone"] = {"quality_difference": quality - single[1], "cost_ratio": _ratio(cost, single[0])}
    raw = tested.logged.data.confidence[np.arange(len(got.model)), got.model]
    return found, Given(np.flatnonzero(~train_rows), got.score, {CALIBRATED: got.chance, RAW: raw})


def _abstaining(least: float, got: Walked) -> dict[str, float]:
    """Share of test rows answered, and share of those wrong, at a threshold certified on training rows; inf: none."""
    if least == inf:
        return {"refused": 1.0, "coverage": 0.0, "risk": 0.0}
    given = got.chance >= least
    wrong = 1.0 - float(got.score[given].mean()) if given.any() else 0.0
    return {"refused": 0.0, "coverage": float(given.mean()), "risk": wrong}


def _zero_router(part: EstimatedRows, highest: float) -> float:
    alone = np.column_stack([part.paid.answer.mean(0), part.scores.mean(0)])
    return frontier.aiq(frontier.hull(alone), float(alone[:, 0].min()), highest)


def _beside(got: Replayed, single: tuple[float, float], wait_s: float) -> dict[str, float]:
    return {
        "quality_difference": got.score - single[1],
        "cost_ratio": _ratio(got.cost_usd, single[0]),
        "latency_ratio": _ratio(got.latency_s, wait_s),
        "calls": got.calls,
    }


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
