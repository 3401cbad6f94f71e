"""Strategies by name, built from a router's choice: what a route's `cascade` may say beyond a plain chain.

Each builder says which models take which part. Where the choice leaves no room for a strategy (one model, a question
that does not suit it) it answers None, and the plain plan is climbed instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from cascade.bestof import BestOf
from cascade.prompts import Message, next_step, point, refinement, skeleton, verification
from cascade.rewrite import Refine, Skeleton, suits_skeleton
from cascade.stepwise import Stepwise
from cascade.types import Step, Strategy
from cascade.verify import SelfVerification, Threshold, verdicts_within
from cascade.voting import Vote, samples
from routers.types import Choice

WRITING = frozenset({"verify", "refine", "skeleton", "stepwise"})
"""Strategies that write requests of their own, and so need the chat."""
REPEATING = WRITING | {"self-consistency", "best-of"}
"""Strategies that ask one model more than once."""
COMPOSING = frozenset({"skeleton", "stepwise"})
"""Strategies that compose an answer's text from several answers, which works neither for tool calls nor for JSON."""
SAMPLES = 5
TEMPERATURE = 0.7
WORTH_IN_CALLS = 8.0
"""Value of a right answer in calls of the chosen model, where no better model sets its price."""


@dataclass(frozen=True, slots=True)
class StrategyInputs:
    """What the builder of a strategy may use."""

    choice: Choice
    step: Callable[[str], Step]
    """The priced step of a model."""
    better: Sequence[str]
    """Models expected to do better than the chosen one, the best last."""
    messages: Sequence[Message]
    accept_at: float
    max_attempts: int = 25
    judge: str = ""

    @property
    def chosen(self) -> Step:
        return self.step(self.choice.model)

    @property
    def best(self) -> Step | None:
        return self.step(self.better[-1]) if self.better else None

    @property
    def question(self) -> str:
        content = self.messages[-1].get("content", "") if self.messages else ""
        return content if isinstance(content, str) else ""


Built = tuple[Strategy, tuple[Step, ...]]
"""A strategy and every attempt it may make: what a hold is taken for."""


def agreement(inputs: StrategyInputs) -> Built | None:
    """Two cheap models are believed where they agree; otherwise the best model answers."""
    best, cost = inputs.best, {e.model: e.cost_usd for e in inputs.choice.estimates}
    if best is None:
        return None
    others = [m for m in inputs.choice.probabilities if m not in (inputs.choice.model, best.model)]
    if not others:
        return None
    second = inputs.step(min(others, key=lambda m: cost.get(m, float("inf"))))
    ballots = (inputs.chosen, second)
    return Vote(ballots, best, 1.0, 1.0, at_once=2), (*ballots, best)


def self_consistency(inputs: StrategyInputs) -> Built | None:
    """Samples of the chosen model until their vote is clear; a split vote goes to the best model."""
    ballots = samples(inputs.chosen, SAMPLES, TEMPERATURE)
    escalate = () if inputs.best is None else (inputs.best,)
    return Vote(ballots, inputs.best), (*ballots, *escalate)


def best_of(inputs: StrategyInputs) -> Built | None:
    """Samples of the chosen model while another is expected to be worth its price."""
    estimates = {e.model: e for e in inputs.choice.estimates}
    own = estimates.get(inputs.choice.model)
    chance = 0.5 if own is None or isnan(own.quality) else own.quality
    price = own.cost_usd if own is not None and isfinite(own.cost_usd) else 0.0
    better_usd = estimates[inputs.best.model].cost_usd if inputs.best and inputs.best.model in estimates else 0.0
    worth = max(better_usd if isfinite(better_usd) else 0.0, WORTH_IN_CALLS * price)
    tries = samples(inputs.chosen, SAMPLES, TEMPERATURE)
    return BestOf(tries, chance, price, worth, good=inputs.accept_at), tries


def verify(inputs: StrategyInputs) -> Built | None:
    """A judge, or the chosen model itself, checks the answer; a doubtful answer is replaced by the best model's. The
    best model never judges, because its answer costs no more than its verdict.
    """
    best, messages, chosen = inputs.best, inputs.messages, inputs.chosen
    if best is None or not messages:
        return None
    judge = inputs.step(inputs.judge) if inputs.judge and inputs.judge != best.model else chosen
    votes = verdicts_within(inputs.max_attempts)
    strategy = SelfVerification(
        chosen, judge, lambda answer: verification(messages, answer), best, Threshold(inputs.accept_at), votes
    )
    return strategy, (chosen, *(judge,) * votes, best)


def refine(inputs: StrategyInputs) -> Built | None:
    """The chosen model improves its answer once where its confidence is too low."""
    messages, chosen = inputs.messages, inputs.chosen
    if not messages:
        return None
    strategy = Refine(chosen, lambda answer: refinement(messages, answer), good=inputs.accept_at)
    return strategy, (chosen, chosen)


def sketch(inputs: StrategyInputs) -> Built | None:
    """Skeleton-of-Thought where the question asks for a list of points."""
    messages, chosen = inputs.messages, inputs.chosen
    if not suits_skeleton(inputs.question):
        return None
    strategy = Skeleton(chosen, skeleton(messages), lambda o, n, title: point(messages, o, n, title))
    return strategy, (chosen,) * 12


def stepwise(inputs: StrategyInputs) -> Built | None:
    """The chosen model drafts a solution step by step; the best one redoes poor steps."""
    best, messages, chosen = inputs.best, inputs.messages, inputs.chosen
    if best is None or not messages:
        return None
    strategy = Stepwise(chosen, best, lambda so_far: next_step(messages, so_far), inputs.accept_at)
    return strategy, (*(chosen, best) * strategy.most, best)


BUILDERS: Mapping[str, Callable[[StrategyInputs], Built | None]] = {
    "agreement": agreement,
    "self-consistency": self_consistency,
    "best-of": best_of,
    "verify": verify,
    "refine": refine,
    "skeleton": sketch,
    "stepwise": stepwise,
}
