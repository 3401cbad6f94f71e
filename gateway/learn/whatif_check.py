"""How often the intervals of `headgate whatif` hold the truth: `python -m gateway.learn.whatif_check`.

A synthetic route whose every figure is known is logged many times: models differ in success by query and thirtyfold in
price, costs have a long tail, and answers are scored at random, of some models more often than of others. Each log is
asked about policies near to and far from the one that made it. Coverage is over the logs that got an answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gateway.journal.record import DecisionRecord
from gateway.learn.dataset import Log
from gateway.learn.whatif import valued
from routers.ope import Array

Rows = NDArray[np.intp]

PRICES = np.array([0.1, 0.3, 1.0, 3.0]) / 1000
MODELS = tuple(f"at {price * 1000:g}" for price in PRICES)
DIMS, POPULATION = 8, 20_000
HEARD = np.array([0.8, 1.2, 1.0, 1.0])
"""How often each model's answers are scored, beside the share of all."""
ROUNDS, SHARES = (300, 1000, 5000), (0.1, 0.3, 1.0)
TOLD = ("now", "then", "difference", "snips")


@dataclass(frozen=True, slots=True)
class Environment:
    """Every query's success and mean cost by model (n, m), and policies by name: who logs, and who is asked about."""

    x: Array
    success: Array
    cost_usd: Array
    logging: Mapping[str, Array]
    asked: Mapping[str, Array]


def environment(seed: int = 0) -> Environment:
    """Success is logistic in the query plus a product term, so that a linear reward model is wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(POPULATION, DIMS))
    logit = x @ (rng.normal(size=(DIMS, len(MODELS))) * 0.5) + np.linspace(-0.3, 1.6, len(MODELS))
    logit += 0.4 * x[:, :1] * x[:, 1:2]
    expected = 1.0 / (1.0 + np.exp(-logit - rng.normal(size=logit.shape) * 0.7))

    def router(cost_weight: float, explore: float) -> Array:
        best = (expected - cost_weight * np.log(PRICES * 10_000) / 6).argmax(1)
        return np.asarray((1.0 - explore) * np.eye(len(MODELS))[best] + explore / len(MODELS))

    worth = 6 * expected - 0.5 * np.log(PRICES * 10_000)
    soft = np.exp(worth - worth.max(1, keepdims=True))
    soft = 0.9 * soft / soft.sum(1, keepdims=True) + 0.1 / len(MODELS)
    logging = {"soft": soft, "explore .1": router(0.5, 0.1), "explore .03": router(0.5, 0.03)}
    asked = {
        "near": router(0.4, 0.1), "further": router(0.1, 0.0),
        "dearest": router(-9.0, 0.0), "cheapest": router(9.0, 0.0),
    }  # fmt: skip
    return Environment(x, 1.0 / (1.0 + np.exp(-logit)), PRICES * np.exp(0.5 * x[:, 2:3]), logging, asked)


@dataclass(slots=True)
class Found:
    """Of one log's kind and one question: by figure and interval, whether it held and half its width, per log."""

    rounds: int
    share: float
    logging: str
    asked: str
    held: dict[str, list[bool]] = field(default_factory=dict)
    half_widths: dict[str, list[float]] = field(default_factory=dict)

    def coverage(self, figure: str) -> float:
        return float(np.mean(self.held[figure]))


def journal(made: Environment, logging: str, rounds: int, share: float, rng: np.random.Generator) -> tuple[Log, Rows]:
    """A log, and which of the environment's queries it is made of."""
    rows = rng.integers(0, len(made.x), rounds)
    logged = made.logging[logging][rows]
    action = np.asarray((logged.cumsum(1) < rng.random((rounds, 1))).sum(1).clip(max=len(MODELS) - 1), np.intp)
    score = (rng.random(rounds) < made.success[rows, action]).astype(np.float64)
    heard = share * HEARD[action] if share < 1 else np.ones(rounds)
    score[rng.random(rounds) >= heard] = np.nan
    cost = made.cost_usd[rows, action] * np.exp(rng.normal(size=rounds) * 0.6 - 0.18)
    records = (DecisionRecord(id="", time_s=0.0, input_tokens=1),) * rounds
    x, unknown = made.x[rows].astype(np.float32), np.full(rounds, np.nan)
    return Log(records, MODELS, x, action, logged, score, cost, unknown), rows


def checked(made: Environment, logs: int, rounds: int, share: float, *, seed: int = 0) -> Iterator[Found]:
    """Every logging policy and every question."""
    for logging, ours in made.logging.items():
        found = [Found(rounds, share, logging, asked) for asked in made.asked]
        rng = np.random.default_rng([seed, rounds, round(1000 * share)])
        for number in range(logs):
            log, rows = journal(made, logging, rounds, share, rng)
            for one in found:
                _ask(made, one, ours, log, rows, number)
        yield from found


def _ask(made: Environment, found: Found, ours: Array, log: Log, rows: Rows, seed: int) -> None:
    target = made.asked[found.asked]
    answer = valued(log, target[rows], seed=seed)
    for name, truth in (("quality", made.success), ("cost_usd", made.cost_usd)):
        if name not in answer.figures:
            continue
        now, then = float((ours * truth).sum(1).mean()), float((target * truth).sum(1).mean())
        for told, true in zip(TOLD, (now, then, then - now, then), strict=True):
            interval = getattr(answer.figures[name], told)
            found.held.setdefault(f"{name} {told}", []).append(bool(interval.low <= true <= interval.high))
            found.half_widths.setdefault(f"{name} {told}", []).append(interval.half_width)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.learn.whatif_check", description=__doc__)
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--rounds", type=int, nargs="*", default=ROUNDS)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    made = environment(asked.seed)
    for rounds in asked.rounds:
        for share in asked.shares:
            for one in checked(made, asked.logs, rounds, share, seed=asked.seed):
                _show(one, asked.logs, as_json=asked.json)


def _show(found: Found, logs: int, *, as_json: bool) -> None:
    cells = {
        figure: {
            "answered": len(held) / logs, "coverage": found.coverage(figure),
            "half_width": float(np.mean(found.half_widths[figure])),
        }
        for figure, held in found.held.items()
    }  # fmt: skip
    if as_json:
        kind = {"rounds": found.rounds, "share": found.share, "logging": found.logging, "asked": found.asked}
        print(json.dumps(kind | {"figures": cells}), flush=True)
        return
    print(f"{found.rounds} rounds, {found.share:.0%} scored, log {found.logging}, asked about {found.asked}")
    for figure, one in cells.items():
        print(f"  {figure:20s} answered {one['answered']:4.0%}  coverage {one['coverage']:6.1%}  "
              f"half width {one['half_width']:.3g}")  # fmt: skip


if __name__ == "__main__":
    main()
