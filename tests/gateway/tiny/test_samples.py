"""Samples of the small shipped model: how one is picked, and how many each question gets."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.tiny.samples import (
    SAMPLES,
    Sampled,
    Way,
    as_graded,
    compared,
    draw,
    efficiency,
    in_advance,
    picked,
    scorer,
)
from gateway.tiny.steps import LARGE, Writers
from local_models.tasks import held_out_questions


def drawn(seed: int, *, informed: bool = True, n: int = 240) -> Sampled:
    """Questions that are always right, right one time in eight, or never; each kind has its own hidden state."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    right = (rng.random((n, SAMPLES)) < np.array([1.0, 0.125, 0.0])[kind][:, None]).astype(float)
    verifier = np.where(right > 0, -0.1, -8.0) if informed else rng.normal(-4.0, 2.0, right.shape)
    seen = np.eye(3)[kind] + rng.normal(0.0, 0.05, (n, 3))
    texts = [["right" if one else f"wrong {k}" for k, one in enumerate(row)] for row in right.tolist()]
    return Sampled(texts, right, np.full(right.shape, 5.0), verifier, rng.normal(size=right.shape), seen)


def test_the_best_scored_of_the_first_k_is_picked() -> None:
    """Of equal scores the first is picked; a better one that comes later is picked from then on."""
    right, score = np.array([[1.0, 0.0, 0.0, 1.0]]), np.array([[-2.0, -2.0, -1.0, -0.5]])
    assert picked(right, score).tolist() == [[1.0, 1.0, 0.0, 1.0]]


def test_a_budget_goes_where_another_sample_gains_most_per_token() -> None:
    """Neither surely right nor hopeless questions get more; of equally hard ones the shorter does; the budget is never
    exceeded.
    """
    chance, tokens = np.array([0.99, 0.3, 0.3, 1e-6]), np.array([5.0, 5.0, 10.0, 5.0])
    assert in_advance(chance, tokens, 25.0).tolist() == [1, 1, 1, 1]
    assert in_advance(chance, tokens, 35.0).tolist() == [1, 3, 1, 1]
    for budget in (47.0, 77.0, 100.0):
        counts = in_advance(chance, tokens, budget)
        assert 25.0 < counts @ tokens <= budget and counts[1] > counts[2] > counts[0] == counts[3] == 1
    assert in_advance(chance, tokens, 1e9).tolist() == [SAMPLES] * 4


def test_sampling_ends_once_the_verifier_is_sure_or_hope_is_gone() -> None:
    """It goes on as long as the rate per token allows; at rate 0 it ends only with certainty."""
    grades = np.full((3, SAMPLES), 0.01)
    grades[0, 2] = 0.99
    chance, tokens = np.array([0.5, 0.5, 1e-4]), np.full(3, 5.0)
    counts = as_graded(grades, chance, tokens, 0.01)
    assert counts[0] == 3 < counts[1] and counts[2] == 1
    assert as_graded(grades, chance, tokens, 1.0).tolist() == [1, 1, 1]
    assert as_graded(grades, chance, tokens, 0.0).tolist() == [SAMPLES] * 3


def test_efficiency_is_tokens_at_equal_accuracy() -> None:
    """Between two points of the curve it is interpolated linearly; it is undefined where the accuracy is never reached.
    """
    half, most = np.tile([1.0, 0.0], 50), np.tile([1.0, 1.0, 1.0, 0.0], 25)
    fixed = Way(most, np.full(100, 40.0))
    assert efficiency(fixed, [Way(half, np.full(100, 5.0)), Way(most, np.full(100, 10.0))])["value"] == pytest.approx(4)
    full = Way(np.ones(100), np.full(100, 15.0))
    assert efficiency(fixed, [Way(half, np.full(100, 5.0)), full])["value"] == pytest.approx(4)
    assert efficiency(fixed, [Way(half, np.full(100, 5.0))])["value"] is None


def test_allocation_by_difficulty_beats_as_many_for_all() -> None:
    """Where a third of the questions is worth sampling, it has more accuracy at equal tokens and fewer tokens at equal
    accuracy.
    """
    found = compared(drawn(0), drawn(1))
    assert found["samples"]["16"]["by_verifier"]["value"] == found["samples"]["16"]["some_right"]["value"] > 0.55
    for way in ("in_advance", "as_graded"):
        for k in ("4", "8"):
            assert found[way][k]["tokens"]["value"] <= found["samples"][k]["tokens"]["value"]
            assert found[way][k]["accuracy_minus_best_of"]["low"] > 0 and found[way][k]["efficiency"]["low"] > 1.3
    assert found["as_graded"]["8"]["efficiency"]["value"] > found["in_advance"]["8"]["efficiency"]["value"]


def test_a_verifier_that_knows_nothing_gains_nothing() -> None:
    """Accuracy stays the same although more samples contain a right one more often."""
    told = compared(drawn(0, informed=False), drawn(1, informed=False))["samples"]
    assert told["16"]["some_right"]["value"] > told["1"]["some_right"]["value"] + 0.2
    assert abs(told["16"]["by_verifier"]["value"] - told["1"]["by_verifier"]["value"]) < 0.1


def test_the_large_model_picks_right_answers_of_the_small_one() -> None:
    """Real samples differ, are whole, and the verifier picks nearly as well as one that knows the answer."""
    questions = [q for q in held_out_questions(60, seed=3) if q.kind == "total"][:16]
    writers = Writers()
    one, other = draw(writers, questions), draw(writers, questions, first_seed=16 * SAMPLES)
    assert any(len(set(texts)) > 1 for texts in one.texts) and one.texts != other.texts
    assert one.texts == draw(writers, questions).texts
    assert (one.tokens >= [[len(text) for text in texts] for texts in one.texts]).all()
    best = picked(one.right, one.verifier)
    assert best[:, -1].sum() >= one.right.max(1).sum() - 1 and best[:, -1].mean() > best[:, 0].mean() + 0.1


def test_a_beginning_of_an_answer_is_no_answer() -> None:
    """The beginning of an answer is scored lower than the whole answer."""
    writers = Writers()
    for question in held_out_questions(6, seed=3):
        prompt = tuple(writers.codec.encode_chat([{"role": "user", "content": question.prompt}]))
        whole, begun = scorer(writers, LARGE)(prompt, [question.answer, question.answer[:-1]])
        assert whole > begun + 2.0
