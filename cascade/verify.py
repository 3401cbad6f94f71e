"""Self-verification (AutoMix, Aggarwal et al. 2024): the small model answers, then is asked whether that is right.

A few cheap verdicts give a noisy share of "correct". A threshold, or a small POMDP that was learned from about fifty
examples, decides between keeping the draft and escalating. The POMDP also accounts for questions that no model gets
right, where escalating only costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascade.confidence import vetoed
from cascade.types import Ask, Fits, Keep, Outcome, Step

Matrix = NDArray[np.float64]
Prompt = Callable[[str], Mapping[str, object]]
"""The answer's text to the fields of the verifying request."""

VERDICTS = 3
_VERDICT = re.compile(r"\b(incorrect|not correct|wrong|false|no|correct|right|true|yes)\b", re.IGNORECASE)
_AGAINST = frozenset({"incorrect", "not correct", "wrong", "false", "no"})


def verdict_of(text: str) -> float:
    """1 for "correct", 0 for "incorrect", NaN where the text says neither."""
    found = _VERDICT.search(text)
    return nan if found is None else float(found.group(1).lower() not in _AGAINST)


def verdicts_within(max_attempts: int) -> int:
    """The number of verdicts that leaves attempts for the draft and the escalation."""
    return max(1, min(VERDICTS, max_attempts - 2))


class Decides(Protocol):
    """Whether a share of favourable verdicts (NaN: none could be read) keeps the draft."""

    def keeps(self, share: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Threshold:
    """Keeps an answer whose share of favourable verdicts is at least the threshold."""

    least: float

    def keeps(self, share: float) -> bool:
        return share >= self.least


@dataclass(frozen=True, slots=True)
class Pomdp:
    """The learned values of keeping and of escalating for each bin of the share; the last bin is for unreadable
    verdicts.
    """

    keep: tuple[float, ...]
    escalate: tuple[float, ...]

    def keeps(self, share: float) -> bool:
        at = bin_of(share, len(self.keep) - 1)
        return self.keep[at] >= self.escalate[at]


def bin_of(share: float, bins: int) -> int:
    return bins if share != share else min(int(share * bins), bins - 1)


def fit_pomdp(
    shares: Matrix, small: Matrix, large: Matrix, rate: float, extra_usd: Matrix, bins: int = 5, prior: float = 2.0
) -> Pomdp:
    """Beliefs over (small right, large right) per bin, shrunk to the overall ones by `prior` pseudo-examples.

    `rate`: quality points per dollar; `extra_usd`: what each escalation cost.
    """
    at = np.array([bin_of(float(share), bins) for share in shares])
    price = rate * float(extra_usd.mean())
    count = np.bincount(at, minlength=bins + 1) + prior
    keep = (np.bincount(at, small, bins + 1) + prior * small.mean()) / count
    ahead = (np.bincount(at, large, bins + 1) + prior * large.mean()) / count
    return Pomdp(tuple(keep.tolist()), tuple((ahead - price).tolist()))


@dataclass(frozen=True, slots=True)
class SelfVerification:
    """Draft, verify `votes` times at once, then keep the draft or escalate."""

    draft: Step
    verify: Step
    prompt: Prompt
    escalate: Step
    decides: Decides
    votes: int = 3

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        at = self._draft(history)
        if not history:
            return Ask((self.draft,), (self.verify, self.escalate), streams=False)
        if at is None or vetoed(history[at].evidence) or self._escalated(history):
            return self._last(history, fits)
        cast = history[at + 1 : at + 1 + self.votes]
        if len(cast) < self.votes and not (cast and cast[-1].failure) and fits(self.verify):
            return Ask(self._verdicts(history[at], self.votes - len(cast)), (self.escalate,), streams=False)
        if self.decides.keeps(self.share(cast)):
            return Keep(at)
        return self._last(history, fits)

    def best(self, history: Sequence[Outcome]) -> int | None:
        """The escalation where it answered, else the draft; a verdict is no answer."""
        if self._escalated(history) and not history[-1].failure:
            return len(history) - 1
        return self._draft(history)

    def _draft(self, history: Sequence[Outcome]) -> int | None:
        """The draft is the first answer of its model: failed attempts may stand before it."""
        drafts = (i for i, o in enumerate(history) if not o.failure and o.model == self.draft.model)
        return next(drafts, None)

    def _escalated(self, history: Sequence[Outcome]) -> bool:
        return any(o.model == self.escalate.model for o in history)

    @staticmethod
    def share(cast: Sequence[Outcome]) -> float:
        read = [v for o in cast if not o.failure and (v := verdict_of(o.evidence.text)) == v]
        return sum(read) / len(read) if read else nan

    def _verdicts(self, draft: Outcome, k: int) -> tuple[Step, ...]:
        fields = dict(self.prompt(draft.evidence.said))
        step = self.verify
        return tuple(
            Step(step.model, step.accept_at, step.worst_cost_usd, {**step.overrides, **fields, "seed": i})
            for i in range(k)
        )

    def _last(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        if not self._escalated(history) and fits(self.escalate):
            return Ask((self.escalate,))
        kept = self.best(history)
        return Keep(kept, "failed" if kept is None else "exhausted")
