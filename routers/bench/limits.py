"""Shows limits learnt as part of the arm: `python -m routers.bench.limits [--data DIR [--tasks NAME,...]]`.

Each round a model is chosen and with it how many tokens its answer may have; an answer that needs more is cut, paid for
and worth nothing (Bengs & Huellermeier 2020, bandits with censored consumption of resources). With `--data` answers are
drawn from logged ones, with their real lengths, scores and prices; else lengths are exponential and some answers
endless. Compared, by cumulative regret against the best fixed model and limit: one product-limit estimate per model
(`routers.censored`), and the plain extensions of UCB: every pair of model and limit an arm of its own, and models alone
at the longest limit, which can't be beaten where cutting never pays. Each has the best of the same widths of its
confidence bounds in hindsight. Means over seeds with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.censored import LimitArms
from routers.intervals import mean_and_half_width
from routers.outcomes import DataError, Outcomes, fully_priced, read_outcomes

WIDTHS = (0.1, 0.25, 0.5, 1.0)
"""Of confidence bounds."""
ENDLESS = 0.1
"""Share of drawn answers."""
WORTH = 0.2
"""Quality points that the most expensive model's mean answer costs."""
OURS = "one estimate per model"
Array = NDArray[np.float64]
Ledger = list[tuple[int, int]]
"""(model, limit) of every round."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What each model's answer to each query needs and is worth, (n, m); the price of a token, (m,)."""

    need: Array
    score: Array
    price: Array
    limits: Array

    def reward(self) -> Array:
        """Rewards of every query, model and limit, (n, m, limits)."""
        done = self.need[:, :, None] < self.limits
        used = np.minimum(self.need[:, :, None], self.limits)
        return np.asarray(np.where(done, self.score[:, :, None], 0.0) - self.price[None, :, None] * used)


def drawn_answers(seed: int = 0, n: int = 20_000) -> Answers:
    """Three models of falling length and quality; now and then an answer runs on without end."""
    rng = np.random.default_rng(seed)
    need = rng.exponential((300.0, 80.0, 40.0), (n, 3))
    need = np.where(rng.random((n, 3)) < ENDLESS, np.inf, need)
    score = (rng.random((n, 3)) < (0.95, 0.7, 0.4)).astype(float)
    return Answers(need, score, np.full(3, 0.0003), np.exp2(np.arange(7.0)) * 50.0)


def logged_answers(data: Outcomes) -> Answers:
    """Prices are what answers cost per token of theirs. DataError where lengths are not known."""
    known = np.asarray(np.isfinite(data.output_tokens).all(1))
    if not known.any():
        raise DataError("outcomes.parquet: field output_tokens: no query has one of every model")
    data = data.rows(known)
    cost, need = data.cost_usd.mean(0), np.maximum(data.output_tokens, 1.0)
    limits = np.exp2(np.arange(4.0, np.ceil(np.log2(need.max() + 1)) + 1))
    return Answers(need, data.scores, WORTH * cost / cost.max() / need.mean(0), limits)


def shared(answers: Answers, rows: Sequence[int], width: float) -> Ledger:
    """One estimate per model: an answer under one limit speaks of the others."""
    arms = [LimitArms(answers.limits, price) for price in answers.price.tolist()]
    taken: Ledger = []
    for t, row in enumerate(rows):
        values = np.array([arm.values(width, t + 2) for arm in arms])
        model, limit = divmod(int(values.argmax()), len(answers.limits))
        need, most = float(answers.need[row, model]), float(answers.limits[limit])
        arms[model].learn(limit, min(need, most), float(answers.score[row, model]) if need < most else 0.0)
        taken.append((model, limit))
    return taken


def pairs(answers: Answers, rows: Sequence[int], width: float) -> Ledger:
    """Every (model, limit) an arm of its own."""
    return _ucb(answers.reward(), rows, width, range(len(answers.limits)))


def longest(answers: Answers, rows: Sequence[int], width: float) -> Ledger:
    """Models alone, never cut before the longest limit."""
    return _ucb(answers.reward(), rows, width, [len(answers.limits) - 1])


def _ucb(reward: Array, rows: Sequence[int], width: float, limits: Sequence[int]) -> Ledger:
    part = reward[:, :, list(limits)].reshape(len(reward), -1)
    count, total, taken = np.zeros(part.shape[1]), np.zeros(part.shape[1]), []
    for t, row in enumerate(rows):
        bonus = width * sqrt(log(t + 2) / 2) / np.sqrt(np.maximum(count, 1))
        arm = int(np.where(count > 0, total / np.maximum(count, 1) + bonus, np.inf).argmax())
        count[arm] += 1
        total[arm] += part[row, arm]
        taken.append((arm // len(limits), limits[arm % len(limits)]))
    return taken


def regret(mean: Array, taken: Ledger) -> float:
    """Regret of the pairs taken against the best one, by what each is worth on average, (m, limits)."""
    return float(sum(mean.max() - mean[pair] for pair in taken))


RULES: dict[str, Callable[[Answers, Sequence[int], float], Ledger]] = {
    OURS: shared,
    "every pair an arm": pairs,
    "longest limit only": longest,
}


def compared(answers: Answers, rounds: int, seeds: int) -> dict[str, Any]:
    """Cumulative regret of each, and ours beside each plain one, paired over seeds."""
    draws = [np.random.default_rng(s).integers(len(answers.need), size=rounds).tolist() for s in range(seeds)]
    mean = answers.reward().mean(0)
    best = {}
    for name, rule in RULES.items():
        tried = {w: np.array([regret(mean, rule(answers, rows, w)) for rows in draws]) for w in WIDTHS}
        width = min(tried, key=lambda w: float(tried[w].mean()))
        best[name] = width, tried[width]
    found = {name: {"width": width, **mean_and_half_width(lost)} for name, (width, lost) in best.items()}
    beside = {name: mean_and_half_width(lost - best[OURS][1]) for name, (_, lost) in best.items() if name != OURS}
    return {
        "rounds": rounds,
        "seeds": seeds,
        "best pair": float(mean.max()),
        "best at the longest limit": float(mean[:, -1].max()),
        "drawn evenly": float(rounds * (mean.max() - mean.mean())),
        "regret": found,
        "less than": beside,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.limits", description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", default="", help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--seeds", type=int, choices=range(2, 101), metavar="2..100", default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    answers = drawn_answers() if args.data is None else logged_answers(_of(args.data, args.tasks.split(",")))
    report = compared(answers, args.rounds, args.seeds)
    print(json.dumps(report) if args.json else _told(report))


def _of(folder: Path, tasks: Sequence[str]) -> Outcomes:
    data = fully_priced(read_outcomes(folder))
    if not any(tasks):
        return data
    kept = np.array([task.split("/")[0] in tasks for task in data.tasks])
    if not kept.any():
        raise DataError(f"queries.parquet: field task: no row of {', '.join(tasks)}")
    return data.rows(kept)


def _told(report: dict[str, Any]) -> str:
    lines = [
        f"the best model and limit is worth {report['best pair']:.3f} a round, the best at the longest limit "
        f"{report['best at the longest limit']:.3f}",
        f"cumulative regret after {report['rounds']} rounds, {report['seeds']} seeds; of pairs drawn evenly "
        f"{report['drawn evenly']:.1f}",
    ]
    for name, row in report["regret"].items():
        beside = f"; ours is less by {_at(report['less than'][name])}" if name in report["less than"] else ""
        lines.append(f"  {name:24s} {_at(row):>18s}   width {row['width']:g}{beside}")
    return "\n".join(lines)


def _at(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.1f} (+-{figure['half_width']:.1f})"


if __name__ == "__main__":
    try:
        main()
    except DataError as fault:
        raise SystemExit(str(fault)) from None
