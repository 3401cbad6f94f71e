"""Drives a cascade step by step and keeps the transcript."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

from cascade.climb import climb
from cascade.types import Evidence, Outcome, Plan, Rung, Verdict

Answer = Callable[[Rung], Outcome]


def outcome_of(rung: Rung, text: str, logprob: float = float("nan"), cost_usd: float = 1.0) -> Outcome:
    """An answer to a rung."""
    return Outcome(rung.model, evidence=Evidence(logprob, logprob, text=text), cost_usd=cost_usd)


def driven(plan: Plan, answer: Answer, *, together: bool = True) -> tuple[Verdict, list[Rung]]:
    """Runs the climb to its end. With `together=False` the driver ignores `beside`."""
    climbing, asked, outcome = climb(plan, repeat(0.5)), list[Rung](), None
    while True:
        try:
            rung = climbing.send(outcome) if outcome else next(climbing)
        except StopIteration as stop:
            return stop.value, asked
        assert len(asked) < 100, "endless climb"
        asked.append(rung)
        outcome = answer(rung)
        if together and rung.beside:
            asked += rung.beside
            beside = tuple(answer(one) for one in rung.beside)
            outcome = Outcome(
                outcome.model, outcome.failure, outcome.may_pass, outcome.may_move, evidence=outcome.evidence,
                cost_usd=outcome.cost_usd, beside=beside,
            )  # fmt: skip
