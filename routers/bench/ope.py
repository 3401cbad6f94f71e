"""Shows the off-policy estimators against a known truth: `python -m routers.bench.ope`.

A synthetic world with m models, whose success depends on the query, is logged many times by a known policy;
another policy is then valued from each log alone. Coverage and error are over logs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np

from routers.intervals import mean_interval
from routers.ope import ESTIMATORS, Array, Rounds, cross_fitted, effective_rounds, importance

MODELS, DIMS = 5, 6
LOGS = ("uniform", "skewed", "softmax")


@dataclass(frozen=True, slots=True)
class World:
    """A population of queries with every model's chance of success, and a policy to be valued."""

    x: Array
    success: Array
    target: Array

    @property
    def truth(self) -> float:
        """Mean success of the target over the population, exactly."""
        return float((self.target * self.success).sum(1).mean())


def world(seed: int, population: int = 20_000) -> World:
    """Success is logistic in the query plus a product term, so that a linear reward model is wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(population, DIMS))
    own = rng.normal(size=(DIMS, MODELS)) * 0.6
    logit = x @ own + (x[:, :1] * x[:, 1:2]) * 0.4 + np.linspace(-0.5, 1.0, MODELS)
    success = 1.0 / (1.0 + np.exp(-logit))
    # The target is a learned router: it sees the truth through noise, and explores a little.
    seen = logit + rng.normal(size=logit.shape) * 0.7
    target = np.full_like(success, 0.05 / MODELS)
    target[np.arange(population), seen.argmax(1)] += 0.95
    return World(x, success, target)


def logging_policy(kind: str, x: Array) -> Array:
    """Probabilities (n, m): uniform; 60 % on one model; or a softmax that depends on the query."""
    n = len(x)
    if kind == "uniform":
        return np.full((n, MODELS), 1.0 / MODELS)
    if kind == "skewed":
        return np.tile(np.append(np.full(MODELS - 1, 0.1), 1.0 - 0.1 * (MODELS - 1)), (n, 1))
    worth = np.exp(x[:, :MODELS])
    return np.asarray(0.8 * worth / worth.sum(1, keepdims=True) + 0.2 / MODELS)


def one_log(made: World, kind: str, rounds: int, rng: np.random.Generator) -> tuple[Array, Rounds, Array]:
    """Vectors, the log and the target's probabilities on it."""
    rows = rng.integers(0, len(made.x), rounds)
    logged = logging_policy(kind, made.x[rows])
    action = np.asarray((logged.cumsum(1) < rng.random((rounds, 1))).sum(1).clip(max=MODELS - 1), np.intp)
    reward = (rng.random(rounds) < made.success[rows, action]).astype(np.float64)
    return made.x[rows], Rounds(action, reward, logged), made.target[rows]


def checked(kind: str, *, logs: int = 500, rounds: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Per estimator: root mean squared error, bias, and how often its 95 % interval held the truth."""
    made, rng = world(seed), np.random.default_rng(seed + 1)
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    held: dict[str, list[bool]] = {name: [] for name in ESTIMATORS}
    effective = []
    for number in range(logs):
        x, log, target = one_log(made, kind, rounds, rng)
        model = cross_fitted(x, log, seed=number)
        size = effective_rounds(importance(log, target))
        effective.append(size)
        for name, estimator in ESTIMATORS.items():
            found = mean_interval(estimator(log, target, model), effective=size)
            errors[name].append(found.value - made.truth)
            held[name].append(found.low <= made.truth <= found.high)
    return {
        name: {
            "rmse": float(np.sqrt(np.mean(np.square(errors[name])))),
            "bias": float(np.mean(errors[name])),
            "coverage": float(np.mean(held[name])),
            "effective_rounds": float(np.mean(effective)),
        }
        for name in ESTIMATORS
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.ope", description=__doc__)
    parser.add_argument("--logs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {kind: checked(kind, logs=args.logs, rounds=args.rounds, seed=args.seed) for kind in LOGS}
    if args.json:
        print(json.dumps(found))
        return
    for kind, table in found.items():
        effective = table["dr"]["effective_rounds"]
        print(f"{kind} log, {args.logs} logs of {args.rounds} rounds (worth {effective:.0f})")
        for name, row in table.items():
            print(f"  {name:12s} RMSE {row['rmse']:.4f}  bias {row['bias']:+.4f}  coverage {row['coverage']:.1%}")


if __name__ == "__main__":
    main()
