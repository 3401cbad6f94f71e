"""Off-policy evaluation: what a policy would have been worth, from decisions that another one made.

Each estimator returns one value per logged round (Saito et al. 2021, obp), so that mean, interval and paired
comparison come for free. Self-normalised estimators return linearised values: their mean is the estimate and
their spread its delta-method error. Where the log cannot tell, the answer is a `Refusal` with what it would
take, never a number. Rewards may be any quantity: quality, dollars, seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from routers.estimators.linear import ridge
from routers.intervals import Interval, skewed_interval

Array = NDArray[np.float64]
MIN_ESS = 50.0
"""With fewer effective rounds no normal interval is shown."""
NOISE_COUNTS = 5.0
"""Number of answers that the prior of a model's reward noise counts as."""
MAX_UNSUPPORTED = 0.02
"""The largest share of the policy's decisions that the log could never have made; beyond it the policy can't be judged.
"""


class LogError(ValueError):
    """The logged rounds can't be evaluated; the message names the field and the round."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """n logged decisions over m models."""

    action: NDArray[np.intp]
    """(n,) the model that answered."""
    reward: Array
    """(n,) the reward of that answer."""
    logged: Array
    """(n, m) probabilities under the policy that decided; zero where a model was not eligible."""
    known: NDArray[np.bool_] | None = None
    """(n,) whether the reward is known; None where all are. `reward` holds any number where it is not."""

    def __post_init__(self) -> None:
        n, m = self.logged.shape
        if self.action.shape != (n,) or self.reward.shape != (n,):
            raise LogError(f"{n} x {m} probabilities, {len(self.action)} actions, {len(self.reward)} rewards")
        if n == 0:
            raise LogError("no logged round")
        _refuse_rows("action", (self.action < 0) | (self.action >= m), self.action)
        _refuse_rows("reward", ~np.isfinite(self.reward), self.reward)
        _refuse_rows("propensity", ~((self.propensity > 0) & (self.propensity <= 1 + 1e-9)), self.propensity)

    @property
    def propensity(self) -> Array:
        return self.logged[np.arange(len(self.action)), self.action]

    @property
    def known_share(self) -> Array:
        """(m,) share of each model's rounds whose reward is known; 1 for a model that answered none."""
        if self.known is None:
            return np.ones(self.logged.shape[1])
        answered = np.bincount(self.action, minlength=self.logged.shape[1])
        known = np.bincount(self.action, self.known, self.logged.shape[1])
        return np.where(answered > 0, known / np.maximum(answered, 1), 1.0)

    @property
    def known_rounds(self) -> int:
        """Number of rounds whose reward is known."""
        return len(self.action) if self.known is None else int(self.known.sum())

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rounds:
        known = None if self.known is None else self.known[rows]
        return Rounds(self.action[rows], self.reward[rows], self.logged[rows], known)


def _refuse_rows(name: str, bad: NDArray[np.bool_], values: NDArray[np.generic]) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise LogError(f"round {row}: {name} {values[row]} is out of range")


def importance(rounds: Rounds, target: Array) -> Array:
    """Importance weights, (n,): target probability over logged probability of each logged decision. Where some rewards
    are unknown, their weight is zero and the known ones of the same model are weighted up, since rewards are not known
    equally often for all models.
    """
    weights = np.asarray(target[np.arange(len(rounds.action)), rounds.action] / rounds.propensity)
    if rounds.known is None:
        return weights
    return np.where(rounds.known, weights / np.maximum(rounds.known_share, 1e-12)[rounds.action], 0.0)


def effective_rounds(weights: Array) -> float:
    """Kish's effective sample size of weighted rounds."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _per_chance(rounds: Rounds, change: Array, power: int = 1) -> Array:
    """(n, m) contribution of each possible choice to the expected second moment (fourth with `power` 2) of the weights
    `change` / chance, where the chance is that the choice is made and its reward becomes known. It depends on the
    propensities and not on what was drawn.
    """
    chance = rounds.logged * rounds.known_share
    ratio = change / np.where(chance > 0, chance, np.inf)
    return np.asarray(chance * ratio ** (2 * power))


# -- estimators: per-round values, each given (rounds, target (n, m), reward model's predictions (n, m))


def ips(rounds: Rounds, target: Array, model: Array) -> Array:
    """Inverse propensity scoring: unbiased, of high variance, and not invariant to shifts of the reward."""
    return importance(rounds, target) * rounds.reward


def clipped_ips(rounds: Rounds, target: Array, model: Array) -> Array:
    """Inverse propensity scoring with weights clipped at the square root of n (Ionides 2008): biased toward zero, of
    bounded variance.
    """
    return np.minimum(importance(rounds, target), sqrt(len(rounds.reward))) * rounds.reward


def snips(rounds: Rounds, target: Array, model: Array) -> Array:
    """Self-normalised inverse propensity (Swaminathan & Joachims 2015)."""
    weights = importance(rounds, target)
    return _self_normalised(weights, rounds.reward)


def direct(rounds: Rounds, target: Array, model: Array) -> Array:
    """Direct method: the reward model alone, of low variance and as biased as the model."""
    return np.asarray((target * model).sum(1))


def doubly_robust(rounds: Rounds, target: Array, model: Array) -> Array:
    """Doubly robust: the reward model plus the weighted residuals of the log (Dudik et al. 2011)."""
    return direct(rounds, target, model) + importance(rounds, target) * _surprise(rounds, model)


def self_normalised_dr(rounds: Rounds, target: Array, model: Array) -> Array:
    """Doubly robust with the correction divided by the mean weight."""
    correction = _self_normalised(importance(rounds, target), _surprise(rounds, model))
    return direct(rounds, target, model) + correction


def switch_dr(rounds: Rounds, target: Array, model: Array, limit: float | None = None) -> Array:
    """Corrects only where the weight is at most `limit` (Wang et al. 2017); None: the limit whose squared
    bias bound and variance together are least.
    """
    weights, surprise = importance(rounds, target), _surprise(rounds, model)
    base = direct(rounds, target, model)
    if limit is None:
        limit = _switch_limit(weights, surprise, base)
    return np.asarray(base + np.where(weights <= limit, weights * surprise, 0.0))


ESTIMATORS: Mapping[str, Callable[[Rounds, Array, Array], Array]] = {
    "ips": ips, "clipped_ips": clipped_ips, "snips": snips, "dm": direct,
    "dr": doubly_robust, "sndr": self_normalised_dr, "switch_dr": switch_dr,
}  # fmt: skip


def _surprise(rounds: Rounds, model: Array) -> Array:
    """Reward beyond what the model expected of the logged decision."""
    return np.asarray(rounds.reward - model[np.arange(len(rounds.action)), rounds.action])


def _self_normalised(weights: Array, values: Array) -> Array:
    """Per-round values of a ratio of means, linearised; each residual is enlarged by its leverage, as a jackknife
    would.
    """
    total = float(weights.sum())
    if total <= 0:
        return np.zeros_like(values)
    ratio = float(weights @ values) / total
    parts = weights * (values - ratio) / (1.0 - np.minimum(weights / total, 0.5))
    return np.asarray(ratio + (parts - parts.mean()) * len(weights) / total)


def _switch_limit(weights: Array, surprise: Array, base: Array) -> float:
    limits = np.unique(np.quantile(weights, [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0]))
    scale = float(np.abs(surprise).mean())

    def badness(limit: float) -> float:
        kept = np.where(weights <= limit, weights * surprise, 0.0)
        bias = float(np.where(weights > limit, weights, 0.0).mean()) * scale
        return float((base + kept).var()) / len(weights) + bias * bias

    return float(min(limits, key=badness))


# -- the reward model


def _fit_reward(x: Array, action: NDArray[np.intp], reward: Array, models: int, penalty: float) -> Array:
    """Weights (d + 1, m), the last row the intercept, from the logged cells alone: ridge in two parts, a query's level
    and each model's deviation from it. A model without any cell stays at the level of all.
    """
    counts = np.bincount(action, minlength=models)
    overall = float(reward.mean())
    base = (np.bincount(action, reward, models) + 2.0 * overall) / (counts + 2.0)
    centre = x.mean(0)
    z = x - centre
    shared = ridge(z, reward - base[action], penalty)
    rest = reward - base[action] - z @ shared
    weights = np.tile(np.append(shared, -centre @ shared)[:, None], models)
    weights[-1] += base
    for model in np.flatnonzero(counts):
        rows = action == model
        own = ridge(z[rows], rest[rows], 2.0 * penalty)
        weights[:-1, model] += own
        weights[-1, model] -= centre @ own
    return weights


def cross_fitted(x: Array, rounds: Rounds, *, k: int = 5, seed: int = 0, penalty: float = 10.0) -> Array:
    """Predicted rewards (n, m), those of each round by a model that did not see it."""
    n, m = rounds.logged.shape
    fold = np.random.default_rng(seed).permutation(np.arange(n) % min(k, n))
    predicted = np.full((n, m), float(np.mean(rounds.reward, where=True if rounds.known is None else rounds.known)))
    for part in range(min(k, n)):
        held = fold == part
        taught = ~held if rounds.known is None else ~held & rounds.known
        if taught.any():
            weights = _fit_reward(x[taught], rounds.action[taught], rounds.reward[taught], m, penalty)
            predicted[held] = x[held] @ weights[:-1] + weights[-1]
    return predicted


# -- intervals


def _noise(rounds: Rounds, model: Array) -> Array:
    """(m,) mean squared residual of the reward model for each model's answers. With few answers it is shrunk toward the
    share of the squared reward that is missed over all models: that five answers of five were right doesn't prove that
    all will be.
    """
    m = rounds.logged.shape[1]
    known = np.ones(len(rounds.action), bool) if rounds.known is None else rounds.known
    action, reward, missed = rounds.action[known], rounds.reward[known], _surprise(rounds, model)[known]
    share = float(missed @ missed) / max(float(reward @ reward), 1e-300)
    stated = NOISE_COUNTS * share * (model**2).mean(0)
    found = (np.bincount(action, missed**2, m) + stated) / (np.bincount(action, minlength=m) + NOISE_COUNTS)
    return np.asarray(found)


def promised(rounds: Rounds, change: Array, noise: Array) -> tuple[float, float]:
    """Variance of the mean correction under weights `change` / propensity (n, m), where `noise`, (m,) or (n, m), is the
    mean square by which rewards are missed; and how many rounds carry it. From the propensities, not from what was
    drawn: where the rare choices that would tell were not made, what was drawn looks more certain than it is.
    """
    squares = _per_chance(rounds, change)
    carried = float(squares.sum()) ** 2 / max(float(_per_chance(rounds, change, 2).sum()), 1e-300)
    return float((squares * noise).sum()) / len(squares) ** 2, carried


# -- overlap


@dataclass(frozen=True, slots=True)
class Overlap:
    """How well a log covers the decisions of a policy."""

    rounds: int
    """Number of rounds with a known reward."""
    effective: float
    """Kish's effective sample size for the policy's value, as expected from the propensities. The drawn weights would
    overstate it where the policy's rare choices happened not to be drawn.
    """
    unsupported: float
    """Share of the policy's decisions that the log never makes, or whose reward never became known."""


def overlap(rounds: Rounds, target: Array) -> Overlap:
    tried = np.where((rounds.logged > 0) & (rounds.known_share > 0), target, 0.0).sum()
    missing = 1.0 - float(tried) / len(target)
    squares = float(_per_chance(rounds, target).sum())
    return Overlap(rounds.known_rounds, float(tried) ** 2 / squares if squares > 0 else 0.0, missing)


def supported_from(logged: Array, target: Array, most: float = MAX_UNSUPPORTED) -> int:
    """The first round of the longest last part of the log in which at most a share `most` of the target's decisions was
    never tried, so that a route that has begun to explore is not judged by what it logged before. Zero where no part
    qualifies.
    """
    missing = np.where(logged > 0, 0.0, target).sum(1)[::-1]
    share = (np.cumsum(missing) / np.arange(1, len(missing) + 1))[::-1]
    enough = np.flatnonzero(share <= most)
    return int(enough[0]) if len(enough) else 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Too little evidence for an estimate, and what it would take."""

    reason: str
    overlap: Overlap
    explored_calls: int
    """Calls with a randomly drawn model that are still needed; 0: such calls would not help."""
    calls: int
    """All calls that this takes at the assumed exploration."""
    cost_usd: float
    """Cost of the explored calls; NaN where costs are unknown."""
    exploration: float = 0.0
    """Assumed share of calls whose model is drawn at random; 0 means the log's own."""

    def __str__(self) -> str:
        if not self.explored_calls:
            return f"not enough evidence ({self.reason})"
        money = f", about ${self.cost_usd:.4g}" if np.isfinite(self.cost_usd) else ""
        needed = f"about {self.explored_calls} more explored calls needed{money}"
        at = f" (at explore = {self.exploration:g} about {self.calls} requests)" if self.exploration else ""
        return f"not enough evidence ({self.reason}): {needed}{at}"


@dataclass(frozen=True, slots=True)
class Requirements:
    """How much evidence is enough, and how much exploration to assume where it is not."""

    min_effective: float = MIN_ESS
    max_unsupported: float = MAX_UNSUPPORTED
    exploration: float = 0.1
    """Share of calls that would be drawn at random."""


def judged(
    rounds: Rounds, target: Array, model_cost_usd: Array | None = None, required: Requirements | None = None
) -> Overlap | Refusal:
    """The overlap where the log suffices to estimate the policy's value; otherwise a refusal."""
    required = required or Requirements()
    found = overlap(rounds, target)
    reason = ""
    if found.unsupported > required.max_unsupported:
        tried = "tried" if (rounds.known_share > 0).all() else "tried, or nothing is known of them"
        reason = f"{found.unsupported:.0%} of its decisions were never {tried}"
    elif found.effective < required.min_effective:
        reason = f"{found.rounds} logged requests, effective sample size {found.effective:.0f}"
    if not reason:
        return found
    calls = _calls_needed(rounds, target, found, required)
    explored = ceil(calls * required.exploration)
    price = float("nan") if model_cost_usd is None else float(np.nanmean(model_cost_usd))
    return Refusal(reason, found, explored, ceil(calls), explored * price, required.exploration)


def _calls_needed(rounds: Rounds, target: Array, found: Overlap, required: Requirements) -> float:
    """The rounds still needed. With that uniform exploration mixed in, and rewards known as often as now, one round is
    worth 1 / E[sum pi^2 / mu] effective ones.
    """
    mixed = (1.0 - required.exploration) * rounds.logged + required.exploration / rounds.logged.shape[1]
    known_share = np.where(rounds.known_share > 0, rounds.known_share, rounds.known_rounds / len(rounds.action))
    spread = float((target**2 / np.maximum(mixed * known_share, 1e-12)).sum(1).mean())
    lacking = required.min_effective - (0.0 if found.unsupported > required.max_unsupported else found.effective)
    return max(lacking, 0.0) * max(spread, 1.0)


# -- the answer


def as_logged(rounds: Rounds, model: Array) -> Interval:
    """Value of the logging policy itself: the plain mean where every reward is known, otherwise the doubly robust
    estimate, so that it fits those of other policies.
    """
    if not (rounds.known is None or rounds.known.all()):
        return valued(rounds, rounds.logged, model).best
    values = snips(rounds, rounds.logged, rounds.logged)
    return skewed_interval(values, 0.95, max(overlap(rounds, rounds.logged).effective, 4.0))


@dataclass(frozen=True, slots=True)
class Valuation:
    """A policy's expected reward with its interval."""

    overlap: Overlap
    best: Interval
    """Doubly robust."""
    snips: Interval
    """Self-normalised importance weighting alone."""


def valued(rounds: Rounds, target: Array, model: Array, *, confidence: float = 0.95) -> Valuation:
    """Estimate the value of the target. The overlap is not judged here; see `judged`."""
    return Valuation(
        overlap(rounds, target),
        _doubly_robust_interval(rounds, target, doubly_robust(rounds, target, model), model, confidence),
        _snips_interval(rounds, target, model, confidence),
    )


def difference(
    rounds: Rounds, target: Array, baseline: Array, model: Array, *, confidence: float = 0.95
) -> Interval:
    """Target minus baseline on the same rounds, doubly robust, paired round by round."""
    values = doubly_robust(rounds, target, model) - doubly_robust(rounds, baseline, model)
    return _doubly_robust_interval(rounds, target - baseline, values, model, confidence)


def _doubly_robust_interval(
    rounds: Rounds, change: Array, values: Array, model: Array, confidence: float
) -> Interval:
    variance, carried = promised(rounds, change, _noise(rounds, model))
    read = float(direct(rounds, change, model).var()) / len(values)
    return skewed_interval(values, confidence, max(carried, 4.0), read + variance)


def _snips_interval(rounds: Rounds, target: Array, model: Array, confidence: float) -> Interval:
    values = snips(rounds, target, model)
    variance, carried = promised(rounds, target, _noise(rounds, model) + (model - values.mean()) ** 2)
    return skewed_interval(values, confidence, max(carried, 4.0), variance)
