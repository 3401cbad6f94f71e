"""Drafting by steps with the two shipped models themselves."""

from __future__ import annotations

import pytest

from gateway.tiny.steps import Writers, Written, report, stepwise, thriftiest, whole
from local_models.tasks import held_out_questions

QUESTIONS = held_out_questions(12, seed=3)


@pytest.fixture(scope="module")
def writers() -> Writers:
    return Writers()


def test_steps_that_are_always_taken_make_the_small_models_answer(writers: Writers) -> None:
    """Only an answer that ends exactly at a step's edge, without evidence, is written by the large model."""
    for question in QUESTIONS:
        by_steps, alone = stepwise(writers, question, 0.0), whole(writers, question, 0.0)
        assert by_steps.right == alone.right and alone.large_tokens == 0 and by_steps.large_tokens <= 1


def test_steps_that_are_never_taken_make_the_large_models_answer(writers: Writers) -> None:
    """Each token is written by both models, and the large one's is kept."""
    for question in QUESTIONS:
        by_steps, alone = stepwise(writers, question, 2.0), whole(writers, question, 2.0)
        assert (by_steps.right, by_steps.large_tokens) == (alone.right, alone.large_tokens)
        assert by_steps.all_tokens > by_steps.large_tokens


def test_the_thriftiest_threshold_reaches_the_target() -> None:
    """It is the one with the fewest large-model tokens among those that reach the target; the highest where none does.
    """
    few, many = Written(True, 1, 9), Written(True, 5, 9)
    tried = {0.5: [Written(False, 0, 9), few], 0.7: [few, few], 0.9: [many, many]}
    assert thriftiest(tried, 1.0) == 0.7 and thriftiest(tried, 0.5) == 0.5 and thriftiest(tried, 1.1) == 0.9


def test_the_report_counts_the_large_models_tokens() -> None:
    """Drafting needs fewer tokens of the large model than it writes alone, and is compared with sending whole answers.
    """
    found = report(QUESTIONS[:6], QUESTIONS[6:], 0.99)
    assert 0.0 <= found["by_steps"]["large_token_share"]["value"] <= 1.0
    assert found["by_steps"]["all_token_ratio"]["value"] > found["by_steps"]["large_token_share"]["value"]
    assert set(found["by_steps"]) == set(found["by_answers"])
