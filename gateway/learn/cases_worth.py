"""What solved cases are worth: scores of requests that were shown some, beside those they were withheld from by chance.

Compared are whole requests, as drawn: the score of what the client got, whichever model of a cascade or fallback gave
it, for a later one may be shown cases too, and cases decide how often it is asked. So the difference is what showing
cases does to the route, a longer prompt included. Left out: answers of the cache, which no model was shown anything
for; requests that no cases were found for; and those whose cases could not have been withheld, or not been shown
(callers that opted out of exploration, a share of 0 or 1), for they may differ in more than the cases. What nobody
scored says nothing, as everywhere: where only bad answers are scored, both sides look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.calibrate import betting_p
from gateway.learn.dataset import Log
from routers import ope
from routers.intervals import Interval, mean_interval
from routers.ope import Rounds

LEAST_ROUNDS = 10
"""Least number of scored rounds on each side for an interval."""


@dataclass(frozen=True, slots=True)
class CasesWorth:
    """Mean scores with and without solved cases; None where no round of that side was scored."""

    shown: float | None = None
    withheld: float | None = None
    gained: Interval | None = None
    """Shown minus withheld, with a 95 % interval; None where one side has too few rounds."""
    shown_rounds: int = 0
    withheld_rounds: int = 0


def scores_by_cases(log: Log) -> CasesWorth:
    """The comparison over scored rounds for which cases were found. Rounds are weighted by the inverse probability of
    their side (SNIPS), so that a change of the withheld share introduces no bias; with a constant share the means are
    plain ones.
    """
    rounds = _compared(log)
    if rounds is None:
        return CasesWorth()
    with_cases, without = _mean(rounds, 1), _mean(rounds, 0)
    gained, counts = None, np.bincount(rounds.action, minlength=2)
    if with_cases is not None and without is not None and counts.min() >= LEAST_ROUNDS:
        reach = _difference(rounds)
        gained = Interval(with_cases - without, reach.low, reach.high)
    return CasesWorth(with_cases, without, gained, int(counts[1]), int(counts[0]))


def harmless_p(log: Log) -> float:
    """P-value of "cases never lower the expected score", the least since the log begins: over all looks at a log that
    grows, it falls to a level with at most that probability.

    A betting test on each round's score, less the mean of those before it, times its side over how likely that was:
    under the hypothesis the mean of that, given the past, is 0 or less, however scores drift.
    """
    rounds = _compared(log)
    if rounds is None:
        return 1.0
    count = np.arange(1, len(rounds.reward) + 1)
    before = np.r_[0.5, ((0.5 + np.cumsum(rounds.reward)) / (count + 1.0))[:-1]]
    side = np.where(rounds.action == 0, 1.0, -1.0) * rounds.logged.min(1) / rounds.propensity
    return betting_p((rounds.reward - before) * side, 1.0, mixed=False)


def _mean(rounds: Rounds, side: int) -> float | None:
    mine = rounds.action == side
    return float(np.average(rounds.reward[mine], weights=1.0 / rounds.propensity[mine])) if mine.any() else None


def _difference(rounds: Rounds) -> Interval:
    """With a right and a wrong answer added to each side (Agresti & Caffo 2000): a few answers that are all right would
    seem to leave no doubt.
    """
    added = Rounds(
        np.r_[rounds.action, 0, 0, 1, 1], np.r_[rounds.reward, 0.0, 1.0, 0.0, 1.0],
        np.vstack([rounds.logged, np.tile(rounds.logged.mean(0), (4, 1))]),
    )  # fmt: skip
    always, never = np.zeros_like(added.logged), np.zeros_like(added.logged)
    always[:, 1] = never[:, 0] = 1.0
    unread = np.zeros_like(always)
    values = ope.snips(added, always, unread) - ope.snips(added, never, unread)
    weights = np.maximum(ope.importance(added, always), ope.importance(added, never))
    return mean_interval(values, effective=max(ope.effective_rounds(weights), 4.0))


def _compared(log: Log) -> Rounds | None:
    """The compared rounds with two actions, 0: withheld, 1: shown; None where there are none."""
    drawn = [one.cases_shown is not None and 0.0 < one.cases_withheld < 1.0 for one in log.records]
    log = log.rows(log.labelled & np.array(drawn, bool))
    if not len(log):
        return None
    shown = np.array([bool(record.cases_shown) for record in log.records], np.intp)
    withheld = np.array([record.cases_withheld for record in log.records])
    return Rounds(shown, log.score, np.column_stack([withheld, 1.0 - withheld]))
