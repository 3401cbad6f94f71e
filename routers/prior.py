"""What to expect of a model about which nothing was learned: more expensive models tend to be better, and harder
queries to be answered worse.

`quality = sigmoid(skill - difficulty)`, where a model's skill grows with the logarithm of its output price and its
spread among the candidates. It is a prior, with a wide standard deviation, that feedback is meant to replace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from routers.types import Candidate

MEAN_SKILL = 1.0
"""Logit of a middling model's score on a middling query."""
SKILL_PER_LOG_PRICE = 0.35
PRIOR_SD = 0.2
FREE_USD_PER_MTOK = 0.02
"""A free model is ranked as if it had this price."""


def skills(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Skill in logits of each candidate, by its price relative to the others'."""
    price = np.array([c.output_usd_per_mtok or c.input_usd_per_mtok for c in candidates])
    log = np.log(np.maximum(price, FREE_USD_PER_MTOK))
    return np.asarray(MEAN_SKILL + SKILL_PER_LOG_PRICE * (log - log.mean()))


def expected(candidates: Sequence[Candidate], difficulty: float = 0.0) -> NDArray[np.float64]:
    """Prior mean quality of each candidate on a query of that difficulty (logits)."""
    return np.asarray(1.0 / (1.0 + np.exp(difficulty - skills(candidates))))
