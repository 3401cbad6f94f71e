"""Solutions in steps: the small model drafts, and the large one rewrites steps with a low score."""

from __future__ import annotations

import numpy as np

from cascade.prompts import next_step
from cascade.stepwise import Stepwise
from cascade.types import Evidence, Limits, Outcome, Plan, Rung, Step
from tests.cascade.playbook import driven, outcome_of

SMALL, LARGE = Step("small", worst_cost_usd=1.0), Step("large", worst_cost_usd=10.0)
ASKED = [{"role": "user", "content": "3 + 4 + 5?"}]
DRAFTS = Stepwise(SMALL, LARGE, lambda so_far: next_step(ASKED, so_far))


def plan(limits: Limits | None = None) -> Plan:
    return Plan((SMALL, LARGE), limits=limits or Limits(max_attempts=40), retries=0, strategy=DRAFTS)


def test_good_steps_are_kept() -> None:
    """The large model is never called, and each step is shown to the next one."""
    texts = iter(["3 + 4 = 7.", "Final answer: 12"])
    verdict, asked = driven(plan(), lambda rung: outcome_of(rung, next(texts), -0.01))
    assert verdict.text == "3 + 4 = 7.\nFinal answer: 12"
    assert [r.model for r in asked] == ["small", "small"]
    assert asked[1].overrides["messages"][1]["content"] == "3 + 4 = 7."


def test_a_poor_step_is_rewritten_by_the_large_model() -> None:
    """The large model's step replaces the draft, and drafting goes on."""
    script = iter([("3 + 4 = 8.", -2.0), ("3 + 4 = 7.", -2.0), ("Final answer: 12", -0.01)])
    verdict, asked = driven(plan(), lambda rung: outcome_of(rung, *next(script)))
    assert [r.model for r in asked] == ["small", "large", "small"]
    assert verdict.text == "3 + 4 = 7.\nFinal answer: 12"


def test_a_failed_step_falls_back_to_a_plain_answer() -> None:
    """The large model answers the whole question, streaming."""
    failing = lambda rung: Outcome("small", "reset") if rung.model == "small" else outcome_of(rung, "12")  # noqa: E731
    verdict, asked = driven(plan(), failing)
    assert asked[-1].final and "messages" not in asked[-1].overrides
    assert verdict.model == "large" and not verdict.text


def test_an_endless_solution_is_ended() -> None:
    """After the maximum number of steps the large model answers the whole question."""
    verdict, asked = driven(plan(), lambda rung: outcome_of(rung, "and on", -0.01))
    assert len(asked) == DRAFTS.most + 1 and verdict.model == "large"


def test_an_incomplete_solution_is_never_returned() -> None:
    """A budget that ends in the middle leaves no answer."""
    verdict, _ = driven(plan(Limits(40, max_cost_usd=2.0)), lambda rung: outcome_of(rung, "and on", -0.01))
    assert verdict.kept is None and not verdict.text


def test_few_of_the_large_models_steps_keep_its_accuracy() -> None:
    """In simulated solutions with a calibrated scorer most steps are the small model's, and most solutions stay right.
    """
    rng, right, large_steps, steps, at = np.random.default_rng(0), 0, 0, 0, 0

    def answer(rung: Rung) -> Outcome:
        nonlocal large_steps, steps, at
        good = rng.random() < (0.8 if rung.model == "small" else 0.99)
        large_steps += rung.model == "large"
        steps += 1
        score = rng.beta(9, 1) if good else rng.beta(2, 4)
        text = (
            f"{'Final answer: ' if len(rung.overrides['messages']) > 2 and at >= 4 else ''}{'right' if good else 'bad'}"
        )
        at += rung.model == "large" or score >= DRAFTS.accept_at
        return Outcome(rung.model, evidence=Evidence(judged=score, text=text), cost_usd=0.0)

    for _ in range(200):
        at = 0
        verdict, _asked = driven(plan(), answer)
        right += "bad" not in verdict.text
    assert right / 200 > 0.85 and large_steps / steps < 0.35
