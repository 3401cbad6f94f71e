"""Reward-guided drafting (RSD, Liao et al. 2025): the small model writes a solution step by step, and a scorer accepts
or rejects each step.

Most steps of a long solution are easy; the large model writes only those that the scorer (confidence, a judge, a check)
rejects. The answer is composed of the accepted steps, so nothing streams. Where neither model could write a step, the
large model answers the whole question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from cascade.confidence import RAW
from cascade.types import Ask, Confidence, Fits, Keep, Outcome, Step

_ENDED = re.compile(r"####|\\boxed\{|final answer|\bdone\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Drafted:
    """The state after a history of outcomes: the accepted steps, whether the last one was rejected, and whether the
    answer is complete.
    """

    taken: tuple[str, ...]
    sent_back: bool
    failed: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class Stepwise:
    """Draft step by step with the small model; steps that score below `accept_at` are the large model's."""

    small: Step
    large: Step
    prompt: Callable[[str], Mapping[str, object]]
    """The steps so far, as one text, to the fields of the request for the next step."""
    accept_at: float = 0.7
    most: int = 12
    confidence: Confidence = RAW

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        drafted = self._drafted(history)
        if drafted.ended:
            return Keep(len(history) - 1, text="\n".join(drafted.taken))
        if drafted.failed or len(drafted.taken) >= self.most:
            plainly = history[-1].model == self.large.model and history[-1].failure
            return Keep(None, "failed") if plainly or not fits(self.large) else Ask((self.large,))
        step = self._asked(self.large if drafted.sent_back else self.small, drafted.taken)
        return Ask((step,), (self.large,), streams=False) if fits(step) else Keep(None, "budget")

    def best(self, history: Sequence[Outcome]) -> int | None:
        """Nothing: a single step is no answer."""
        return None

    def _drafted(self, history: Sequence[Outcome]) -> Drafted:
        taken, sent_back = list[str](), False
        for outcome in history:
            if outcome.failure:
                return Drafted(tuple(taken), False, True, False)
            p = self.confidence(outcome.model, outcome.evidence)
            sent_back = outcome.model == self.small.model and not sent_back and not p >= self.accept_at
            if not sent_back:
                taken.append(outcome.evidence.text.strip())
                if _ENDED.search(taken[-1]) or not taken[-1]:
                    return Drafted(tuple(text for text in taken if text), False, False, bool("".join(taken)))
        return Drafted(tuple(taken), sent_back, False, False)

    def _asked(self, step: Step, taken: Sequence[str]) -> Step:
        overrides = {**step.overrides, **self.prompt("\n".join(taken))}
        return structs.replace(step, overrides=overrides, reads_confidence=True)
