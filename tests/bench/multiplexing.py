"""Cache and model choice together, beside each alone: `python -m tests.bench.multiplexing [--json]`.

Zhu et al. 2023 (arXiv 2306.02003): what a cached answer is worth depends on which model would have to answer without
it, so that eviction and the choice of a model are one problem. In the gateway the two meet in one number. A decision's
cost is the sum over its attempts, of the small model and of the large one that had to follow; `gateway.settle.entry_of`
writes it into the entry as `cost_usd`, and `cache.eviction.LeastExpectedCost` keeps what has the highest rate times
mean cost per byte. A better choice of models thus makes easy questions' entries worth less, and room goes to the rest.

Traces are drawn; caches and learners are the gateway's own objects: `LeastExpectedCost` as in `cache.memory`, and
`routers.bandit.Bandit` upon a router that knows prices only, which learns from misses under `cost_weight`
CHEAPEST_ANSWER, where its utility orders models by expected cost. LRU and LFU are those of `cache.bench_eviction`.

- *zipf, drift*: the small model costs 1, the large one `ratio`, for each unit of size; where the small one is wrong the
  large one follows. Wrong answers are always found out, which flatters whoever tries the small model first.
- *published*: after the paper's simulation, as far as summaries of it tell: 20 questions, room for 10, each model's
  cost on each drawn from {1, ratio} evenly and apart. Nothing that is chosen follows: "small first" is always small.

"learned" chooses greedily, for every small answer tells of the small model anyway, and in the published world shares
nothing between questions, which its features only name. Rule and shrinkage were chosen among nine settings on seeds
that are not reported. "exploring" is what a route with `router = "bandit"` has: Thompson's draws and a floor.
"informed" is the best choice that features allow, "oracle" the best there is. Every figure is a mean over seeds with
its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import acos, pi, sqrt
from statistics import NormalDist, fmean
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache.bench_policies import LFU, LRU
from cache.eviction import LeastExpectedCost
from routers.bandit import GREEDY, THOMPSON, Bandit
from routers.bandit_state import Shrinkage
from routers.intervals import half_width
from routers.plugin import TYPICAL_INPUT_TOKENS, PluginRouter
from routers.projection import Projection
from routers.registry import LEAST_EXPLORATION
from routers.select import BALANCE, Exploration
from routers.types import Candidate, Knobs, Query

Array = NDArray[np.float64]

KEYS, FEATURES = 1_000, 8
BLUR = 0.5
"""Spread of what features do not tell of whether the small model suffices; what they tell has spread 1."""
KNOWABLE = 1.0 - acos(1.0 / sqrt(1.0 + BLUR**2)) / pi
"""Share of questions on which whoever knows the features' true weights foretells whether the small model suffices."""
CHEAPEST_ANSWER = 1.0 / (1.0 + sqrt(BALANCE))
"""The cost weight whose exchange rate is 1: quality q at cost c is worth q - c / reference, so that with the large
model's cost as reference the small one wins where c_small + (1 - q) * c_large < c_large."""
MODELS = ("small", "large")
WORLDS = (("zipf .6", 0.6, 1, (0.1,)), ("zipf .9", 0.9, 1, (0.02, 0.1)), ("drift x3", 0.9, 3, (0.1,)))
"""Name, power, in how many turns popularity is drawn anew, and the caches' sizes as shares of all answers' bytes."""
APART = Shrinkage(shared=2000.0, own=20.0)
"""Of slopes where one question tells nothing of another."""


@dataclass(frozen=True, slots=True)
class World:
    """Requests by key, and of each key its answer's size, and each model's cost per unit and whether it suffices."""

    keys: list[int]
    size: Array
    step: Array
    """(n, 2)"""
    right: NDArray[np.bool_]
    """(n, 2)"""
    after: float
    """Per unit, what a wrong answer costs beyond itself."""
    follows: bool
    """Whether that is a call of the large model, which is always right; else nobody knows what it is."""
    vectors: NDArray[np.float32]
    likely: Array
    """Probability of being right, as features tell, (n, 2)."""

    def paid(self) -> Array:
        """Cost per unit of an answer by the model first asked, with what has to follow, (n, 2)."""
        return np.asarray(self.step + ~self.right * self.after)

    def foretold(self) -> Array:
        """The same, as far as features tell."""
        return np.asarray(self.step + (1.0 - self.likely) * self.after, np.float64)


def follow(power: float, ratio: float, requests: int, turns: int, seed: int) -> World:
    """Zipf popularity, reshuffled at each of `turns`; the large model follows where the small one is wrong."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(KEYS, FEATURES)).astype(np.float32)
    weights = rng.normal(size=FEATURES)
    told = vectors @ (weights / np.linalg.norm(weights))
    likely = np.array([[NormalDist().cdf(each / BLUR), 1.0] for each in told.tolist()])
    suffices = told + BLUR * rng.normal(size=KEYS) > 0.0
    right = np.stack([suffices, np.ones(KEYS, bool)], 1)
    step = np.tile([1.0, ratio], (KEYS, 1))
    size = np.maximum(1, rng.lognormal(0, 1, KEYS))
    return World(_asked(rng, KEYS, power, requests, turns), size, step, right, ratio, True, vectors, likely)


def published(power: float, ratio: float, requests: int, seed: int) -> World:
    """20 questions of one size, each model's cost on each 1 or `ratio`; features tell the questions apart, no more."""
    rng = np.random.default_rng(seed)
    right = rng.random((20, 2)) < 0.5
    keys, step, names = _asked(rng, 20, power, requests, 1), np.ones((20, 2)), np.eye(20, dtype=np.float32)
    return World(keys, np.ones(20), step, right, ratio - 1.0, False, names, right.astype(np.float64))


def _asked(rng: np.random.Generator, count: int, power: float, requests: int, turns: int) -> list[int]:
    popular = 1.0 / np.arange(1, count + 1) ** power
    popular /= popular.sum()
    parts = [rng.choice(rng.permutation(count), requests // turns, p=popular) for _ in range(turns)]
    found: list[int] = np.concatenate(parts).tolist()
    return found


class Chooser(Protocol):
    """Which model is asked first, 0 or 1."""

    def pick(self, key: int) -> int: ...

    def learn(self, key: int, first: int) -> None: ...


class Fixed:
    """A pick for each key that nothing changes."""

    def __init__(self, picks: NDArray[Any]) -> None:
        self._picks: list[int] = picks.astype(int).tolist()

    def pick(self, key: int) -> int:
        return self._picks[key]

    def learn(self, key: int, first: int) -> None:
        """Nothing."""


class Learner:
    """A bandit of the gateway upon a router that knows prices only; it hears of every attempt made, and of no other."""

    def __init__(self, world: World, seed: int, **stated: Any) -> None:
        """`stated`: of the bandit."""
        mean, spread = world.vectors.mean(0), world.vectors.std(0)
        axes = Projection().restore({"mean_": mean, "axes_": np.diag(1.0 / spread).astype(np.float32)})
        self._bandit = Bandit(PluginRouter("linear", "0", "bench"), axes, **stated)
        self._world, self._rng = world, np.random.default_rng(seed)
        prices = world.step.mean(0) / TYPICAL_INPUT_TOKENS * 1e6
        self._pool = [Candidate(model, price) for model, price in zip(MODELS, prices.tolist(), strict=True)]
        self._knobs = Knobs(cost_weight=CHEAPEST_ANSWER)

    def pick(self, key: int) -> int:
        choice = self._bandit.choose(self._query(key), self._pool, self._knobs, float(self._rng.random()))
        return MODELS.index(choice.model)

    def learn(self, key: int, first: int) -> None:
        world, query = self._world, self._query(key)
        asked = (first, 1) if world.follows and not world.right[key, first] else (first,)
        for model in asked:
            self._bandit.update(
                query, self._pool, MODELS[model], float(world.right[key, model]), float(world.step[key, model])
            )

    def _query(self, key: int) -> Query:
        """Of typical length: size weighs on both models alike, and so on no choice."""
        return Query("", self._world.vectors[key], "bench", input_tokens=int(TYPICAL_INPUT_TOKENS))


def greedy(world: World, seed: int) -> Learner:
    return Learner(world, seed, rule=GREEDY, shrink=Shrinkage() if world.follows else APART)


def exploring(world: World, seed: int) -> Learner:
    return Learner(world, seed, rule=THOMPSON, exploration=Exploration(floor=LEAST_EXPLORATION))


class NoCache:
    """Holds nothing."""

    def __contains__(self, key: int) -> bool:
        return False

    def touch(self, key: int) -> None: ...

    def admit(self, key: int, cost_usd: float, size_bytes: int) -> None: ...


CACHES: dict[str, Callable[[int], Any]] = {
    "LRU": LRU,
    "LFU": LFU,
    "least expected cost": LeastExpectedCost,
}
CHOOSERS: dict[str, Callable[[World, int], Chooser]] = {
    "always large": lambda world, seed: Fixed(np.ones(len(world.size))),
    "small first": lambda world, seed: Fixed(np.zeros(len(world.size))),
    "learned": greedy,
    "informed": lambda world, seed: Fixed(world.foretold().argmin(1)),
    "oracle": lambda world, seed: Fixed(world.paid().argmin(1)),
}
PLAIN, JOINT = ("LRU", "always large"), ("least expected cost", "learned")
EXPLORING = ("least expected cost", "exploring")


@dataclass(frozen=True, slots=True)
class Played:
    """One trace, played."""

    cost: float
    """Of a request, hits included."""
    hits: float
    """Share of requests."""
    agreed: float
    """Share of misses on which the oracle would have paid as much."""


def play(world: World, cache: Any, chooser: Chooser) -> Played:
    """One trace through one cache and one chooser."""
    paid = world.paid()
    best, least = paid.tolist(), paid.min(1).tolist()
    costs, sizes = (paid * world.size[:, None]).tolist(), (1000 * world.size).astype(int).tolist()
    spent, misses, agreed = 0.0, 0, 0
    for key in world.keys:
        if key in cache:
            cache.touch(key)
            continue
        first = chooser.pick(key)
        cost = costs[key][first]
        misses += 1
        agreed += best[key][first] == least[key]
        spent += cost
        chooser.learn(key, first)
        cache.admit(key, cost, sizes[key])
    n = len(world.keys)
    return Played(spent / n, 1.0 - misses / n, agreed / max(misses, 1))


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of world, and its caches' sizes as shares of all answers' bytes."""

    name: str
    make: Callable[[int], World]
    """By seed."""
    rooms: tuple[float, ...]


def cases(requests: int) -> list[Case]:
    found = []
    for ratio in (10.0, 100.0):
        for name, power, turns, rooms in WORLDS:
            make = partial(follow, power, ratio, requests, turns)
            found.append(Case(f"{name}, {ratio:.0f}:1", make, rooms))
        found.append(Case(f"published, {ratio:.0f}:1", partial(published, 0.9, ratio, 4 * requests), (0.5,)))
    return found


Row = dict[tuple[str, str], Played]
"""By cache and chooser."""
Cell = dict[str, float]
"""Of a cache and a chooser: `cost`, `hits`, `agreed`, and `times`, how many times cheaper than LRU with always the
large model, and `beside_first`, how many times cheaper than the same cache with small first, paired by seed."""


def measured(case: Case, seeds: Sequence[int]) -> dict[str, dict[tuple[str, str], Cell]]:
    """Every cache with every chooser, on one trace for each seed, by the case's name and its room."""
    rows: dict[float, list[Row]] = {room: [] for room in case.rooms}
    for seed in seeds:
        world = case.make(seed)
        bare = {("no cache", way): play(world, NoCache(), make(world, seed)) for way, make in CHOOSERS.items()}
        for room, found in rows.items():
            found.append(bare | cached(world, room, seed))
    return {f"{case.name}, room {room:.0%}": _summed(found) for room, found in rows.items()}


def cached(world: World, room: float, seed: int) -> Row:
    """Every cache of that size with every chooser."""
    held = int(1000 * world.size.sum() * room)
    extra = {EXPLORING: play(world, LeastExpectedCost(held), exploring(world, seed))}
    return extra | {
        (cache, way): play(world, opened(held), make(world, seed))
        for cache, opened in CACHES.items()
        for way, make in CHOOSERS.items()
    }


def _summed(rows: Sequence[Row]) -> dict[tuple[str, str], Cell]:
    cells = {}
    for key in rows[0]:
        cost, half = _told([row[key].cost for row in rows])
        times, times_half = _told([row[PLAIN].cost / row[key].cost for row in rows])
        beside, beside_half = _told([row[key[0], "small first"].cost / row[key].cost for row in rows])
        cells[key] = {
            "cost": cost, "cost_half_width": half, "times": times, "times_half_width": times_half,
            "beside_first": beside, "beside_first_half_width": beside_half,
            "hits": fmean(row[key].hits for row in rows), "agreed": fmean(row[key].agreed for row in rows),
        }  # fmt: skip
    return cells


def _told(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval."""
    return fmean(values), half_width(values)


def table_of(report: dict[str, dict[tuple[str, str], Cell]]) -> Table:
    title = "times cheaper than LRU with always the large model, and what a request costs"
    caption = f"features foretell {KNOWABLE:.0%} of the small model's answers rightly (not in the published worlds)"
    table, last = Table(title=title, caption=caption), list(CACHES)[-1]
    for name in ("world", "cache"):
        table.add_column(name)
    for name in (*CHOOSERS, "exploring", "learned costs", "small first costs"):
        table.add_column(name, justify="right")
    for case, cells in report.items():
        for cache in ("no cache", *CACHES):
            row = [cells.get((cache, way)) for way in (*CHOOSERS, "exploring")]
            times = [_range(cell["times"], cell["times_half_width"]) if cell else "" for cell in row]
            own = cells[cache, "learned"]
            cost = _range(own["cost"], own["cost_half_width"])
            beside = f"{own['beside_first']:.3f} x ±{own['beside_first_half_width']:.3f}"
            table.add_row(case, cache, *times, cost, beside, end_section=cache == last)
    return table


def _range(mean: float, half: float) -> str:
    return f"{mean:.2f} ±{half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.multiplexing", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11), metavar="2..10")
    parser.add_argument("--only", default="", help="worlds whose name begins so")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    screen = Console(stderr=True, width=190)
    wanted = [case for case in cases(args.requests) if case.name.startswith(args.only)]
    listed = track(wanted, "caches and choices", console=screen)
    report = {name: cells for case in listed for name, cells in measured(case, range(args.seeds)).items()}
    if args.json:
        named = {case: {", ".join(key): cell for key, cell in cells.items()} for case, cells in report.items()}
        print(json.dumps(named))
    else:
        Console(width=190).print(table_of(report))


if __name__ == "__main__":
    main()
