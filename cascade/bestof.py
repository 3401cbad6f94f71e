"""Best-of-n with an adaptive number of samples: they are drawn while the next one's expected gain exceeds its price.

After b rejected samples the chance that the next one is right is p, so the b-th sample of a batch gains p (1 - p)^(b-1)
(Damani et al. 2024, Learning How Hard to Think). p is not known: it starts from the router's estimate and falls with
every rejected sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade.climb import best_answer, confidence_in
from cascade.confidence import RAW
from cascade.types import Ask, Confidence, Fits, Keep, Outcome, Step


@dataclass(frozen=True, slots=True)
class BestOf:
    """Sample, judge, and stop when another sample is worth less than it costs."""

    tries: tuple[Step, ...]
    chance: float
    """The router's estimate that one sample is right."""
    price_usd: float
    """Expected cost of a sample."""
    worth_usd: float
    """What a right answer is worth."""
    weight: float = 4.0
    """How many samples the estimate counts for against what the samples show."""
    good: float = 0.9
    """Confidence that ends the search at once."""
    confidence: Confidence = RAW

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        left = self.tries[len(history) :]
        best = self.best(history)
        reached = confidence_in(history[best], self.confidence) if best is not None else 0.0
        if best is not None and (
            reached >= self.good or self._gain(history, reached) * self.worth_usd <= self.price_usd
        ):
            return Keep(best)
        if left and fits(left[0]):
            return Ask(left[:1], left[1:], streams=False)
        return Keep(best, "failed" if best is None else "exhausted")

    def best(self, history: Sequence[Outcome]) -> int | None:
        return best_answer(history, self.confidence)

    def _gain(self, history: Sequence[Outcome], reached: float) -> float:
        """Expected rise of the best answer's chance by one more sample."""
        shown = [confidence_in(o, self.confidence) for o in history if not o.failure]
        p = (self.chance * self.weight + sum(shown)) / (self.weight + len(shown))
        return p * (1.0 - reached)
