"""Several answers, one vote: samples of one model (self-consistency) or answers of several cheap ones (agreement).

Sampling stops as soon as the leader can't, or can hardly, be overtaken (adaptive consistency, Aggarwal et al. 2023);
a vote without a clear leader is escalated (mixture-of-thought cascades, Yue et al. 2024). Nothing streams before the
vote is over, except the escalation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from msgspec import structs

from cascade.agreement import agreement
from cascade.climb import best_answer
from cascade.confidence import RAW, vetoed
from cascade.types import Ask, Confidence, Evidence, Fits, Keep, Outcome, Step

SAME = 0.5
"""Least agreement at which two answers count as the same."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The answers so far in groups that say the same, largest first; members are indices of the history."""

    groups: tuple[tuple[int, ...], ...]
    votes: int

    @property
    def share(self) -> float:
        return len(self.groups[0]) / self.votes if self.votes else 0.0

    def lead(self) -> tuple[int, int]:
        """Votes of the first and of the second group."""
        sizes = [len(group) for group in self.groups[:2]] + [0, 0]
        return sizes[0], sizes[1]


def ballot(history: Sequence[Outcome]) -> Ballot:
    """Answers that came and were not vetoed, grouped by what they say. Each joins the first group it agrees with."""
    groups: list[list[int]] = []
    votes = 0
    for index, outcome in enumerate(history):
        if outcome.failure or vetoed(outcome.evidence):
            continue
        votes += 1
        home = next((g for g in groups if alike(history[g[0]].evidence, outcome.evidence)), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
    groups.sort(key=len, reverse=True)
    return Ballot(tuple(tuple(group) for group in groups), votes)


def alike(one: Evidence, other: Evidence) -> bool:
    """Whether two answers count as the same. Tool calls do only where they are equal, whatever text is with them."""
    return one.calls == other.calls and (bool(one.calls) or agreement(one.text, other.text) >= SAME)


def stays_ahead(first: int, second: int) -> float:
    """Chance that the leader is the more frequent answer of the two: P(Beta(first + 1, second + 1) > 1/2)."""
    n = first + second + 1
    return sum(comb(n, i) for i in range(first + 1)) / 2.0**n


@dataclass(frozen=True, slots=True)
class Vote:
    """Ask the ballots in turn, `at_once` at a time, until the vote is decided; then keep the leader or escalate."""

    ballots: tuple[Step, ...]
    """One step per sample: the same model several times, or several models."""
    escalate: Step | None = None
    certainty: float = 0.9
    """Stop when the leader stays ahead with this probability; with 1 only when it can't be overtaken any more."""
    accept_share: float = 0.5
    """Least share of the votes with which the leader is kept."""
    at_once: int = 1
    confidence: Confidence = RAW

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        cast = history[: len(self.ballots)]
        if len(history) > len(cast) or (self.escalate and any(o.model == self.escalate.model for o in history)):
            return self._end(history)
        vote = ballot(cast)
        left = self.ballots[len(cast) :]
        if left and not self._decided(vote, len(left)) and fits(left[0]):
            return Ask(left[: self.at_once], self._then(left[self.at_once :]), streams=False)
        if vote.votes and vote.share >= self.accept_share and self._clear(vote):
            return Keep(self._leader(vote, cast))
        if self.escalate is not None and fits(self.escalate):
            return Ask((self.escalate,))
        return self._end(history)

    def best(self, history: Sequence[Outcome]) -> int | None:
        vote = ballot(history)
        return self._leader(vote, history) if vote.votes else best_answer(history, self.confidence)

    def _end(self, history: Sequence[Outcome]) -> Keep:
        kept = self.best(history)
        return Keep(kept, "failed" if kept is None else "exhausted")

    def _then(self, left: tuple[Step, ...]) -> tuple[Step, ...]:
        return left if self.escalate is None else (*left, self.escalate)

    def _clear(self, vote: Ballot) -> bool:
        first, second = vote.lead()
        return first > second

    def _decided(self, vote: Ballot, left: int) -> bool:
        first, second = vote.lead()
        if first - second > left or (vote.votes and (first + left) / (vote.votes + left) < self.accept_share):
            return True
        return first + second > 1 and first > second and stays_ahead(first, second) >= self.certainty

    def _leader(self, vote: Ballot, history: Sequence[Outcome]) -> int:
        """The answer of the leading group that shows most."""
        group = vote.groups[0]
        best = best_answer([history[i] for i in group], self.confidence)
        return group[best or 0]


def samples(step: Step, k: int, temperature: float) -> tuple[Step, ...]:
    """k ballots of one model; each must be read and none may be the same draw."""
    return tuple(
        structs.replace(
            step, overrides={**step.overrides, "temperature": temperature, "seed": i}, reads_confidence=True
        )
        for i in range(k)
    )
