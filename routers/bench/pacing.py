"""Shows pacing against traffic of known worth: `python -m routers.bench.pacing`.

Requests come over days, each with models whose quality and cost are known beforehand to the simulation
only. Beside the paced spending stand the best fixed rate in hindsight (the one exchange rate that would
have kept the same total) and the same pacing without what is shown: a forecast of when in the day requests
come; where weekends differ, weekdays of their own; where the gateway restarts every six hours, its journal.
Nothing is known of the first day, so the days after it are also told alone. Means over seeds have their
95 % intervals; what the best fixed rate has more is of the same traffic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from routers.day_shape import DAY_S, HOUR_S, DayShape
from routers.intervals import mean_interval
from routers.pacing import MERGED_S, Purse, paced
from routers.select import Forecast, utilities
from routers.types import Knobs

WEEKLY = ("weekend evenings", "even weekends", "same weekends", "moving for weeks")
KINDS = ("steady", "daily", "sharp", "moving", "burst", "worthless first", "dear first", *WEEKLY, "restarts")
PEAKS = {"daily": 0.12, "sharp": 0.03, "moving": 0.06, "restarts": 0.12, "moving for weeks": 0.06}
"""Standard deviation of the time of day, in days."""
WEEKENDS = {"weekend evenings": (0.5, 0.85, 0.06), "even weekends": (1.0, 0.5, 9.0), "same weekends": (0.3, 0.6, 0.12)}
"""Requests beside a weekday's, and when in the day they come."""
WEEKS = 4
RESTARTS_S = DAY_S / 4
PRICES = np.array([0.1, 0.5, 2.0]) / 1000
BUDGET_USD = 1.0
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Traffic:
    time_s: Array
    quality: Array
    """(n, m) expected, which is what comes."""
    cost: Array


def traffic(kind: str, seed: int, days: int = 3, per_day: int = 2000) -> Traffic:
    """Stochastic (steady; a daily peak, a sharp one; weekends of their own) or made to hurt (a peak at another time
    every day; a burst; worth or price that changes after the first half).
    """
    rng = np.random.default_rng(seed)
    n = days * per_day
    time = np.sort(rng.random(n)) * days * DAY_S
    if kind in PEAKS:
        day = np.floor(time / DAY_S)
        peak = 0.2 + 0.6 * rng.random(days)[day.astype(int)] if kind.startswith("moving") else 0.6
        time = np.sort((day + np.clip(rng.normal(peak, PEAKS[kind], n), 0, 0.999)) * DAY_S)
    if kind in WEEKENDS:
        time = weekly(rng, WEEKENDS[kind], days, per_day)
        n = len(time)
    if kind == "burst":
        time = np.sort(np.where(rng.random(n) < 0.6, 1.2 * DAY_S + rng.random(n) * 3600, time))
    hard = rng.random(n)
    late = np.arange(n) > n / 2
    if kind == "worthless first":
        hard = np.where(late, hard, 0.15 * hard)
    quality = np.clip(np.array([0.95, 0.97, 1.0]) - hard[:, None] * np.array([0.8, 0.45, 0.08]), 0, 1)
    cost = PRICES * rng.lognormal(0.0, 0.5, (n, 1))
    if kind == "dear first":
        cost = cost * np.where(late, 1.0, 4.0)[:, None]
    return Traffic(time, quality, cost)


def weekly(rng: np.random.Generator, weekend: tuple[float, float, float], days: int, per_day: int) -> Array:
    """A peak at noon on five days of seven."""
    share, peak, spread = weekend
    is_weekend = np.arange(days) % 7 >= 5
    day = np.repeat(np.arange(days), rng.poisson(np.where(is_weekend, share, 1.0) * per_day))
    weekday = 0.6 if peak == 0.6 else 0.5
    at = np.where(is_weekend[day], rng.normal(peak, spread, len(day)), rng.normal(weekday, 0.1, len(day)))
    return np.asarray(np.sort((day + at % 1.0) * DAY_S))


class EvenDay(DayShape):
    """Learns nothing: expects the same traffic at all hours."""

    def __init__(self, hours: Mapping[int, float] | None = None, now_s: float = 0.0) -> None:
        super().__init__()


class EveryDay(DayShape):
    """Takes weekdays for days like the others."""

    trust = 0.0


def spent_by_pacing(
    came: Traffic, budget: float = BUDGET_USD, learnt: type[DayShape] = DayShape, *,
    restarts_s: float = inf, recalls: bool = True,
) -> tuple[Array, Array]:  # fmt: skip
    """Quality and dollars of each request; what the purse can't pay gets no answer. `restarts_s`: how often another
    purse takes over, with or without what happened before.
    """
    purse, restart_s, seen_s, midnight_s = Purse.new(budget, 0.0), restarts_s, 0.0, DAY_S
    reference = float(PRICES.max())
    quality, cost = np.zeros(len(came.time_s)), np.zeros(len(came.time_s))
    nothing = [float("nan")] * 3
    for i, now_s in enumerate(came.time_s.tolist()):
        if now_s >= midnight_s:
            purse.refill(midnight_s := now_s // DAY_S * DAY_S)
            purse.shape = learnt(by_hour(came.time_s[:i], seen_s), midnight_s)
            midnight_s += DAY_S
        if now_s >= restart_s:
            restart_s += restarts_s
            purse = Purse.new(budget, now_s, purse.shape if recalls else None)
            if recalls:
                purse.recall(last_day(came.time_s[:i], cost[:i], now_s), now_s)
            else:
                seen_s = now_s
        knobs = paced(Knobs(), purse, now_s)
        affordable = came.cost[i] <= (knobs.max_cost_usd or 0.0)
        if not affordable.any():
            continue
        expected = came.quality[i].tolist(), nothing, came.cost[i].tolist()
        forecast = Forecast(("a", "b", "c"), *expected, nothing, nothing)
        worth = np.where(affordable, utilities(forecast, Knobs(cost_weight=knobs.cost_weight), reference), -np.inf)
        pick = int(worth.argmax())
        quality[i], cost[i] = came.quality[i, pick], came.cost[i, pick]
        purse.spend(cost[i])
    return quality, cost


def by_hour(time_s: Array, since_s: float) -> dict[int, float]:
    requests = np.bincount((time_s // HOUR_S).astype(int))
    return {hour: float(requests[hour]) for hour in range(int(since_s // HOUR_S), len(requests))}


def last_day(time_s: Array, cost: Array, now_s: float) -> list[tuple[float, float]]:
    """What was spent in the last 24 hours, by minute, as the journal has it."""
    since = int(np.searchsorted(time_s, now_s - DAY_S))
    minutes, places = np.unique(time_s[since:] // MERGED_S, return_inverse=True)
    usd = np.bincount(places, cost[since:], len(minutes))
    return [(float(minute + 1) * MERGED_S, float(one)) for minute, one in zip(minutes, usd, strict=True)]


def best_fixed_rate(came: Traffic, daily_usd: float) -> float:
    """Mean quality of the best single exchange rate that keeps the budget in every 24 hours, chosen with
    all traffic known beforehand.
    """
    rows = np.arange(len(came.time_s))
    best = 0.0
    for rate in np.logspace(-2, 7, 200):
        pick = (came.quality - rate * came.cost).argmax(1)
        if worst_day(came.time_s, came.cost[rows, pick]) <= daily_usd:
            best = max(best, float(came.quality[rows, pick].mean()))
    return best


def worst_day(time_s: Array, cost: Array) -> float:
    """The most that was spent in any 24 hours."""
    total = np.concatenate([[0.0], np.cumsum(cost)])
    ends = np.searchsorted(time_s, time_s + DAY_S, side="left")
    return float((total[ends] - total[:-1]).max())


def checked(kind: str, seed: int) -> dict[str, float]:
    is_long = kind in WEEKLY
    came = traffic(kind, seed, days=7 * WEEKS, per_day=600) if is_long else traffic(kind, seed)
    budget = 0.3 * BUDGET_USD if is_long else BUDGET_USD
    restarts_s = RESTARTS_S if kind == "restarts" else inf
    quality, cost = spent_by_pacing(came, budget, restarts_s=restarts_s)
    without = EveryDay if is_long else DayShape if kind == "restarts" else EvenDay
    blind, blind_cost = spent_by_pacing(came, budget, without, restarts_s=restarts_s, recalls=False)
    later = came.time_s >= DAY_S
    days = float(came.time_s[-1] - came.time_s[0]) / DAY_S
    return {
        "worst_day_share": worst_day(came.time_s, cost) / budget,
        "spent_share": float(cost.sum()) / (budget * days),
        "quality": float(quality.mean()),
        "later_quality": float(quality[later].mean()),
        "gain": float((quality - blind).mean()),
        "worst_day_share_without": worst_day(came.time_s, blind_cost) / budget,
        "answered": float((cost > 0).mean()),
        "best_fixed_rate": best_fixed_rate(came, budget),
        "always_dear": float(came.cost[:, 2].sum()) / (budget * days),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.pacing", description=__doc__)
    parser.add_argument("--seeds", type=int, choices=range(2, 101), metavar="2..100", default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {kind: [checked(kind, seed) for seed in range(args.seeds)] for kind in KINDS}
    if args.json:
        print(json.dumps(found))
        return
    for kind, rows in found.items():
        print(line(kind, rows))


def line(kind: str, rows: Sequence[Mapping[str, float]]) -> str:
    """What the seeds of one kind of traffic told."""
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    worst = max(row["worst_day_share"] for row in rows)
    by = "weekdays" if kind in WEEKLY else "the journal" if kind == "restarts" else "forecasting"
    quality, later, gain, best = (
        _with_reach([row[name] for row in rows], sign)
        for name, sign in (("quality", ""), ("later_quality", ""), ("gain", "+"), ("best_fixed_rate", ""))
    )
    short = _with_reach([row["best_fixed_rate"] - row["quality"] for row in rows])
    return (
        f"{kind:16s} worst 24 h {worst:.1%} of the budget, spent {mean['spent_share']:.0%} in all "
        f"(always dear would take {mean['always_dear']:.0%}); quality {quality} "
        f"({later} after the first day), by {by} {gain}, best fixed rate {best}, "
        f"{short} more, answered {mean['answered']:.1%}"
    )


def _with_reach(values: Sequence[float], sign: str = "") -> str:
    found = mean_interval(values)
    return f"{found.value:{sign}.4f} (+-{found.half_width:.4f})"


if __name__ == "__main__":
    main()
