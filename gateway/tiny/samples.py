"""Measures accuracy per token of several samples of the small shipped model, of which a verifier picks the best: the
verifier is the large model's log-probability of each answer, which takes one prefill.

The same number of samples for every question (best-of-n) is compared with a number chosen per question. That is chosen
in advance, by the small model's hidden state of the question (Damani et al. 2024, Learning How Hard to Think; Snell et
al. 2024, Scaling LLM Test-Time Compute Optimally), or as samples are graded, by the gateway's own `BestOf`. Only tokens
of the small model's answers are counted, since the large model reads each different answer once in all cases. Chances,
prices and thresholds are learnt on other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.bestof import BestOf
from cascade.logistic import Matrix, logistic, sigmoid
from cascade.types import Ask, Evidence, Outcome, Step
from gateway.tiny.figures import RESAMPLES, Figure, difference, mean
from gateway.tiny.steps import LARGE, MOST_TOKENS, SMALL, Writers
from local_models.request import Finished, Request, Sampling
from local_models.tasks import Question, is_right
from routers.evaluate import with_interval
from routers.intervals import resampled_weights

SAMPLES = 16
TEMPERATURE = 0.7
SHOWN = (1, 2, 4, 8, 16)
AT_ONCE = 32
"""Questions that are sampled together."""
LEARNT_SAMPLES = 4
LEAST_SURPRISE, MOST_SURPRISE = 1e-6, 20.0
"""Surprise is minus the verifier's log-probability, clipped to these bounds, beyond which it tells nothing more."""
PENALTY = 1.0
BUDGETS = 40
RATES = (*np.geomspace(1.0, 1e-8, 24).tolist(), 0.0)
"""Least gain in the chance of a right answer per token, from a rate that allows no second sample to one that allows
all.
"""
Counts = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Sampled:
    """k samples of each of n questions, in the order in which they were drawn. Matrices are (n, k); `seen` is (n, d).
    """

    texts: list[list[str]]
    right: Matrix
    tokens: Matrix
    verifier: Matrix
    """The large model's log-probability of the whole answer."""
    own: Matrix
    """The small model's log-probability of the whole answer."""
    seen: Matrix
    """The small model's mean hidden state of the question."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Learnt predictors of a question's difficulty."""

    chance: Callable[[Matrix], Matrix]
    """Probability that a sample is right, from `Sampled.seen`."""
    tokens: Callable[[Matrix], Matrix]
    """Expected tokens of a sample, from `Sampled.seen`."""
    grade: Callable[[Matrix], Matrix]
    """Probability that a sample is right, from the verifier's log-probability."""


def draw(
    writers: Writers, questions: Sequence[Question], samples: int = SAMPLES, *, first_seed: int = 0
) -> Sampled:
    """The samples of every question, checked and scored; no two samples have the same seed."""
    engine, codec = writers.engines[SMALL], writers.codec
    prompts = [tuple(codec.encode_chat([{"role": "user", "content": q.prompt}])) for q in questions]
    texts = [[""] * samples for _ in questions]
    tokens = np.zeros((len(questions), samples))
    for begin in range(0, len(questions), AT_ONCE):
        for place in range(begin, min(begin + AT_ONCE, len(questions))):
            for one in range(samples):
                sampling = Sampling(TEMPERATURE, seed=first_seed + place * samples + one)
                engine.add(Request(f"{place} {one}", prompts[place], MOST_TOKENS, sampling))
        while engine.busy:
            for event in engine.step():
                place, one = map(int, event.request_id.split())
                texts[place][one] += event.text
                if isinstance(event, Finished):
                    tokens[place, one] = event.usage.output_tokens
    right = [[float(is_right(q, text)) for text in each] for q, each in zip(questions, texts, strict=True)]
    verifier, own = (np.array(list(map(scorer(writers, name), prompts, texts))) for name in (LARGE, SMALL))
    seen = np.array([engine.embed(ids).tolist() for ids in prompts])
    return Sampled(texts, np.array(right), tokens, verifier, own, seen)


def scorer(writers: Writers, model: str) -> Callable[[tuple[int, ...], list[str]], list[float]]:
    """A function of a prompt and answers that returns the log-probability of each answer, including its end token."""
    engine, codec = writers.engines[model], writers.codec
    end = min(engine.runner.decoder.shape.end_ids)

    def scores(prompt: tuple[int, ...], texts: list[str]) -> list[float]:
        known = {text: sum(engine.score(prompt, (*codec.encode(text), end))) for text in set(texts)}
        return [known[text] for text in texts]

    return scores


def learnt(from_: Sampled) -> Difficulty:
    """Fit the predictors: chances by logistic and tokens by linear regression on the small model's hidden state, grades
    by logistic regression on the verifier's surprise and its logarithm.
    """
    middle, spread = from_.seen.mean(0), from_.seen.std(0) + 1e-9

    def columns(seen: Matrix) -> Matrix:
        return np.column_stack([np.ones(len(seen)), (seen - middle) / spread])

    def graded(verifier: Matrix) -> Matrix:
        surprise = np.clip(-verifier.ravel(), LEAST_SURPRISE, MOST_SURPRISE)
        return np.column_stack([np.ones(surprise.size), surprise, np.log(surprise)])

    x = columns(from_.seen)
    chance = logistic(x, from_.right.mean(1), PENALTY)
    length = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ from_.tokens.mean(1))
    grade = logistic(graded(from_.verifier), from_.right.ravel(), PENALTY)
    return Difficulty(
        lambda seen: sigmoid(columns(seen) @ chance),
        lambda seen: np.maximum(columns(seen) @ length, 1.0),
        lambda verifier: sigmoid(graded(verifier) @ grade).reshape(verifier.shape),
    )


def in_advance(chance: Matrix, tokens: Matrix, budget: float) -> Counts:
    """Number of samples of every question, at least one: samples with the largest gain per token are taken first, until
    the budget in tokens is spent. The k-th sample of a question gains p (1 - p)^(k - 1).
    """
    more = SAMPLES - 1
    gains = chance[:, None] * (1.0 - chance[:, None]) ** np.arange(1, SAMPLES) / tokens[:, None]
    order = np.argsort(-gains, axis=None, kind="stable")
    spent = tokens.sum() + np.cumsum(np.repeat(tokens, more)[order])
    taken = order[: np.searchsorted(spent, budget, side="right")]
    return np.asarray(1 + np.bincount(taken // more, minlength=len(chance)))


def as_graded(grades: Matrix, chance: Matrix, tokens: Matrix, rate: float) -> Counts:
    """Number of samples of every question until the next one's expected gain per token is below the rate (`BestOf`)."""
    tries = (Step(SMALL),) * SAMPLES
    counts = []
    for graded, p, price in zip(grades.tolist(), chance.tolist(), tokens.tolist(), strict=True):
        strategy = BestOf(tries, p, price * rate, 1.0, good=1.0)
        history = list[Outcome]()
        while isinstance(strategy.next(history, lambda step: True), Ask):
            history.append(Outcome(SMALL, evidence=Evidence(judged=graded[len(history)])))
        counts.append(len(history))
    return np.array(counts)


def picked(right: Matrix, score: Matrix) -> Matrix:
    """In column k, 1 where the sample with the highest score among the first k + 1 is right, else 0."""
    best = np.column_stack([score[:, : k + 1].argmax(1) for k in range(score.shape[1])])
    return np.take_along_axis(right, best, 1)


def voted(sampled: Sampled, k: int) -> list[float]:
    """For each question 1 where the most frequent of its first k answers is right, else 0; of equally frequent answers
    the first counts.
    """
    first = [texts[:k] for texts in sampled.texts]
    return [right[texts.index(max(texts, key=texts.count))] for right, texts in zip(sampled.right, first, strict=True)]


@dataclass(frozen=True, slots=True)
class Way:
    """Whether each question was answered right, and the tokens of its samples; both (n,)."""

    right: Matrix
    tokens: Matrix


def way_of(sampled: Sampled, best: Matrix, counts: Counts) -> Way:
    """The result of `counts` samples of each question; `best` is the result of `picked`."""
    last = counts[:, None] - 1
    tokens = np.cumsum(sampled.tokens, 1)
    return Way(*(np.take_along_axis(one, last, 1)[:, 0] for one in (best, tokens)))


def efficiency(same: Way, ways: Sequence[Way]) -> Figure:
    """Tokens of the same number of samples for every question, divided by the tokens at which the curve `ways`, ordered
    by tokens, reaches the same accuracy.
    """
    n = len(same.right)
    weights = np.vstack([np.full(n, 1.0 / n), resampled_weights(n, RESAMPLES, 0)])
    right, tokens = (weights @ np.array([getattr(way, name) for way in ways]).T for name in ("right", "tokens"))
    targets, paid = weights @ same.right, weights @ same.tokens
    value, *drawn = [
        float(price / _reached(target, accuracy, cost))
        for target, price, accuracy, cost in zip(targets, paid, right, tokens, strict=True)
    ]
    return with_interval(value, drawn)


def _reached(target: float, accuracy: Matrix, tokens: Matrix) -> float:
    """Tokens at which the curve first reaches the target accuracy, interpolated linearly; NaN where it never does."""
    above = np.flatnonzero(accuracy >= target - 1e-12)
    if not len(above):
        return float("nan")
    at = int(above[0])
    if at == 0:
        return float(tokens[0])
    part = (target - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
    return float(tokens[at - 1] + part * (tokens[at] - tokens[at - 1]))


def report(learning: Sequence[Question], judging: Sequence[Question]) -> dict[str, Any]:
    """What more samples are worth by the way of picking one, and what fewer samples for easy questions save, at equal
    accuracy and at equal tokens.
    """
    writers = Writers()
    return compared(draw(writers, learning, LEARNT_SAMPLES, first_seed=len(judging) * SAMPLES), draw(writers, judging))


def compared(taught: Sampled, sampled: Sampled) -> dict[str, Any]:
    """The report on given samples; the predictors are learnt from `taught`."""
    difficulty, best = learnt(taught), picked(sampled.right, sampled.verifier)
    fixed = {k: way_of(sampled, best, np.full(len(best), k)) for k in SHOWN}
    curves = {
        "in_advance": _advance_curve(difficulty, sampled, best),
        "as_graded": _graded_curve(difficulty, sampled, best),
    }
    own = picked(sampled.right, sampled.own)
    return {
        "samples": {
            f"{k}": {
                "tokens": mean(fixed[k].tokens.tolist()),
                "some_right": mean(sampled.right[:, :k].max(1).tolist()),
                "by_verifier": mean(best[:, k - 1].tolist()),
                "by_own_logprob": mean(own[:, k - 1].tolist()),
                "by_vote": mean(voted(sampled, k)),
            }
            for k in SHOWN
        },
        **{name: {f"{k}": _beside(fixed[k], curve) for k in SHOWN[1:]} for name, curve in curves.items()},
    }


def _beside(same: Way, curve: Sequence[Way]) -> dict[str, Figure]:
    """The point of the curve with the most tokens that takes no more than the same number of samples for every question
    does, compared with that.
    """
    budget = same.tokens.mean()
    within = max((way for way in curve if way.tokens.mean() <= budget), key=lambda way: way.tokens.mean())
    return {
        "tokens": mean(within.tokens.tolist()),
        "accuracy": mean(within.right.tolist()),
        "accuracy_minus_best_of": difference(within.right.tolist(), same.right.tolist()),
        "efficiency": efficiency(same, curve),
    }


def _advance_curve(difficulty: Difficulty, sampled: Sampled, best: Matrix) -> list[Way]:
    chance, tokens = difficulty.chance(sampled.seen), difficulty.tokens(sampled.seen)
    budgets = np.geomspace(tokens.sum(), tokens.sum() * SAMPLES * (1.0 + 1e-9), BUDGETS)
    return [way_of(sampled, best, in_advance(chance, tokens, budget)) for budget in budgets.tolist()]


def _graded_curve(difficulty: Difficulty, sampled: Sampled, best: Matrix) -> list[Way]:
    chance, tokens = difficulty.chance(sampled.seen), difficulty.tokens(sampled.seen)
    grades = difficulty.grade(sampled.verifier)
    return [way_of(sampled, best, as_graded(grades, chance, tokens, rate)) for rate in RATES]
