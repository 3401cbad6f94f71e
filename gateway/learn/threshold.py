"""Estimates the cost and quality of another `accept_at`: only answers between the two thresholds change.

Their outcome is estimated from twins: rounds of the same log with similar first confidence that were decided the other
way (because the threshold was different once, or a judge scored the answer that wasn't kept). With too few twins there
is a refusal. Only the confidence of twins is similar, nothing else is matched.

Kept and escalated answers may be scored at different rates: each scored answer counts for as many as its side has per
scored one. Within a side, scored answers stand for all (see `gateway.learn.whatif`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from gateway.journal.record import AttemptRecord, DecisionRecord
from gateway.learn.dataset import Log
from gateway.learn.whatif import FIGURES, Answer, Figure
from routers import ope
from routers.intervals import Z95, Interval, mean_interval
from routers.ope import Array, Refusal

MIN_TWINS = 30


@dataclass(frozen=True, slots=True)
class Climbs:
    """The rounds that could escalate, with the first answer's confidence."""

    place: NDArray[np.intp]
    """Index in the log."""
    confidence: Array
    kept: NDArray[np.bool_]
    """Whether the first answer was kept."""
    first: tuple[AttemptRecord, ...]


def climbs(log: Log) -> Climbs:
    found = [(i, one) for i, record in enumerate(log.records) if (one := _first(record)) is not None]
    confidence = [one.evidence.confidence if one.evidence else None for _, one in found]
    kept = [log.records[i].answered_model == one.model for i, one in found]
    return Climbs(
        np.array([i for i, _ in found], np.intp),
        np.array([np.nan if value is None else value for value in confidence], np.float64),
        np.array(kept, bool),
        tuple(one for _, one in found),
    )


def _first(record: DecisionRecord) -> AttemptRecord | None:
    """The first model's answer, where a second model stood ready and the first could be told from it."""
    if len(record.plan) < 2:
        return None
    answer = next((one for one in record.attempts if one.model == record.plan[0] and not one.failure), None)
    known = answer is not None and answer.evidence is not None and answer.evidence.confidence is not None
    return answer if known else None


def at_threshold(log: Log, accept_at: float) -> Answer:
    """The log with every first answer kept if, and only if, its confidence reaches `accept_at`."""
    found = climbs(log)
    would_keep = found.confidence >= accept_at
    changed = would_keep != found.kept
    told = {"score": log.score, "cost_usd": log.cost_usd, "latency_s": log.latency_s}
    figures: dict[str, Figure] = {}
    refusals: dict[str, Refusal] = {}
    for name, reward in zip(FIGURES, told.values(), strict=True):
        answer = _valued(log, found, would_keep, changed, reward, name)
        if isinstance(answer, Figure):
            figures[name] = answer
        elif answer is not None:
            refusals[name] = answer
    escalated = {"kept": float(found.kept.mean()) if len(found.kept) else 1.0}
    then = {"kept": float(would_keep.mean()) if len(found.kept) else 1.0}
    return Answer(len(log), int(log.labelled.sum()), float(len(log)), figures, refusals, escalated, then)


def _valued(
    log: Log, found: Climbs, would_keep: NDArray[np.bool_], changed: NDArray[np.bool_], reward: Array, name: str
) -> Figure | Refusal | None:
    """The weighted mean over the rounds whose reward is known: unchanged rounds count as they were, changed ones by the
    mean of their twins. Changed rounds of unknown reward don't count either, or they would outweigh unchanged ones.
    """
    known = np.isfinite(reward)
    if not known.any():
        return None
    weight = _weights(found, known)
    then, error = reward.copy(), 0.0
    for keeping in (True, False):
        band = changed & (would_keep == keeping)
        if not band.any():
            continue
        twins, counted = _twins(found, band, keeping, reward, name), float(weight[found.place[band]].sum())
        if len(twins) < MIN_TWINS or not counted:
            return _refused(log, found, band, len(twins), name)
        then[found.place[band]] = twins.mean()
        error += counted * float(twins.std(ddof=1)) / sqrt(len(twins))
    now, value, gap = (_mean(one[known], weight[known]) for one in (reward, then, then - reward))
    stretch = Z95 * error / float(weight.sum())
    value, gap = (Interval.around(one.value, one.half_width + stretch) for one in (value, gap))
    return Figure(now, value, gap, value)


def _weights(found: Climbs, known: NDArray[np.bool_]) -> Array:
    """The number of rounds that each round of known reward stands for, (n,): those of its side (kept, escalated, or
    unable to escalate) per known one. Zero where the reward is unknown.
    """
    side = np.zeros(len(known), np.intp)
    side[found.place] = np.where(found.kept, 1, 2)
    rounds, seen = np.bincount(side, minlength=3), np.bincount(side[known], minlength=3)
    return np.where(known, (rounds / np.maximum(seen, 1))[side], 0.0)


def _mean(values: Array, weight: Array) -> Interval:
    """The weighted mean, with the interval of its linearisation: weights are taken as given."""
    mean = float(np.average(values, weights=weight))
    return mean_interval(mean + weight / weight.mean() * (values - mean))


def _twins(found: Climbs, band: NDArray[np.bool_], keeping: bool, reward: Array, name: str) -> Array:
    """Rewards of rounds with confidences as in the band that were decided as the band would be."""
    low, high = float(found.confidence[band].min()), float(found.confidence[band].max())
    alike = (found.confidence >= low) & (found.confidence <= high) & (found.kept == keeping)
    values = reward[found.place[alike]]
    values = values[np.isfinite(values)]
    if keeping:  # the first answer was there to be seen, kept or not
        seen = [_alone(found.first[i], name) for i in np.flatnonzero(band)]
        values = np.append(values, [value for value in seen if value is not None])
    return np.asarray(values, np.float64)


def _alone(answer: AttemptRecord, name: str) -> float | None:
    """The named quantity of the first answer alone; None where it is unknown."""
    if name == "quality":
        return answer.evidence.judged if answer.evidence else None
    return answer.cost_nanousd / 1e9 if name == "cost_usd" else answer.latency_s


def _refused(log: Log, found: Climbs, band: NDArray[np.bool_], twins: int, name: str) -> Refusal:
    share, missing = float(band.sum()) / len(log), max(MIN_TWINS - twins, 0)
    price = float(np.mean(log.cost_usd[found.place[band]]))
    overlap = ope.Overlap(len(log), float(twins), share)
    reason = f"{share:.0%} of the answers would change sides, "
    reason += f"{twins} alike were ever decided so" if missing else f"none of them has a known {name.split('_')[0]}"
    return Refusal(reason, overlap, missing, round(missing / max(share, 1e-9)), missing * price)
