"""Answers made in several passes: refined until good enough, or written point by point along a skeleton.

Refining (self-refinement, as in A10's PeRFICS) asks the model to mend its own answer while evidence says it needs it.
Skeleton-of-Thought (Ning et al. 2024) asks for an outline, then for all points at once: a long answer in the time of a
short one. It is for lists of independent points only; anything else is answered plainly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from cascade.climb import best_answer, confidence_in
from cascade.confidence import RAW
from cascade.types import Ask, Confidence, Fits, Keep, Outcome, Step

Fields = Mapping[str, object]

_POINT = re.compile(r"^\s*(\d+)[.)]\s*(.+?)\s*$", re.MULTILINE)
_UNSUITED = re.compile(
    r"```|\b(code|function|program|prove|calculate|compute|solve|translate|summari[sz]e|step by step|poem|story|json)\b"
    r"|=\s*\?|\\frac|choices:",
    re.IGNORECASE,
)
_SUITED = re.compile(
    r"\b(ways|tips|reasons|advantages|differences|benefits|causes|factors|types|compare|list|pros and cons|overview|"
    r"explain|describe|discuss|what are|how can|suggest)\b",
    re.IGNORECASE,
)


def suits_skeleton(question: str) -> bool:
    """Whether the answer is likely a list of points that don't need each other (the paper's router, as a rule)."""
    return bool(_SUITED.search(question)) and not _UNSUITED.search(question)


@dataclass(frozen=True, slots=True)
class Refine:
    """Draft, then mend while the answer shows less than `good` and rounds are left; the best is kept."""

    draft: Step
    prompt: Callable[[str], Fields]
    rounds: int = 1
    good: float = 0.8
    confidence: Confidence = RAW

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        best = self.best(history)
        if best is None:
            return Keep(None, "failed") if history else Ask((self._read(self.draft),), (self.draft,), streams=False)
        if confidence_in(history[best], self.confidence) >= self.good or len(history) > self.rounds:
            return Keep(best)
        mended = self._read(self.draft, self.prompt(history[best].evidence.said))
        left = self.rounds - len(history)
        return Ask((mended,), (self.draft,) * left, streams=False) if fits(mended) else Keep(best, "exhausted")

    def best(self, history: Sequence[Outcome]) -> int | None:
        return best_answer(history, self.confidence)

    def _read(self, step: Step, fields: Fields | None = None) -> Step:
        return structs.replace(step, overrides={**step.overrides, **(fields or {})}, reads_confidence=True)


def points_of(outline: str, most: int = 10) -> list[str]:
    """The titles of a numbered list; empty where it is none of two points or more, numbered from one on."""
    found = _POINT.findall(outline)
    rising = [title for place, (number, title) in enumerate(found, 1) if int(number) == place]
    return rising[:most] if len(rising) >= 2 and len(rising) == len(found) else []


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Outline first, then every point beside each other; plainly where that does not work out."""

    step: Step
    outline: Fields
    point: Callable[[str, int, str], Fields]
    """Outline, number and title to the fields of the request for that point."""

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        if not history:
            return Ask((self._with(self.outline),), (self.step,), streams=False)
        if any(outcome.failure for outcome in history):
            return self._plainly(history, fits)
        outline = history[0].evidence.text
        titles = points_of(outline)
        if not titles:
            return self._plainly(history, fits)
        done = len(history) - 1
        if done < len(titles):
            asks = [self._with(self.point(outline, n, titles[n - 1])) for n in range(done + 1, len(titles) + 1)]
            return Ask(tuple(asks), (self.step,), streams=False) if fits(asks[0]) else Keep(None, "budget")
        return Keep(len(history) - 1, text=_joined(titles, [o.evidence.text for o in history[1 : len(titles) + 1]]))

    def best(self, history: Sequence[Outcome]) -> int | None:
        """An outline or a point is no answer; only a plain one is."""
        return None

    def _plainly(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        return Ask((self.step,)) if fits(self.step) and not self._asked_plainly(history) else Keep(None, "failed")

    def _asked_plainly(self, history: Sequence[Outcome]) -> bool:
        """The outline was unusable or something failed, and since then an attempt has failed again."""
        return sum(bool(outcome.failure) for outcome in history) > 1

    def _with(self, fields: Fields) -> Step:
        return structs.replace(self.step, overrides={**self.step.overrides, **fields})


def _joined(titles: Sequence[str], texts: Sequence[str]) -> str:
    return "\n".join(
        f"{n}. {title.rstrip(':')}: {text.strip()}"
        for n, (title, text) in enumerate(zip(titles, texts, strict=True), 1)
    )
