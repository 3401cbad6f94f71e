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

from cascade.artifact import FittedCascade, TrainedCascade
from cascade.baselines import (
    SHARES,
    frugal_cascade,
    frugal_chain,
    frugal_plans,
    router_alone,
    verified_alone,
    verified_drafts,
)
from cascade.calibrate import RISKS, Refusal, abstention
from cascade.logs import Logged
from cascade.planner import Typical
from cascade.posterior import Matrix, Posterior, Prices, Rule, Scene, Space, logit, shown
from cascade.posterior_fit import (
    HIGHEST_RATE,
    Board,
    Walked,
    best_quality,
    cheapest_matching,
    fit_posterior,
    foreseeing,
    rates_for,
    solve,
    walk,
)
from cascade.refined import pairs_in, ranked
from cascade.replay import Replayed, replay_all
from cascade.risk_coverage import CALIBRATED, RAW, Given, risk_coverage
from cascade.routing import routed_plan
from cascade.types import Plan
from routers import frontier
from routers.cost import LogLinear
from routers.estimators.base import firsts, folds
from routers.features import shipped_featurizer
from routers.fit import described, fit_learned, out_of_fold, predicted
from routers.outcomes import DataError
from routers.registry import estimator_named
from routers.types import Estimate

Progress = Callable[[int, int], None]
LEAST_ROWS = 60
PLANS = ("routing", "frugal", "verify")
"""Cascades that can be trained: posterior cascade routing, FrugalGPT's chain, AutoMix's verified drafts."""
REPORTED_RISKS = (0.02, 0.05, 0.10, 0.15, 0.20)
"""Shares of wrong answers at which abstention is reported."""
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
    """Of the posterior and its rules: the more, the less pessimistic the held-out curve."""
    estimate_folds: int = 8
    """Of the router's estimates on training rows."""
    tolerance: float = 0.004
    """Quality below the best single model that still counts as matching it, on training rows."""
    most_cost: float = 1.5
    """Of the best single model's cost: what the rule of highest quality may spend."""
    rates: int = 36
    """Exchange rates tried."""
    highest_rate: float = HIGHEST_RATE
    """Of them, in quality points per cost of the dearest model."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EstimatedRows:
    """Rows of a split with their estimates."""

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


def parts(
    logged: Logged, x: Matrix, train: NDArray[np.bool_], setting: TrainingSettings
) -> tuple[EstimatedRows, EstimatedRows]:
    """Training rows with out-of-fold estimates, test rows with those of a router trained on all training rows."""
    layout = shipped_featurizer().layout
    taught, tested = logged.rows(train), logged.rows(~train)
    quality, answer = out_of_fold(
        setting.router, taught.data, x[train], layout, k=setting.estimate_folds, seed=setting.seed
    )
    learned = fit_learned(estimator_named(setting.router), taught.data, x[train], layout, setting.seed)
    test_quality, test_answer = predicted(learned, x[~train])
    z = [learned.projection.apply(rows).astype(float) for rows in (x[train], x[~train])]
    checked = LogLinear().fit(z[0], taught.data.checked_cost_usd)
    read, test_read = (checked.predict(rows) for rows in z)
    if not paying(taught):
        read, test_read = answer, test_answer
    return (
        EstimatedRows(taught, _scene(taught, quality), Prices(answer, np.maximum(read, answer))),
        EstimatedRows(tested, _scene(tested, test_quality), Prices(test_answer, np.maximum(test_read, test_answer))),
    )


def paying(logged: Logged) -> bool:
    """Reading the evidence cost something on some row."""
    return bool((logged.data.checked_cost_usd > logged.data.cost_usd * (1.0 + 1e-6)).any())


def _scene(logged: Logged, quality: Matrix) -> Scene:
    logprob = logged.data.confidence
    p = np.where(np.isnan(logprob), np.nan, np.exp(np.clip(np.nan_to_num(logprob, neginf=-700.0), -700.0, 0.0)))
    return Scene(logit(quality), shown(p), logged.agreement)


def space_of(part: EstimatedRows, setting: TrainingSettings) -> Space:
    """Openers: of the models not far below the best, those on the hull of training means first, then by quality."""
    data = part.logged.data
    quality = data.scores.mean(0)
    points = np.column_stack([data.cost_usd.mean(0), quality])
    chain = {tuple(point) for point in frontier.hull(points).tolist()}
    useful = [j for j in range(len(quality)) if quality[j] >= FAR_BELOW * quality.max()]
    useful.sort(key=lambda j: (tuple(points[j].tolist()) not in chain, -quality[j]))
    pool = tuple(sorted(useful[: setting.pool]))
    readings = (False, True) if paying(part.logged) else (True,)
    return Space(data.models, pool, min(setting.depth, len(pool)), readings)


@dataclass(frozen=True, slots=True)
class Trained:
    """A posterior and its rules at every rate, with what each achieved on held-out training rows."""

    posterior: Posterior
    rules: Sequence[Rule]
    held_out: Matrix
    """(rates, 2): mean cost and quality on training rows that the rule never saw, by cross-fitting."""
    chances: Matrix
    """(rates, n): how sure each rule was of each training row, by cross-fitting."""
    scores: Matrix
    """(rates, n): and what the answer scored."""
    costs: Matrix
    """(rates, n): and what it cost."""
    best_single: float
    """Held-out quality of the single model that was best on the other folds: what a rule is to match."""
    single_usd: float
    """And what it cost."""


def train(part: EstimatedRows, setting: TrainingSettings) -> Trained:
    space = space_of(part, setting)
    reference = float(part.logged.data.cost_usd.mean(0).max())
    rates = rates_for(reference, setting.rates, setting.highest_rate)
    n = len(part.scores)
    costs, scores, chances = (np.zeros((len(rates), n)) for _ in range(3))
    fold, single = folds(part.logged.data.texts, setting.folds, setting.seed), np.zeros((2, n))
    for k in range(setting.folds):
        taught, held = part.rows(np.flatnonzero(fold != k)), part.rows(rows := np.flatnonzero(fold == k))
        best = int(taught.scores.mean(0).argmax())
        single[:, rows] = held.scores[:, best], held.paid.answer[:, best]
        fitted = fit_posterior(space, taught.scene, taught.scores, taught.tasks)
        for index, one in enumerate(_curve(fitted, taught, held, rates)):
            costs[index, rows], scores[index, rows] = one.cost_usd, one.score
            chances[index, rows] = one.chance
    posterior = fit_posterior(space, part.scene, part.scores, part.tasks)
    board = Board.of(posterior, part.scene)
    rules = [solve(board, part.prices, rate) for rate in rates]
    held_out = np.column_stack([costs.mean(1), scores.mean(1)])
    return Trained(posterior, rules, held_out, chances, scores, costs, float(single[0].mean()), float(single[1].mean()))


def _curve(posterior: Posterior, taught: EstimatedRows, held: EstimatedRows, rates: Sequence[float]) -> list[Walked]:
    board = Board.of(posterior, taught.scene)
    return walked(posterior, [solve(board, taught.prices, rate) for rate in rates], held)


def walked(posterior: Posterior, rules: Sequence[Rule], part: EstimatedRows) -> list[Walked]:
    """The outcome of every rule on those rows."""
    board, latency_s = Board.of(posterior, part.scene), np.nan_to_num(part.logged.data.latency_s)
    return [walk(rule, board, part.prices, part.paid, part.scores, latency_s) for rule in rules]


def fitted(trained: Trained, part: EstimatedRows) -> FittedCascade:
    """What a gateway needs of it. Every third rule is kept, and those an operator is likeliest to ask for."""
    wanted = {cheapest_matching(trained.held_out, share * trained.best_single) for share in SHARES}
    best = best_quality(trained.held_out, TrainingSettings().most_cost * trained.single_usd)
    kept = sorted(wanted | {best} | set(range(0, len(trained.rules), 3)))
    board = Board.of(trained.posterior, part.scene)
    rules = [foreseeing(trained.rules[i], board, part.prices) for i in kept]
    sure = [[_least(trained, i, risk) for risk in RISKS] for i in kept]
    return FittedCascade(
        trained.posterior, rules, trained.held_out[kept], trained.best_single, part.typical, np.array(sure)
    )


def _least(trained: Trained, index: int, risk: float) -> float:
    found = abstention(trained.chances[index], trained.scores[index], risk)
    return inf if isinstance(found, Refusal) else found


def fitted_on(logged: Logged, setting: TrainingSettings, plan: str = "routing") -> TrainedCascade:
    """Trained on all rows of the log. DataError where there are too few, or no cascade is called that."""
    if plan not in PLANS:
        raise DataError(f"no cascade to train is called {plan!r}; known: {', '.join(PLANS)}")
    if len(logged.answers) < LEAST_ROWS:
        raise DataError(f"{len(logged.answers)} complete rows to train on; {LEAST_ROWS} or more are needed")
    if plan == "verify":
        return verified_drafts(logged)
    x = described(logged.data, shipped_featurizer())
    taught, _ = parts(logged, x, np.ones(len(x), bool), setting)
    return frugal_cascade(taught, setting) if plan == "frugal" else fitted(train(taught, setting), taught)


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
    taught, tested = parts(logged, x, train_rows, setting)
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
    found["abstaining"] = {f"risk_{r:.2f}": _abstaining(_least(trained, matching, r), got) for r in REPORTED_RISKS}
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
