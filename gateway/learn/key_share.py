"""How far what one API key says may move what a route learns: no further than a share of all that is said.

Who sends many requests and scores them falsely teaches a route what suits it. Its words are thinned by lot, which stays
the same for an answer, until they are at most that share; where two keys speak, at most half. Refuses to bound a key
that speaks alone: there is nobody to hold its words against.
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
"""Words that a worker compares keys by."""


def bounded(log: Log, most: float) -> Log:
    """The log without the scores that pass a key's share."""
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
    """Whose words a worker heard lately on one route."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._latest: deque[str] = deque(maxlen=LATEST)
        self._counts = Counter[str]()

    def heard(self, record: DecisionRecord) -> bool:
        """Whether a score of this answer may teach; it is counted either way."""
        if len(self._latest) == LATEST:
            self._counts[self._latest[0]] -= 1
        speaker = speaker_of(record)
        self._latest.append(speaker)
        self._counts[speaker] += 1
        self._counts += Counter()  # nobody is kept who is silent now
        own, others = self._counts[speaker], len(self._latest) - self._counts[speaker]
        share = max(self.most, 1.0 / len(self._counts))
        return share >= 1.0 or _lot(record) * own <= share / (1.0 - share) * others


def speaker_of(record: DecisionRecord) -> str:
    return f"{record.tenant}\0{record.key_id}"


def _lot(record: DecisionRecord) -> float:
    return drawn_of(f"voice {record.id}")
