"""Which models of a fleet to keep loaded: the few that together serve best within limits of latency, energy and memory.

The gate, which estimates each model's quality on a query, is trained once. A query goes to the loaded model of the
highest utility, so a subset is evaluated by reading columns of the estimates, and nothing is fitted again when limits
change (MoE^2, Jin et al. 2025, arXiv:2501.09410: gate parameters stay optimal across expert selections). The worth of a
subset is the mean over queries of its best model's utility, which is facility location: monotone and submodular
(Nemhauser, Wolsey & Fisher 1978).

Limits on a mean per query (seconds, joules, dollars) enter the utility at a price that is found by bisection. Nothing
is loaded or measured here. Gaps in the estimates are refused; the caller must fill them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

EXACT_MOST = 16
"""The most models of a fleet that is searched exhaustively."""
TOLERANCE = 1e-6
"""Relative excess over a limit that is ignored as rounding."""
ROUNDS = 8
"""The most rounds in which the prices of one subset are used to choose a better one."""
FIRST_PRICE, MOST_PRICE = 1e-2, 1e7
"""Price of spending one whole limit, in units of the utility's range."""
PRECISION = 1e-4
"""Relative precision of a price."""

Models = tuple[int, ...]


class NoSubset(ValueError):
    """No subset of the models keeps the limits."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Estimates for n queries on m models. Raises ValueError where a number is missing or a shape differs."""

    quality: Matrix
    """(n, m), finite."""
    spends: Mapping[str, Matrix] = field(default_factory=dict)
    """Expected spends by name (seconds, joules, dollars), (n, m) each, finite and not negative."""
    memory: NDArray[np.float64] | None = None
    """(m,), in any one unit; None where memory does not matter."""

    def __post_init__(self) -> None:
        if self.quality.ndim != 2 or 0 in self.quality.shape:
            raise ValueError(f"quality of shape {self.quality.shape}: at least one query and one model are needed")
        _require("quality", self.quality, self.quality.shape, -math.inf)
        for name, spend in self.spends.items():
            _require(name, spend, self.quality.shape, 0.0)
        if self.memory is not None:
            _require("memory", self.memory, self.quality.shape[1:], 0.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a subset. Raises ValueError where a limit is not positive."""

    models: int
    """The most models loaded at once."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Largest mean per query of a spend, by its name."""
    memory: float = math.inf
    """The most memory of all loaded models together."""

    def __post_init__(self) -> None:
        if self.models < 1:
            raise ValueError(f"limit of {self.models} models: at least one must be loaded")
        for name, limit in (*self.means.items(), ("memory", self.memory)):
            if not limit > 0.0:
                raise ValueError(f"limit of {name}: {limit} is not positive")


@dataclass(frozen=True, slots=True)
class SubsetChoice:
    """The models to load and the gate's prices for them."""

    models: Models
    """Columns of the models, ascending."""
    worth: float
    """Mean quality over queries, each at its model."""
    spent: dict[str, float]
    """Mean per query of every limited spend."""
    prices: dict[str, float]
    """Quality given up for one unit of a spend."""


def _require(name: str, values: NDArray[np.float64], shape: tuple[int, ...], least: float) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} of shape {values.shape}, but the quality's asks for {shape}")
    if not (np.isfinite(values) & (values >= least)).all():
        raise ValueError(f"{name}: every number must be known" + (" and not negative" if least == 0.0 else ""))


def kept(fleet: Fleet, limits: Limits) -> SubsetChoice:
    """The best subset where the fleet is small, a good one where it isn't. NoSubset where none keeps the limits."""
    return exact(fleet, limits) if fleet.quality.shape[1] <= EXACT_MOST else greedy(fleet, limits)


def greedy(fleet: Fleet, limits: Limits) -> SubsetChoice:
    """Lazy greedy, then swaps. Under a limit of models alone it is worth at least 1 - 1/e of the best subset
    (Nemhauser et al. 1978), under one of memory alone half of that (Leskovec et al. 2007, theorem 2).

    NoSubset where none keeps the limits, or where the fleet is too large to be searched and none was found.
    """
    search = _Search(fleet, limits)
    found = search.approximate()
    if found is None and fleet.quality.shape[1] <= EXACT_MOST:
        found = search.exhaustive(None)
    return search.required(found)


def exact(fleet: Fleet, limits: Limits) -> SubsetChoice:
    """The best subset, by branch and bound. ValueError for more than EXACT_MOST models; NoSubset where none fits."""
    if fleet.quality.shape[1] > EXACT_MOST:
        raise ValueError(f"{fleet.quality.shape[1]} models: at most {EXACT_MOST} are searched through; ask greedy")
    search = _Search(fleet, limits)
    return search.required(search.exhaustive(search.approximate()))


def judged(fleet: Fleet, limits: Limits, models: Sequence[int]) -> SubsetChoice | None:
    """What that subset is worth at its own prices; None where it can't keep the limits."""
    search, subset = _Search(fleet, limits), tuple(sorted(set(models)))
    return search.judge(subset) if subset and search.fits(subset) else None


def gated(choice: SubsetChoice, quality: Matrix, spends: Mapping[str, Matrix]) -> NDArray[np.intp]:
    """The column of the model that each query goes to, (n,): the loaded model of the highest utility."""
    columns = list(choice.models)
    utility = quality[:, columns] - sum(price * spends[name][:, columns] for name, price in choice.prices.items())
    return np.asarray(np.array(columns, np.intp)[utility.argmax(1)])


def lazy_greedy(utility: Matrix, limits: Limits, memory: NDArray[np.float64], per_byte: bool) -> Models:
    """Columns by their gain, or by their gain per unit of memory, while they fit. A gain only shrinks as others are
    chosen, so a stale one is an upper bound and most are never worked out again (Minoux 1978).
    """
    weight = np.maximum(memory, 1e-12) if per_byte else np.ones(len(memory))
    covered, left, chosen = utility.min(1), limits.memory, list[int]()
    heap = [(-math.inf, j, -1) for j in range(utility.shape[1])]
    while heap and len(chosen) < limits.models:
        key, j, seen = heapq.heappop(heap)
        if memory[j] > left:
            continue
        if seen < len(chosen):
            gain = float(np.maximum(utility[:, j] - covered, 0.0).mean())
            heapq.heappush(heap, (-gain / weight[j], j, len(chosen)))
        elif chosen and key >= 0.0:
            break
        else:
            chosen.append(j)
            covered, left = np.maximum(covered, utility[:, j]), left - float(memory[j])
    return tuple(sorted(chosen))


def settled_prices(utility: Matrix, spends: Matrix) -> list[float] | None:
    """The lowest price of each spend, (c, n, m) in parts of its limit, at which choosing by utility keeps it within one
    on average: one bisection inside the other, for the dual is convex in each. None where no price does.
    """
    if not len(spends):
        return []
    scale = float(np.ptp(utility)) or 1.0
    low, high, price, best = 0.0, math.inf, 0.0, None
    while high - low > PRECISION * max(low, FIRST_PRICE * scale):
        rest = settled_prices(utility - price * spends[0], spends[1:])
        if rest is None:
            return best
        if _spent(utility, spends, [price, *rest])[0] <= 1.0 + TOLERANCE:
            best, high = [price, *rest], price
        elif price >= MOST_PRICE * scale:
            return None
        else:
            low = price
        price = _next_price(low, high, scale)
    return best


def _next_price(low: float, high: float, scale: float) -> float:
    if math.isinf(high):
        return min(max(10.0 * low, FIRST_PRICE * scale), MOST_PRICE * scale)
    return math.sqrt(low * high) if low > 0.0 else high / 2.0


def _priced(utility: Matrix, spends: Matrix, prices: Sequence[float]) -> Matrix:
    return np.asarray(utility - np.tensordot(np.asarray(prices), spends, 1)) if len(spends) else utility


def _spent(utility: Matrix, spends: Matrix, prices: Sequence[float]) -> NDArray[np.float64]:
    """Mean of each spend when queries go where the priced utility is highest."""
    pick = _priced(utility, spends, prices).argmax(1)
    return np.asarray(spends[:, np.arange(len(pick)), pick].mean(1))


class _Search:
    """One fleet and its limits; subsets already judged are remembered."""

    def __init__(self, fleet: Fleet, limits: Limits) -> None:
        for name in limits.means:
            if name not in fleet.spends:
                raise ValueError(f"limit of {name}: the fleet's spends are {', '.join(fleet.spends) or 'none'}")
        n, m = fleet.quality.shape
        if limits.memory < math.inf and fleet.memory is None:
            raise ValueError("limit of memory: the fleet does not say what its models need")
        self.limits, self.names, self.quality = limits, tuple(limits.means), fleet.quality
        self.memory = np.zeros(m) if fleet.memory is None else fleet.memory
        self.parts = np.array([fleet.spends[c] / limits.means[c] for c in self.names]).reshape(-1, n, m)
        self.known: dict[Models, SubsetChoice | None] = {}

    def fits(self, models: Models) -> bool:
        return len(models) <= self.limits.models and float(self.memory[list(models)].sum()) <= self.limits.memory

    def utility(self, prices: Sequence[float]) -> Matrix:
        return _priced(self.quality, self.parts, prices)

    def parts_of(self, choice: SubsetChoice) -> list[float]:
        """Its prices, of spending one whole limit."""
        return [choice.prices[name] * self.limits.means[name] for name in self.names]

    def judge(self, models: Models) -> SubsetChoice | None:
        """The subset at its own prices; None where it can't keep the limits."""
        if models not in self.known:
            self.known[models] = self._judged(models)
        return self.known[models]

    def _judged(self, models: Models) -> SubsetChoice | None:
        quality, parts = self.quality[:, models], self.parts[:, :, models]
        prices = settled_prices(quality, parts)
        if prices is None:
            return None
        pick = _priced(quality, parts, prices).argmax(1)
        worth = float(quality[np.arange(len(pick)), pick].mean())
        limit = self.limits.means.values()
        spent = [part * most for part, most in zip(_spent(quality, parts, prices).tolist(), limit, strict=True)]
        each = [price / most for price, most in zip(prices, limit, strict=True)]
        names = self.names
        return SubsetChoice(models, worth, dict(zip(names, spent, strict=True)), dict(zip(names, each, strict=True)))

    def required(self, found: SubsetChoice | None) -> SubsetChoice:
        if found is not None:
            return found
        asked = [f"{name} {most:g}" for name, most in self.limits.means.items()]
        asked += [f"memory {self.limits.memory:g}"] if self.limits.memory < math.inf else []
        many, most = len(self.memory), self.limits.models
        raise NoSubset(f"no subset of {most} or fewer of {many} models keeps within {', '.join(asked)}")

    def approximate(self) -> SubsetChoice | None:
        """Greedy at the prices of the whole fleet, then again at those of what was found; swaps at the end."""
        prices, best = settled_prices(self.quality, self.parts), None
        if prices is None:
            return None
        for _ in range(ROUNDS):
            utility = self.utility(prices)
            tried = {lazy_greedy(utility, self.limits, self.memory, each) for each in (False, True)}
            found = _best([self.judge(models) for models in sorted(tried) if models])
            if found is None:
                prices = [max(10.0 * price, FIRST_PRICE) for price in prices]
            elif best is not None and found.worth <= best.worth:
                break
            else:
                best, prices = found, self.parts_of(found)
        return best and self.swapped(best)

    def swapped(self, choice: SubsetChoice) -> SubsetChoice:
        """The subset with a model added, or one put in another's place, as long as that is worth more."""
        while True:
            utility = self.utility(self.parts_of(choice))
            bound = choice.worth - (1.0 + TOLERANCE) * sum(self.parts_of(choice))
            near = [models for models in self._near(choice.models) if utility[:, models].max(1).mean() > bound]
            better = _best([self.judge(models) for models in near])
            if better is None or better.worth <= choice.worth + 1e-12:
                return choice
            choice = better

    def _near(self, models: Models) -> Iterator[Models]:
        others = [j for j in range(len(self.memory)) if j not in models]
        for left_out in (None, *models):
            stay = [j for j in models if j != left_out]
            for j in others:
                subset = tuple(sorted([*stay, j]))
                if self.fits(subset):
                    yield subset

    def exhaustive(self, best: SubsetChoice | None) -> SubsetChoice | None:
        """The best of all subsets. At any prices a subset is worth at most its priced utility and the price of the
        limits together (weak duality), and what is added to it at most the sum of the largest single gains.
        """
        prices = settled_prices(self.quality, self.parts) if best is None else self.parts_of(best)
        if prices is None:
            return None
        utility, paid = self.utility(prices), (1.0 + TOLERANCE) * sum(prices)
        open_: list[tuple[Models, list[int]]] = [((), list(range(len(self.memory))))]
        while open_:
            models, rest = open_.pop()
            covered = utility[:, models].max(1) if models else utility.min(1)
            if models and (best is None or float(covered.mean()) + paid > best.worth):
                best = _best([best, self.judge(models)])
            gains = np.maximum(utility[:, rest] - covered[:, None], 0.0).mean(0)
            order = np.argsort(-gains, kind="stable")
            bound = float(covered.mean()) + float(gains[order[: self.limits.models - len(models)]].sum()) + paid
            if best is not None and bound <= best.worth:
                continue
            for place in reversed(range(len(rest))):  # the largest gain is taken off the pile first
                more = (*models, rest[order[place]])
                if self.fits(more):
                    open_.append((tuple(sorted(more)), [rest[i] for i in order[place + 1 :].tolist()]))
        return best


def _best(choices: Sequence[SubsetChoice | None]) -> SubsetChoice | None:
    """The subset of the highest worth; the first of equals."""
    return max((c for c in choices if c is not None), key=lambda choice: choice.worth, default=None)
