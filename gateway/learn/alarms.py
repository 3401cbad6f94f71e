"""Alarms on a route's learning: each one says what is wrong with its rounds, in words that an operator can act on.

With too few rounds no alarm is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.learn.cases_worth import harmless_p, scores_by_cases
from gateway.learn.dataset import Log
from routers.ope import Array

MIN_ROUNDS = 50
CONCENTRATED = 0.95
STARVED = 0.01
RARELY_LABELLED = 0.01
MISCALIBRATED = 0.1
SURE_Z = 4.0
SURE_RATIO = 4.2
"""Square root of twice the log likelihood ratio that is reached by chance in 0.1 % of a model's logs."""
DRIFTED_SD = 0.5
STALE_ROUNDS = 1000
HARM_BY_CHANCE = 1e-4
"""Probability that a growing log in which solved cases do no harm ever raises the alarm. A log of the latest rounds
only starts again with each round, so that in the long run a route gets false alarms more often.
"""


@dataclass(frozen=True, slots=True)
class Alarm:
    kind: str
    """starved | concentrated | unlabelled | label delay | calibration | model drift | feature drift | stale |
    harmful cases"""
    message: str
    value: float
    model: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A lasting change of a model's mean score."""

    model: str
    place: int
    """Index of the first round after the change."""
    before: float
    after: float


def raised(
    log: Log, *, version_since_s: float = 0.0, trained_until_s: float = 0.0, shows_cases: bool = True
) -> list[Alarm]:
    """The alarms of a route's rounds. `version_since_s`: Unix time since which its router serves; `trained_until_s`:
    Unix time of the latest decision that was trained on, whether or not that router was promoted; `shows_cases`:
    whether the route still shows solved cases.
    """
    if len(log) < MIN_ROUNDS:
        return []
    checks: Sequence[Callable[[Log], list[Alarm]]] = (
        exploration_starved, one_model, labels, model_drift, feature_drift,
    )  # fmt: skip
    found = [alarm for check in checks for alarm in check(log)]
    found += calibration(log.since(version_since_s)) + stale(log, version_since_s, trained_until_s)
    return found + harmful_cases(log) if shows_cases else found


def exploration_starved(log: Log) -> list[Alarm]:
    """Alarm where almost every decision is certain, so that nothing is learnt about the other models."""
    doubt = float((1.0 - log.logged.max(1))[-1000:].mean())
    if len(log.models) < 2 or doubt >= STARVED:
        return []
    return [Alarm("starved", f"{doubt:.1%} of decisions try another model: set the route's `explore`", doubt)]


def one_model(log: Log) -> list[Alarm]:
    """Alarm where one model answers nearly everything: routing has collapsed, or that model is simply the best."""
    shares = np.bincount(log.action[-1000:], minlength=len(log.models)) / min(len(log), 1000)
    top = int(shares.argmax())
    if len(log.models) < 2 or shares[top] <= CONCENTRATED:
        return []
    message = f"{log.models[top]} gets {shares[top]:.0%} of the requests"
    return [Alarm("concentrated", message, float(shares[top]), log.models[top])]


def labels(log: Log) -> list[Alarm]:
    """Alarm where there are almost no scores, or fewer than before."""
    known = log.labelled
    share = float(known.mean())
    if share < RARELY_LABELLED:
        return [Alarm("unlabelled", f"{share:.1%} of answers are scored: nothing can be learnt", share)]
    quarter = len(known) // 4
    before, lately = float(known[:-quarter].mean()), float(known[-quarter:].mean())
    if quarter * before >= 20 and lately < 0.5 * before:
        return [Alarm("label delay", f"{lately:.1%} of the latest answers are scored, {before:.1%} before", lately)]
    return []


def expected_quality(log: Log) -> Array:
    """Quality that the router expected of the model that it chose, (n,); NaN where it had no estimate."""
    chosen = [record.chosen for record in log.records]
    return np.array([np.nan if one is None or one.quality is None else one.quality for one in chosen], np.float64)


def own_answers(log: Log) -> NDArray[np.bool_]:
    """Rounds whose score is that of the chosen model. Fallbacks and cascades are not, because their answers come from
    another model or were kept because they look good.
    """
    return np.array([one.answered_model in ("", one.model) and len(one.plan) < 2 for one in log.records], bool)


def calibration(log: Log) -> list[Alarm]:
    """Alarms for models whose answers are better or worse than the router expects."""
    log = log.rows(own_answers(log))
    expected = np.clip(expected_quality(log), 0.0, 1.0)[-1000:]
    gap = log.score[-1000:] - expected
    found = []
    for j, model in enumerate(log.models):
        known = (log.action[-1000:] == j) & np.isfinite(gap)
        mine, hoped = gap[known], expected[known]
        if len(mine) < 30:
            continue
        # a few answers that are all right vary less than the router's own estimates imply
        variance = max(float(mine.var(ddof=1)), float((hoped * (1.0 - hoped)).mean()))
        mean, error = float(mine.mean()), np.sqrt(variance / len(mine))
        if abs(mean) > MISCALIBRATED and abs(mean) > SURE_Z * max(float(error), 1e-3):
            way = "above" if mean > 0 else "below"
            message = f"{model} scores {abs(mean):.2f} {way} what the router expects"
            found.append(Alarm("calibration", message, mean, model))
    return found


def model_drift(log: Log) -> list[Alarm]:
    """Alarms for models that answer better or worse than before."""
    return [
        Alarm("model drift", f"{one.model} went from {one.before:.2f} to {one.after:.2f}",
              one.after - one.before, one.model)
        for one in changes(log)
    ]  # fmt: skip


def changes(log: Log, least: int = 25) -> list[Change]:
    """Models whose mean score changed at some round: the largest jump, where it is beyond chance.

    Scores are compared within the kinds of query that the router tells apart (its own expectation), so that a shift of
    traffic toward harder queries is no drift of the model.
    """
    found = []
    expected = expected_quality(log)
    mine = np.array([one.answered_model in ("", one.model, *one.plan) for one in log.records], bool)
    for j, model in enumerate(log.models):
        places = np.flatnonzero((log.action == j) & log.labelled & mine)
        if len(places) < 2 * least:
            continue
        level = np.where(np.isfinite(expected[places]), expected[places], 0.0)
        change = _largest_jump(log.score[places], _explained(log.score[places], level), least)
        if change is not None:
            at, before, after = change
            found.append(Change(model, int(places[at]), before, after))
    return found


def _explained(score: Array, level: Array) -> Array:
    """The part of the scores that the router's expectation explains, by least squares."""
    spread = float(level.var())
    slope = float(np.cov(level, score, bias=True)[0, 1]) / spread if spread > 1e-9 else 0.0
    return np.asarray(score.mean() + max(slope, 0.0) * (level - level.mean()))


def _largest_jump(score: Array, explained: Array, least: int) -> tuple[int, float, float] | None:
    """Place, mean before and mean after of the likeliest change; None where chance explains it.

    Told by the larger of two maxima over places, each beside its 99.9 % point for hundreds of places: a two-sample z,
    which sees small steps of graded scores, and the likelihood ratio of right and wrong answers (Bernoulli; for other
    scores in [0, 1] it claims less than it might), which sees a good model fall within few answers.
    """
    rest, n = score - explained, len(score)
    total, squares, variance = np.cumsum(rest), np.cumsum(rest**2), max(float(rest.var()), 1e-12)
    places = np.arange(least, n - least + 1)
    before = total[places - 1] / places
    after = (total[-1] - total[places - 1]) / (n - places)
    # scores near 0 or 1 come with rare large misses: a short part may vary more than the whole does
    spread = [
        np.maximum(square / count - mean**2, variance) / count
        for square, count, mean in (
            (squares[places - 1], places, before), (squares[-1] - squares[places - 1], n - places, after),
        )
    ]  # fmt: skip
    z = np.abs(after - before) / np.sqrt(spread[0] + spread[1])
    level, whole = float(score.mean()), float(total[-1]) / n
    ratio = places * _divergence(level + before, level + whole)
    ratio += (n - places) * _divergence(level + after, level + whole)
    sure = np.maximum(z / SURE_Z, np.sqrt(2 * np.maximum(ratio, 0.0)) / SURE_RATIO)
    sure[np.abs(after - before) < MISCALIBRATED] = 0.0
    best = int(sure.argmax())
    if sure[best] < 1.0:
        return None
    at = int(places[best])
    return at, float(score[:at].mean()), float(score[at:].mean())


def _divergence(found: Array, level: float) -> Array:
    """Kullback-Leibler divergence between probabilities of a right answer, clipped into (0, 1)."""
    p, q = np.clip(found, 1e-9, 1 - 1e-9), min(max(level, 1e-9), 1 - 1e-9)
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def feature_drift(log: Log) -> list[Alarm]:
    """Alarm where the later half of the queries differs from the earlier half."""
    z = log.covariates(8)
    half = len(z) // 2
    shift = np.abs(z[half:].mean(0) - z[:half].mean(0))
    error = np.sqrt(1 / half + 1 / (len(z) - half))
    worst = float(shift.max())
    if worst > DRIFTED_SD and worst > SURE_Z * error:
        return [Alarm("feature drift", f"queries moved by {worst:.1f} standard deviations", worst)]
    return []


def stale(log: Log, since_s: float, trained_until_s: float = 0.0) -> list[Alarm]:
    """Alarm where many scores came since the router was promoted, and none has been trained on them."""
    fresh = int(log.since(max(since_s, trained_until_s)).labelled.sum())
    if since_s <= 0 or fresh < STALE_ROUNDS:
        return []
    return [Alarm("stale", f"{fresh} scored answers since a router was last trained", float(fresh))]


def harmful_cases(log: Log) -> list[Alarm]:
    """Alarm where requests that are shown solved cases score significantly lower than those from which cases are
    withheld; valid however often it is checked.
    """
    worth = scores_by_cases(log)
    if worth.gained is None or worth.gained.value >= 0.0 or harmless_p(log) > HARM_BY_CHANCE:
        return []
    message = (
        f"answers after solved cases score {worth.shown:.2f}, those without {worth.withheld:.2f}: take `solved` out of "
        "the route, or look whether its scores are right"
    )
    return [Alarm("harmful cases", message, worth.gained.value)]
