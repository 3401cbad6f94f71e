from __future__ import annotations

from math import log

import numpy as np
import pytest

from routers.prior import expected
from routers.types import Candidate


def test_skill_grows_with_the_logarithm_of_the_price() -> None:
    """A tenfold output price adds .35 ln 10 logits, and the mean over models is 1 less the difficulty. A model without
    an output price is ranked by its input price, and a free one as if it cost .02.
    """
    pool = [Candidate("a", 9.0, 0.4), Candidate("b", 9.0, 4.0), Candidate("c", 4.0), Candidate("free")]
    chance = expected(pool, difficulty=0.7)
    logits = np.log(chance / (1.0 - chance))
    assert logits[1] - logits[0] == pytest.approx(0.35 * log(10.0)) and logits[2] == pytest.approx(logits[1])
    assert logits[0] - logits[3] == pytest.approx(0.35 * log(0.4 / 0.02)) and logits.mean() == pytest.approx(1.0 - 0.7)
