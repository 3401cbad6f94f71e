"""Shows bandits on logged outcomes replayed online: `python -m routers.bench.bandit --data DIR`.

Queries come in random orders; each round a model is chosen, its score and cost become known, and nothing else. Reward
is `score - w * cost_usd`. Cumulative regret is against the best fixed model in hindsight (negative: better than it) and
against the per-query oracle. Cold: nothing is known beforehand but the texts' main axes. Priced: models' prices are
known too. Warm: the base router was trained on the rows whose split is train, and the rest is replayed; every rule on
the same rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers import prior
from routers.bandit import BOLDNESS, SQUARE_CB, THOMPSON, drawn_spread, main_axes, thompson
from routers.bandit_state import BanditState, Shrinkage, fitted
from routers.features import Featurizer, shipped_featurizer
from routers.fit import described, fit_learned, predicted
from routers.intervals import half_width
from routers.outcomes import Outcomes, read_outcomes
from routers.projection import Projection
from routers.registry import estimator_named
from routers.select import Exploration, drawn, probabilities
from routers.types import Candidate

WEIGHTS = (0.0, 20.0, 100.0)
"""Quality points per dollar."""
DIMS = 16
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Replay:
    """Rows to replay: score and cost of every model (n, m), the query on its axes (n, d + 1), and the base router's
    estimates.
    """

    score: Array
    cost: Array
    z: Array
    expected: Array
    expected_cost: Array

    def reward(self, weight: float) -> Array:
        return self.score - weight * self.cost


def cold(data: Outcomes, x: Array, featurizer: Featurizer) -> Replay:
    """All rows; the axes are made of texts alone, and nothing is expected of any model."""
    zero = np.zeros_like(data.scores)
    return Replay(data.scores, data.cost_usd, axes(x, x, featurizer), zero, zero)


def priced(data: Outcomes, x: Array, featurizer: Featurizer) -> Replay:
    """All rows, with what a gateway knows of models it has never heard an answer of: their prices (here the mean cost
    of a call), and the prior that more expensive models tend to be better.
    """
    price = data.cost_usd.mean(0)
    quality = prior.expected([Candidate(name, usd, usd) for name, usd in zip(data.models, price * 1000, strict=True)])
    same = np.ones((len(x), 1))
    return Replay(data.scores, data.cost_usd, axes(x, x, featurizer), quality * same, price * same)


def warm(data: Outcomes, x: Array, featurizer: Featurizer) -> Replay:
    """The rows that are not for training, with what a router trained on the others expects."""
    held = data.splits == "test"
    learned = fit_learned(estimator_named("linear"), data.rows(~held), x[~held], featurizer.layout)
    quality, cost = predicted(learned, x[held])
    tested = data.rows(held)
    return Replay(tested.scores, tested.cost_usd, axes(x[~held], x[held], featurizer), quality, cost)


def axes(fitted_on: Array, x: Array, featurizer: Featurizer) -> Array:
    """Rows on the main axes, each of unit spread, and 1."""
    z = main_axes(Projection().fit(fitted_on, featurizer.layout.blocks()), fitted_on, DIMS).apply(x)
    return np.concatenate([z, np.ones((len(z), 1))], 1).astype(np.float64)


def learned_reward(rows: Replay, order: NDArray[np.intp], weight: float, rule: str, seed: int) -> float:
    """Total reward of a bandit over that order."""
    rng = np.random.default_rng(seed)
    m = rows.score.shape[1]
    names = [str(j) for j in range(m)]
    state, shrink, total = BanditState.empty(names, rows.z.shape[1] - 1), Shrinkage(), 0.0
    posterior = fitted(state, shrink)
    for t, i in enumerate(order.tolist()):
        quality, sd, cost = posterior.correction(rows.z[i])
        worth = rows.expected[i] + quality - weight * (rows.expected_cost[i] + cost)
        if rule == THOMPSON:
            chances = thompson(worth, drawn_spread(sd, posterior.levels, BOLDNESS)).tolist()
        else:
            sharpness = 1000.0 * np.sqrt((t + 1) / 1000.0)
            chances = probabilities(worth.tolist(), Exploration(floor=0.01, sharpness=float(sharpness)), True)
        j = drawn(chances, float(rng.random()))
        total += float(rows.score[i, j] - weight * rows.cost[i, j])
        surprise = rows.score[i, j] - rows.expected[i, j], rows.cost[i, j] - rows.expected_cost[i, j]
        state.learn(rows.z[i], names[j], *surprise)
        if t < 20 or t % 20 == 0:
            posterior = fitted(state, shrink)
    return total


class EpsilonGreedy:
    """The baseline that reads no query: the best mean so far, or any arm with probability epsilon."""

    FIRST_EPSILON, LEAST_EPSILON = 0.5, 0.02

    def __init__(self, arms: int) -> None:
        self.sums, self.counts = np.zeros(arms), np.zeros(arms)
        self.seen = 0

    def chances(self) -> Array:
        """Probability of each arm. Epsilon falls as 1 / (1 + t / 100); untried arms come first."""
        k = len(self.sums)
        epsilon = max(self.LEAST_EPSILON, self.FIRST_EPSILON / (1.0 + self.seen / 100.0))
        found = np.full(k, epsilon / k)
        mean = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1.0), np.inf)
        found[int(mean.argmax())] += 1.0 - epsilon
        return found

    def learn(self, arm: int, reward: float) -> None:
        self.sums[arm] += reward
        self.counts[arm] += 1
        self.seen += 1


def epsilon_greedy_reward(reward: Array, order: Sequence[int], seed: int) -> float:
    """Total reward of epsilon-greedy, which reads no query, over that order of the rows of `reward` (n, arms)."""
    rng, arms, total = np.random.default_rng(seed), EpsilonGreedy(reward.shape[1]), 0.0
    for i in order:
        j = drawn(arms.chances(), float(rng.random()))
        arms.learn(j, float(reward[i, j]))
        total += float(reward[i, j])
    return total


def offline_reward(rows: Replay, weight: float) -> float:
    """Total reward of the base router as it stands, without learning."""
    pick = (rows.expected - weight * rows.expected_cost).argmax(1)
    return float(rows.reward(weight)[np.arange(len(pick)), pick].sum())


def compared(rows: Replay, weight: float, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Regret against the best fixed model, per seed (each its own order)."""
    reward = rows.reward(weight)
    best = float(reward.sum(0).max())
    found: dict[str, list[float]] = {"epsilon_greedy": [], THOMPSON: [], SQUARE_CB: []}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(reward))
        found["epsilon_greedy"].append(best - epsilon_greedy_reward(reward, order.tolist(), seed + 1000))
        for rule in (THOMPSON, SQUARE_CB):
            found[rule].append(best - learned_reward(rows, order, weight, rule, seed + 2000))
    if rows.expected.any():
        found["no_learning"] = [best - offline_reward(rows, weight)] * len(seeds)
    found["oracle"] = [best - float(reward.max(1).sum())] * len(seeds)
    return found


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Means with 95 % intervals over orders; `below_greedy` is paired, order by order."""
    report = {}
    greedy = np.array(found["epsilon_greedy"])
    for name, values in found.items():
        regret = np.array(values)
        gap = greedy - regret
        report[name] = {
            "regret": float(regret.mean()), "half_width": half_width(regret),
            "below_greedy": float(gap.mean()), "below_greedy_half_width": half_width(gap),
        }  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.bandit", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--starts", nargs="+", default=["cold", "priced", "warm"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    featurizer = shipped_featurizer()
    data = read_outcomes(args.data)
    x = described(data, featurizer).astype(np.float64)
    kinds = {"cold": cold, "priced": priced, "warm": warm}
    if not (data.splits == "test").any():
        del kinds["warm"]
    starts = {name: made(data, x, featurizer) for name, made in kinds.items() if name in args.starts}
    report = {
        start: {f"{weight:g}": summary(compared(rows, weight, range(args.seeds))) for weight in WEIGHTS}
        for start, rows in starts.items()
    }
    if args.json:
        print(json.dumps(report))
        return
    for start, rows in starts.items():
        print(
            f"{start} start, {len(rows.score)} rounds, {rows.score.shape[1]} models, {args.seeds} orders; "
            "regret against the best fixed model, and how far below epsilon-greedy's (paired)"
        )
        for weight, table in report[start].items():
            for name, row in table.items():
                print(
                    f"  w={weight:>4s} {name:15s} {row['regret']:8.1f} +- {row['half_width']:5.1f}   "
                    f"{row['below_greedy']:8.1f} +- {row['below_greedy_half_width']:5.1f}"
                )


if __name__ == "__main__":
    main()
