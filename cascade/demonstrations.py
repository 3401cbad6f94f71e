"""Solved cases as demonstrations (EcoAssistant) and how many a question needs (DynaICL).

A cheap model is shown what was solved before on the nearest questions; hard questions get more, easy ones none, for
every demonstration is paid for in tokens. Cases never cross tenants: a store holds one tenant's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """A question with an answer that was checked or praised."""

    question: str
    answer: str
    vector: Vector
    """Unit length."""


@dataclass(slots=True)
class Solved:
    """The latest solved cases of one tenant, nearest first on request."""

    most: int = 1000
    least_similarity: float = 0.5
    _cases: deque[Case] = field(init=False)

    def __post_init__(self) -> None:
        self._cases = deque(maxlen=self.most)

    def __len__(self) -> int:
        return len(self._cases)

    def remember(self, case: Case) -> None:
        """Keep a solved case; the oldest makes room. A vector of no length is refused."""
        length = float(np.linalg.norm(case.vector))
        if not np.isfinite(length) or length == 0.0:
            raise ValueError("a case needs a vector of finite length")
        self._cases.append(Case(case.question, case.answer, np.asarray(case.vector / length, np.float32)))

    def nearest(self, vector: Vector, k: int, exclude: str = "") -> list[Case]:
        """At most k cases that are similar enough, the nearest last, where a model pays most attention to it."""
        cases = [case for case in self._cases if case.question != exclude]
        length = float(np.linalg.norm(vector))
        if k <= 0 or not cases or length == 0.0:
            return []
        similarity = np.stack([case.vector for case in cases]) @ (vector / length)
        order = [
            i for i in np.argsort(-similarity, kind="stable")[:k].tolist() if similarity[i] >= self.least_similarity
        ]
        return [cases[i] for i in reversed(order)]


def demonstrations_for(quality: float, most: int = 5, enough: float = 0.9) -> int:
    """How many demonstrations a question gets from its estimated quality: none where it is `enough`, `most` at zero."""
    if not 0.0 < enough <= 1.0:
        raise ValueError(f"enough must be in (0, 1], not {enough}")
    short = max(0.0, enough - (quality if quality == quality else 0.0)) / enough
    return min(most, int(np.ceil(most * short)))
