"""Shows the strategy bandit on logged outcomes replayed online: `python -m routers.bench.strategy_bandit --data DIR`.

Three ways of answering, as retrieval has none, one and many steps: one call (a cheap model's answer), two (a middling
one's) and three (the best one's). Queries come in random orders; each round an arm is chosen and only its score becomes
known. Reward is `score - price * (calls - 1)`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.bench.bandit import epsilon_greedy_reward
from routers.estimators.base import Matrix
from routers.features import shipped_featurizer
from routers.fit import described
from routers.intervals import half_width
from routers.outcomes import DataError, Outcomes, fully_priced, read_outcomes
from routers.registry import bandit_axes
from routers.strategy_bandit import StrategyBandit

NAMES = ("one", "two", "three")
PRICES = (0.02, 0.05, 0.1)


@dataclass(frozen=True, slots=True)
class Ways:
    """Score and calls of each way on each query, (n, 3)."""

    score: Matrix
    calls: Matrix

    def reward(self, price: float) -> Matrix:
        return np.asarray(self.score - price * (self.calls - 1.0))


def ways(data: Outcomes) -> Ways:
    """Models of the first quarter and of the middle by cost, and the best. DataError where there are too few."""
    order = np.argsort(np.nanmean(data.cost_usd, 0))
    trail = [int(order[len(order) // 4]), int(order[len(order) // 2]), int(np.nanmean(data.scores, 0).argmax())]
    if len(set(trail)) < len(trail):
        raise DataError("outcomes.parquet: field model: three ways of answering need more models")
    return Ways(data.scores[:, trail], np.tile(np.arange(1.0, 4.0), (len(data.scores), 1)))


def learned(x: NDArray[np.float32], found: Ways, order: Sequence[int], price: float, seed: int) -> float:
    """Total reward of the strategy bandit, which starts without knowledge."""
    rng, total = np.random.default_rng(seed), 0.0
    bandit = StrategyBandit(NAMES, bandit_axes(), price)
    for i in order:
        place = NAMES.index(bandit.choose(x[i], float(rng.random())).arm)
        bandit.learn(x[i], NAMES[place], float(found.score[i, place]), int(found.calls[i, place]))
        total += float(found.score[i, place] - price * (found.calls[i, place] - 1))
    return total


def compared(x: NDArray[np.float32], found: Ways, price: float, seeds: Sequence[int]) -> dict[str, float]:
    """Mean reward per query of every policy; `gain` is the bandit's over the best fixed way, paired over orders."""
    reward = found.reward(price)
    orders = [np.random.default_rng(seed).permutation(len(x)).tolist() for seed in seeds]
    own = np.array([learned(x, found, order, price, s) for order, s in zip(orders, seeds, strict=True)]) / len(x)
    blind = np.array([epsilon_greedy_reward(reward, order, s) for order, s in zip(orders, seeds, strict=True)]) / len(x)
    report = {f"always {name}": float(reward[:, j].mean()) for j, name in enumerate(NAMES)}
    return {
        **report,
        "epsilon-greedy": float(blind.mean()),
        "learned": float(own.mean()),
        "oracle": float(reward.max(1).mean()),
        "gain over the best fixed way": float(own.mean() - max(report.values())),
        "half width": half_width(own),
        "gain over epsilon-greedy": float((own - blind).mean()),
        "half width of that": half_width(own - blind),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.strategy_bandit", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = fully_priced(read_outcomes(args.data))
    x, found = described(data, shipped_featurizer()).astype(np.float32), ways(data)
    report = {f"{price:g}": compared(x, found, price, range(args.seeds)) for price in PRICES}
    if args.json:
        print(json.dumps(report))
        return
    for price, row in report.items():
        print(f"price of a step {price}, {len(x)} queries, {args.seeds} orders: reward per query")
        for name, value in row.items():
            print(f"  {name:30s} {value:+.4f}")


if __name__ == "__main__":
    try:
        main()
    except DataError as fault:
        raise SystemExit(str(fault)) from None
