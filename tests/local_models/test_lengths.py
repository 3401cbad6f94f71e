"""Predicting the length of an answer."""

import random

from hypothesis import given
from hypothesis import strategies as st

from local_models.lengths import LengthPredictor
from local_models.request import Request


def request(ids: list[int], most: int = 400) -> Request:
    return Request("a", tuple(ids), most)


def test_without_data_the_whole_limit_is_reserved() -> None:
    """That holds until enough answers were seen."""
    assert LengthPredictor().predict(request([1, 2, 3])) == 400


def test_kinds_of_prompts_with_short_and_long_answers_are_separated() -> None:
    rng = random.Random(0)
    predictor = LengthPredictor()

    def prompt(kind: int) -> list[int]:
        return [kind, kind + 1, *(rng.randrange(50, 60) for _ in range(6)), kind + 2]

    for _ in range(150):
        predictor.learn(request(prompt(5)), rng.randint(3, 7))
        predictor.learn(request(prompt(20)), rng.randint(100, 120))
    short, long = request(prompt(5)), request(prompt(20))
    assert predictor.predict(short) <= 16 < 100 <= predictor.predict(long) <= 256


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=80), st.integers(1, 5000), st.integers(1, 5000))
def test_a_prediction_stays_within_the_limit(ids: list[int], most: int, said: int) -> None:
    """It is at least one token, and at most the requested limit."""
    predictor = LengthPredictor(trust_after=0)
    predictor.learn(request(ids, most), said)
    assert 1 <= predictor.predict(request(ids, most)) <= most
