"""Whether another question's answer is good enough: a learned score and a threshold with a bounded false-hit rate.

What is bounded is the share of wrong answers among hits, `eps`. Every judged row - a miss whose new answer was compared
with the cached one, a hit that was asked again in the shadow - is kept with its features and weighted by one over the
probability that it was judged. A logistic score is refitted to the rows; the threshold is the lowest score above which
the upper 95 % binomial (Clopper-Pearson) bound on the share of wrong rows stays within `eps`, after the judge's own
error is taken off. Within a slice of similar scores all rows count alike, and their weights only tell how frequent such
scores are (post-stratification, Holt and Smith 1979); otherwise each audit, which has ten times a miss's weight, would
widen the bound. In addition, the estimated chance of being wrong of every single hit is limited to a multiple of `eps`,
so that many sure hits don't pay for doubtful ones. Answers that were confirmed by a judgement and unconfirmed ones have
separate thresholds, because at the same score an unconfirmed answer is wrong far more often and the bound must hold for
both. Where no score satisfies the bound, nothing is served. The threshold is fitted to the same rows that estimate the
bound, so the bound is empirical; the audited rate is reported with its interval.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from operator import mul

import numpy as np
from numpy.typing import NDArray

from cache.classes import AnswerClass
from cache.judge import Floats, JudgeError

NEVER = 2.0
"""A threshold that no score reaches."""
UNPROVEN = 11
"""Index of the feature that is 1.0 where the answer was not yet judged right for any other question."""
_SLICE = 20
"""Rows of neighbouring scores that share one estimate; a threshold lies between slices."""
_WORST = 4.0
"""How many times `eps` the estimated chance of being wrong may be of any one hit."""
_NOVEL_WEIGHT = 4.0
"""Weight in the fit of a mistake on a novel question, relative to other mistakes."""
_NOVEL_AFTER = 1000
"""Requests after which a question that was not asked again in other words counts as novel."""


@dataclass(frozen=True, slots=True)
class AcceptanceOptions:
    """What a route asks of its semantic cache."""

    eps: float = 0.03
    """Bound on the share of wrong answers among hits."""
    confidence: float = 0.95
    audit_share: float = 0.1
    """Share of hits that are asked again in the background and judged."""
    judged_share: float = 0.14
    """Share of requests that are judged once enough is known."""
    least_rows: int = 50
    refit_every: int = 250
    """Requests between two fits."""
    warm_up: int = 300
    """Requests before the first fit."""
    max_rows: int = 20_000

    def __post_init__(self) -> None:
        for name in ("eps", "confidence", "audit_share", "judged_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in (0, 1), not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What one fit has learnt; replaced as a whole."""

    mean: Floats
    scale: Floats
    weights: Floats
    threshold: float = NEVER
    upper: float = 1.0
    """Bound on the false-hit rate at the threshold."""
    version: int = 0
    unproven: float | None = None
    """The threshold of unproven answers; None: the same."""
    offset: float = field(init=False)
    slopes: tuple[float, ...] = field(init=False)
    """The score's line in plain numbers."""

    def __post_init__(self) -> None:
        slopes = self.weights[1:] / self.scale
        object.__setattr__(self, "slopes", tuple(slopes.tolist()))
        object.__setattr__(self, "offset", float(self.weights[0] - slopes @ self.mean))

    def least(self, unproven: bool = False) -> float:
        """The score that an answer must have."""
        return self.unproven if unproven and self.unproven is not None else self.threshold

    @property
    def serves(self) -> bool:
        """Whether there is a score that is served."""
        return min(self.least(), self.least(unproven=True)) < NEVER


@dataclass(frozen=True, slots=True)
class Rate:
    """A false-hit rate, measured on `n` audited hits."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One verdict."""

    features: list[float]
    right: bool
    weight: float
    asked: AnswerClass | None
    """What the question that was asked wants, where that is known."""
    at: int
    """After so many requests."""


class Acceptance:
    """The learned rule of one route."""

    def __init__(
        self,
        options: AcceptanceOptions | None = None,
        rng: random.Random | None = None,
        judge_error: JudgeError | None = None,
    ) -> None:
        self.options = options = options or AcceptanceOptions()
        self.judge_error = judge_error or JudgeError()
        self.fitted: Fitted | None = None
        self.requests = 0
        self.heard = 0
        """Number of rows received from other replicas."""
        self.hits = 0
        self.judgements = 0
        self._rng = rng or random.Random()
        self._rows: deque[_Row] = deque(maxlen=options.max_rows)
        self._audits: deque[bool] = deque(maxlen=2000)
        self._miss_share = 1.0
        """Factor of the probability that a miss is judged, adjusted to keep to `judged_share`."""
        self._spent = 1.0
        """Judgements per request recently."""
        self._judged_then = 0
        self._fitted_at = 0

    def score(self, features: list[float]) -> float:
        """Estimated probability that the cached answer is right; 0 before anything is learnt."""
        fitted = self.fitted
        if fitted is None:
            return 0.0
        z = fitted.offset + sum(map(mul, fitted.slopes, features))
        return 1.0 / (1.0 + math.exp(-min(30.0, max(-30.0, z))))

    def least(self, unproven: bool = False) -> float:
        """The score from which on the bound holds."""
        return NEVER if self.fitted is None else self.fitted.least(unproven)

    def accepts(self, score: float, unproven: bool = False) -> bool:
        """Whether the bound holds for answers of this score."""
        return score >= self.least(unproven)

    def count(self, hit: bool) -> None:
        """Count one request, and steer how many misses are judged."""
        self.requests += 1
        self.hits += hit
        spent, self._judged_then = self.judgements - self._judged_then, self.judgements
        self._spent += (spent - self._spent) / 500

    def draw_audit(self) -> float:
        """The weight of this hit's row if it is to be audited, else 0."""
        return 1.0 / self.options.audit_share if self._rng.random() < self.options.audit_share else 0.0

    def draw_miss(self, score: float, unproven: bool = False) -> float:
        """The weight of this miss's row if it is to be judged, else 0: likely ones near the threshold."""
        share, least = self._miss_share, self.least(unproven)
        if self.fitted is None:
            share = 1.0
        elif least < NEVER:
            share *= 2.0 * min(1.0, score / max(least, 1e-9)) ** 2
        share = min(1.0, max(0.03, share))
        return 1.0 / share if self._rng.random() < share else 0.0

    def learn(
        self, features: list[float], right: bool, weight: float, *, audited: bool, asked: AnswerClass | None = None
    ) -> None:
        """Take in one judged row; `asked`: the class of the question that was compared."""
        self._rows.append(_Row(features, right, weight, asked, self.requests))
        if audited:
            self._audits.append(right)

    @property
    def due(self) -> bool:
        """Whether it is time to `refit`."""
        enough = self.requests + self.heard >= self.options.warm_up and len(self._rows) > self.options.least_rows
        is_first = self.heard > 0 and not self._fitted_at
        return enough and (is_first or self.requests - self._fitted_at >= self.options.refit_every)

    def hear(self, features: list[float], right: bool, weight: float, *, audited: bool) -> None:
        """Take in a row that was judged elsewhere."""
        self.heard += 1
        self.learn(features, right, weight, audited=audited)

    def refit(self) -> None:
        """Fit score and threshold to all rows; some 10 ms, safe beside look-ups in another thread."""
        self._fitted_at = max(1, self.requests)
        self._steer()
        if self._drifted():
            for _ in range(len(self._rows) // 2):
                self._rows.popleft()
            self._audits.clear()
        rows = list(self._rows)
        right = np.array([row.right for row in rows], float)
        if not rows or right.all() or not right.any():
            return
        features, weight = np.array([row.features for row in rows]), np.array([row.weight for row in rows])
        mean, scale = features.mean(0), features.std(0) + 1e-6
        design = np.column_stack([np.ones(len(rows)), (features - mean) / scale])
        matters = weight * np.array([_NOVEL_WEIGHT if self._is_novel(row) else 1.0 for row in rows])
        weights = fit_logistic(design, right, matters / matters.mean())
        scores = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30, 30)))
        unproven = features[:, UNPROVEN] > 0.5
        (threshold, upper), (first, first_upper) = (
            self._threshold(scores[rows], right[rows], weight[rows]) for rows in (~unproven, unproven)
        )
        version = 1 if self.fitted is None else self.fitted.version + 1
        bound = max(upper, first_upper) or 1.0
        self.fitted = Fitted(mean, scale, weights, threshold, bound, version, first)

    def false_hit_rate(self) -> Rate:
        """The audited false-hit rate of the last hits, judge's error taken off, with its 95 % interval."""
        n = len(self._audits)
        if not n:
            return Rate(0.0, 0.0, 1.0, 0)
        wrong = np.array([self._audits.count(False) / n])
        low, high = 1.0 - beta_upper((1.0 - wrong) * n, wrong * n, 0.975), beta_upper(wrong * n, n - wrong * n, 0.975)
        value, above = self.judge_error.correct(wrong, high)
        below = value - (above - value) if self.judge_error.false_wrong else low
        return Rate(float(value[0]), float(max(below[0], 0.0)), float(above[0]), n)

    def _is_novel(self, row: _Row) -> bool:
        """Whether a row's question was a mistake's, and nobody has wanted its answer since."""
        old = self.requests - row.at >= _NOVEL_AFTER
        return not row.right and old and row.asked is not None and row.asked.root().size <= 1

    def _threshold(self, scores: Floats, right: Floats, weight: Floats) -> tuple[float, float]:
        """The lowest score whose bound is within eps and whose own answers are not too doubtful, and that bound."""
        if not len(scores):
            return NEVER, 0.0
        order = np.argsort(-scores)
        wrong, n, ends = _sliced(1.0 - right[order], weight[order])
        upper = beta_upper(wrong * n, n - wrong * n, self.options.confidence)
        _, upper = self.judge_error.correct(wrong, upper)
        within = np.flatnonzero(upper <= self.options.eps)
        if not len(within):
            return NEVER, 0.0
        lowest = float(scores[order[ends[within[-1]]]])
        return max(lowest, 1.0 - self.judge_error.called_wrong(_WORST * self.options.eps)), float(upper[within[-1]])

    def _steer(self) -> None:
        """Adjust how many misses are judged: many while little is known, then `judged_share` of the requests."""
        known = max(0, self.judgements - 3000)
        target = max(self.options.judged_share, 0.6 * math.exp(-known / 800))
        change = target / max(self._spent, 1e-3)
        if self.requests > 1000:
            self._miss_share = min(1.0, max(0.02, self._miss_share * min(1.25, max(0.8, change))))

    def _drifted(self) -> bool:
        """Whether even the lower bound of the last audits lies above eps: then older rows mislead."""
        rate = self.false_hit_rate()
        return rate.n >= 50 and rate.low > self.options.eps


def _sliced(wrong: Floats, weight: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """For rows in the order of their scores, cumulative over slices: the share of wrong rows, the number of rows that
    would give that share the same variance, and the index at which each slice ends.
    """
    starts = np.arange(0, len(wrong), _SLICE)
    ends = np.append(starts[1:], len(wrong)) - 1
    rows, mass, faults = ends - starts + 1.0, np.add.reduceat(weight, starts), np.add.reduceat(wrong, starts)
    likely = (faults + 0.5) / (rows + 1.0)
    total = np.cumsum(mass)
    mean = np.cumsum(mass * likely) / total
    variance = np.cumsum(np.square(mass) * likely * (1.0 - likely) / rows) / np.square(total)
    return np.cumsum(mass * faults / rows) / total, mean * (1.0 - mean) / variance, ends


def beta_upper(wrong: Floats, right: Floats, confidence: float) -> Floats:
    """Upper Clopper-Pearson bound on a share, for counts that need not be whole."""
    from scipy.special import betaincinv

    bound: NDArray[np.float64] = betaincinv(wrong + 1.0, np.maximum(right, 1e-9), confidence)
    return bound


def fit_logistic(design: Floats, right: Floats, weight: Floats, l2: float = 1.0, rounds: int = 8) -> Floats:
    """Weighted logistic regression by Newton's method; the first column is the intercept."""
    penalty = np.full(design.shape[1], l2)
    penalty[0] = 1e-3
    weights = np.zeros(design.shape[1])
    for _ in range(rounds):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (weight * (p - right)) + penalty * weights
        bend = (design * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ design + np.diag(penalty)
        step = np.clip(np.linalg.solve(bend, slope), -5, 5)
        weights -= step
        if np.abs(step).max() < 1e-4:
            break
    return weights
