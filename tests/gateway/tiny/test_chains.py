"""Drafting by steps on problems of several steps, with the two shipped models themselves."""

from __future__ import annotations

import pytest

from gateway.tiny.chains import STEPS, Chain, Solvers, _question, by_answers, by_steps, chains, report
from gateway.tiny.steps import LARGE, SMALL, Writers
from local_models.tasks import is_held_out


@pytest.fixture(scope="module")
def solvers() -> Solvers:
    return Solvers(Writers())


def test_a_chain_comes_to_what_its_steps_do() -> None:
    """Each step adds to the number of the step before, or keeps the larger of both."""
    assert Chain(7, (("total", 5), ("larger", 30), ("larger", 2), ("total", 1))).answer == 31


def test_no_step_was_trained_on() -> None:
    """No shipped model was trained on a chain's sums or comparisons, and all numbers have at most three digits."""
    for chain in chains(20, 5):
        assert len(chain.steps) == STEPS and chain.answer < 1000
        for at, (kind, other) in enumerate(chain.steps):
            assert is_held_out(_question(kind, Chain(chain.first, chain.steps[:at]).answer, other))


def test_thresholds_at_the_ends_leave_all_to_one_model(solvers: Solvers) -> None:
    """By steps and by whole solutions alike, each step is written by the model that the threshold leaves it to."""
    for chain in chains(8, 6):
        for accept_at, model in ((0.0, SMALL), (2.0, LARGE)):
            steps, whole = by_steps(solvers, chain, accept_at), by_answers(solvers, chain, accept_at)
            assert steps.right == whole.right and (steps.large_tokens == 0) == (model == SMALL)
            wanted = sum(one.evidence.output_tokens for one in solvers.whole(model, chain))
            assert steps.large_tokens == whole.large_tokens == wanted * (model == LARGE)


def test_what_is_no_number_ends_a_solution(solvers: Solvers) -> None:
    """No step can follow it, so the solution is wrong and no model is asked again."""
    outcome = solvers.write(LARGE, chains(1, 6)[0], "abc")
    assert outcome.evidence.output_tokens == 0 and "####" in outcome.evidence.text


def test_steps_save_tokens_that_whole_solutions_and_chance_do_not() -> None:
    """At the large model's accuracy steps need fewer of its tokens; the same share of steps by chance is right less
    often.
    """
    found = report(40, 1, 0.95)
    assert found["large_tokens_steps_over_answers"]["high"] < 1.0
    assert found["by_chance"]["accuracy"]["value"] < found["by_steps"]["accuracy"]["value"] - 0.1
