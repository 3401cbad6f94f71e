"""Questions with known answers, and the hold-out."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.tasks import (
    HELD_OUT_ONE_IN,
    KINDS,
    Question,
    booking,
    held_out_questions,
    is_held_out,
    is_right,
    training_questions,
)

seeds = st.integers(min_value=0, max_value=2**32)


@given(seeds)
def test_no_question_is_in_both_halves(seed: int) -> None:
    """Questions in training are never held out, and the other way round."""
    assert all(is_held_out(question) for question in held_out_questions(20, seed))
    for kind in KINDS:
        assert not any(is_held_out(q) for q in itertools.islice(training_questions(kind, seed), 20))


def test_the_hold_out_follows_the_meaning_and_not_the_wording() -> None:
    """Two wordings of one booking are both held out, or both in training."""
    by_item: dict[str, set[bool]] = {}
    rng = random.Random(0)
    for _ in range(5000):
        question = booking(rng)
        by_item.setdefault(question.item, set()).add(is_held_out(question))
    assert all(len(sides) == 1 for sides in by_item.values())


@pytest.mark.parametrize("kind", KINDS)
def test_about_one_in_ten_is_held_out(kind: str) -> None:
    """That holds for each kind of item."""
    rng = random.Random(1)
    items = {question.item: is_held_out(question) for question in (KINDS[kind](rng) for _ in range(4000))}
    assert 0.5 / HELD_OUT_ONE_IN < sum(items.values()) / len(items) < 1.7 / HELD_OUT_ONE_IN


@given(seeds)
def test_the_same_seed_gives_the_same_questions(seed: int) -> None:
    """The seed determines kinds, items and wordings."""
    assert held_out_questions(10, seed) == held_out_questions(10, seed)


@given(seeds)
def test_answers_of_sums_and_comparisons_are_right(seed: int) -> None:
    rng = random.Random(seed)
    sum_ = KINDS["total"](rng)
    _, a, b = sum_.item.split()
    assert int(sum_.answer[::-1]) == int(a) + int(b)
    larger = KINDS["larger"](rng)
    _, a, b = larger.item.split()
    assert int(larger.answer) == max(int(a), int(b))


@given(seeds)
def test_a_booking_is_json_of_the_prompts_details(seed: int) -> None:
    """Day and hour of the answer are those of the item."""
    question = booking(random.Random(seed))
    _, people, day, time = question.item.split()
    answer = json.loads(question.answer)
    hour = int(time[:-2]) % 12 + (12 if time.endswith("pm") else 0)
    assert answer == {"n": int(people), "day": day[:3], "h": hour}


def test_json_is_compared_by_value_and_text_by_characters() -> None:
    """Spacing in JSON doesn't matter; a wrong value, prose or broken JSON is wrong."""
    question = Question("booking", "", "", '{"n":2,"day":"fri","h":19}')
    assert is_right(question, ' {"h": 19, "n": 2, "day": "fri"}\n')
    assert not is_right(question, '{"n":3,"day":"fri","h":19}')
    assert not is_right(question, '{"n":2')
    assert is_right(Question("total", "", "", "21"), " 21\n")
    assert not is_right(Question("total", "", "", "21"), "12")


def test_shares_weigh_the_kinds() -> None:
    """A kind with a share of zero is never asked."""
    kinds = {question.kind for question in held_out_questions(50, shares={"total": 1.0, "booking": 0.0})}
    assert kinds == {"total"}
