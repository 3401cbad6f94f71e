"""A narrow route's answers can be learnt; a wide one's are refused."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.approximate import NotNarrow, approximate
from cascade.confidence import confidence

LABELS = ("billing", "shipping", "returns")


def narrow(n: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=n)
    return np.eye(3)[kind] * 3 + rng.normal(size=(n, 3)), [LABELS[k] for k in kind]


def test_a_narrow_route_is_learnt():
    """Fresh queries get the big model's answer nearly always, and a wrong one is less sure."""
    model = approximate(*narrow(400))
    vectors, truth = narrow(300, seed=1)
    given = [model.answer(v) for v in vectors]
    right = np.array([text == want for (text, _), want in zip(given, truth, strict=True)])
    sure = np.array([p for _, p in given])
    assert right.mean() > 0.9 and sure[right].mean() > sure[~right].mean()


def test_it_stands_in_a_cascade_with_its_probability():
    """The evidence's confidence is the probability of the answer."""
    model = approximate(*narrow(400))
    vector = narrow(1, seed=2)[0][0]
    text, p = model.answer(vector)
    evidence = model.evidence(vector)
    assert evidence.text == text and confidence(evidence) == pytest.approx(p)


@pytest.mark.parametrize("answers", [["same"] * 50, [f"essay number {i}" for i in range(50)]])
def test_a_route_without_a_short_list_is_refused(answers: list[str]):
    """One answer teaches nothing; fifty different ones can't be learnt."""
    with pytest.raises(NotNarrow):
        approximate(np.random.default_rng(0).normal(size=(50, 4)), answers)


def test_a_route_half_narrow_is_refused():
    """A list that covers too little of the log would answer what it never saw."""
    vectors, answers = narrow(100)
    with pytest.raises(NotNarrow, match="cover"):
        approximate(vectors, [a if i % 2 else f"unique {i} text" for i, a in enumerate(answers)])
