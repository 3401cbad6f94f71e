"""Limits the share of a route's scores that one API key may give.

A caller that sends many requests and scores them falsely could teach a route whatever it likes. So a key's scores are
thinned at random, always the same way for an answer, until they are at most the given share, or half where two keys
give scores. A key that gives scores alone is not limited, because there are no others to compare it with.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gateway.journal.record import DecisionRecord
from gateway.learn.rounds import drawn_of

if TYPE_CHECKING:
    from gateway.learn.dataset import Log

LATEST = 500
"""Latest scores by which a worker compares keys."""


def bounded(log: Log, most: float) -> Log:
    """The log without the scores beyond each key's share; `most` is that share, in (0, 1]."""
    labelled = np.flatnonzero(log.labelled)
    speakers, speaker, counts = np.unique(
        [speaker_of(log.records[i]) for i in labelled.tolist()], return_inverse=True, return_counts=True
    )
    if most >= 1.0 or len(speakers) < 2:
        return log
    share, cap = max(most, 1.0 / len(speakers)), int(counts.max())
    while (fewer := int(share * np.minimum(counts, cap).sum() + 1e-9)) < cap:
        cap = fewer
    score = log.score.copy()
    for loud in np.flatnonzero(counts > cap).tolist():
        said = labelled[speaker == loud]
        lots = np.argsort([_lot(log.records[i]) for i in said.tolist()])
        score[said[lots[cap:]]] = np.nan
    return replace(log, score=score)


class KeyShares:
    """Counts the latest scores of one route by key, in one worker."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._latest: deque[str] = deque(maxlen=LATEST)
        self._counts = Counter[str]()

    def heard(self, record: DecisionRecord) -> bool:
        """Count a score of this answer, and return whether it may be learnt from."""
        if len(self._latest) == LATEST:
            self._counts[self._latest[0]] -= 1
        speaker = speaker_of(record)
        self._latest.append(speaker)
        self._counts[speaker] += 1
        self._counts += Counter()  # removes keys without a recent score
        own, others = self._counts[speaker], len(self._latest) - self._counts[speaker]
        share = max(self.most, 1.0 / len(self._counts))
        return share >= 1.0 or _lot(record) * own <= share / (1.0 - share) * others


def speaker_of(record: DecisionRecord) -> str:
    return f"{record.tenant}\0{record.key_id}"


def _lot(record: DecisionRecord) -> float:
    return drawn_of(f"voice {record.id}")
