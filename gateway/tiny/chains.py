"""Measures drafting by steps on problems of several steps, where one mistake spoils the rest, with the two shipped
models.

Each step takes the number that the step before has written, and adds another number or keeps the larger of both. The
gateway's own `Stepwise` decides. It is compared with a cascade of whole solutions, both with thresholds chosen on
learning problems, and with sending the same share of steps to the large model at random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from msgspec import structs

from cascade.confidence import RAW
from cascade.stepwise import Stepwise
from cascade.types import Evidence, Keep, Outcome, Step
from gateway.tiny.figures import difference, mean, ratio
from gateway.tiny.steps import (
    END,
    GRID,
    LARGE,
    MOST_TOKENS,
    SMALL,
    SO_FAR,
    Writers,
    Written,
    beside,
    thriftiest,
    tokens,
)
from local_models.tasks import Question, is_held_out

STEPS = 5
SUMS = 0.25
"""Share of steps that are sums, which the small model mostly gets wrong; the others ask for the larger number."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A first number, and the steps applied to it in order, each a kind of question and another number."""

    first: int
    steps: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> int:
        number = self.first
        for kind, other in self.steps:
            number = number + other if kind == "total" else max(number, other)
        return number


def chains(count: int, seed: int) -> list[Chain]:
    """Random problems without any step that a shipped model was trained on; sums stay below 1,000, as in training."""
    rng = random.Random(seed)
    drawn: list[Chain] = []
    while len(drawn) < count:
        first, kinds = _number(rng), ["total" if rng.random() < SUMS else "larger" for _ in range(STEPS)]
        chain = Chain(first, ())
        for kind in kinds:
            others = [_number(rng) for _ in range(200)]
            fit = (n for n in others if chain.answer + n < 1000 and is_held_out(_question(kind, chain.answer, n)))
            chain = Chain(first, (*chain.steps, (kind, other))) if (other := next(fit, None)) is not None else chain
        if len(chain.steps) == STEPS:
            drawn.append(chain)
    return drawn


def _number(rng: random.Random) -> int:
    return int(rng.randrange(10 ** rng.randint(1, 3)))


def _question(kind: str, one: int, other: int) -> Question:
    if kind == "total":
        return Question(kind, f"total {one} {other}", f"{one}+{other} reversed=", str(one + other)[::-1])
    return Question(kind, f"larger {one} {other}", f"larger of {one} and {other}?", str(max(one, other)))


def _number_of(kind: str, line: str) -> int | None:
    digits = line.replace(END, "").strip()
    return int(digits[::-1] if kind == "total" else digits) if digits.isdecimal() else None


class Solvers:
    """Both models, which solve problems one step at a time."""

    def __init__(self, writers: Writers) -> None:
        self._writers = writers

    def write(self, model: str, chain: Chain, so_far: str) -> Outcome:
        """The step that follows those in `so_far`, which has one step per line."""
        lines = so_far.split()
        number = _number_of(chain.steps[len(lines) - 1][0], lines[-1]) if lines else chain.first
        if number is None:
            return Outcome(model, evidence=Evidence(text=END))
        kind, other = chain.steps[len(lines)]
        outcome = self._writers.write(model, _question(kind, number, other), "", MOST_TOKENS)
        text = outcome.evidence.text.replace(END, "").strip() + END * (len(lines) + 1 == STEPS)
        return Outcome(model, evidence=structs.replace(outcome.evidence, text=text))

    def whole(self, model: str, chain: Chain) -> list[Outcome]:
        """All steps by the same model."""
        return self.by_turns([model] * STEPS, chain)

    def by_turns(self, models: Sequence[str], chain: Chain) -> list[Outcome]:
        """Each step by the model of its place in `models`, up to the last step or one that is not a number."""
        history: list[Outcome] = []
        for model in models:
            history.append(self.write(model, chain, "\n".join(outcome.evidence.text for outcome in history)))
            if END in history[-1].evidence.text:
                break
        return history


def by_steps(solvers: Solvers, chain: Chain, accept_at: float) -> Written:
    """The solution in steps by the small model, with steps below `accept_at` rewritten by the large one."""
    drafts = Stepwise(Step(SMALL), Step(LARGE), lambda so_far: {SO_FAR: so_far}, accept_at, STEPS)
    history = list[Outcome]()
    while not isinstance(move := drafts.next(history, lambda step: True), Keep):
        step = move.steps[0]
        history.append(solvers.write(step.model, chain, str(step.overrides.get(SO_FAR, ""))))
    return _written(chain, move.text or "", history)


def by_answers(solvers: Solvers, chain: Chain, accept_at: float) -> Written:
    """The small model's solution, or the large one's where its confidence is below `accept_at`."""
    history = solution = solvers.whole(SMALL, chain)
    if not RAW(SMALL, _together(solution)) >= accept_at:
        solution = solvers.whole(LARGE, chain)
        history = history + solution
    return _written(chain, solution[-1].evidence.text, history)


def by_chance(solvers: Solvers, chain: Chain, share: float, rng: random.Random) -> Written:
    """The solution with each step written by the large model with probability `share`, whatever the confidence."""
    history = solvers.by_turns([LARGE if rng.random() < share else SMALL for _ in range(STEPS)], chain)
    return _written(chain, history[-1].evidence.text, history)


def report(count: int, seed: int, share: float, writers: Writers | None = None) -> dict[str, Any]:
    """The large model's tokens at `share` of its accuracy, on `count` chains; thresholds are chosen on as many others.
    """
    solvers, drawn = Solvers(writers or Writers()), chains(2 * count, seed)
    learning, judging = drawn[:count], drawn[count:]
    target = share * float(np.mean([by_answers(solvers, chain, 2.0).right for chain in learning]))
    alone = [by_answers(solvers, chain, 2.0) for chain in judging]
    ways = {}
    figures: dict[str, Any] = {"steps": STEPS, "small": mean([by_answers(solvers, c, 0.0).right for c in judging])}
    figures["large"] = mean([one.right for one in alone])
    for name, way in (("by_steps", by_steps), ("by_answers", by_answers)):
        accept_at = thriftiest({at: [way(solvers, chain, at) for chain in learning] for at in GRID}, target)
        ways[name] = [way(solvers, chain, accept_at) for chain in judging]
        figures[name] = {"accept_at": accept_at, **beside(ways[name], alone)}
    share_sent = figures["by_steps"]["large_token_share"]["value"]
    rng = random.Random(seed)
    figures["by_chance"] = beside([by_chance(solvers, chain, share_sent, rng) for chain in judging], alone)
    steps, answers = ways["by_steps"], ways["by_answers"]
    figures["large_tokens_steps_over_answers"] = ratio(
        [one.large_tokens for one in steps], [one.large_tokens for one in answers]
    )
    figures["accuracy_steps_minus_answers"] = difference([o.right for o in steps], [o.right for o in answers])
    return figures


def _written(chain: Chain, text: str, history: Sequence[Outcome]) -> Written:
    result = _number_of(chain.steps[-1][0], text.split("\n")[-1])
    return Written(result == chain.answer, tokens(history, LARGE), tokens(history, LARGE, SMALL))


def _together(solution: Sequence[Outcome]) -> Evidence:
    """The evidence of all steps of a solution as that of one answer."""
    parts = [outcome.evidence for outcome in solution if outcome.evidence.output_tokens]
    count = sum(evidence.output_tokens for evidence in parts)
    total = sum(evidence.mean_logprob * evidence.output_tokens for evidence in parts)
    least = min((evidence.min_logprob for evidence in parts), default=nan)
    return Evidence(total / count if count else nan, least, output_tokens=count)
